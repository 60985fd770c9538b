// The part of ONNX Runtime's C API that a library of custom operators calls, declared from its documentation: the table
// of functions only ever grows at its end, so that a function is known by its place. `check_table` looks at one place
// beyond most of them before anything else is called; that the others are right is for the trial of a new library to
// show.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ort {

constexpr uint32_t kApiVersion = 18;  // ONNX Runtime 1.18 has all that stands here

struct Status;
struct Value;
struct Shape;  // OrtTensorTypeAndShapeInfo
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct Domain;

using Table = void* const*;

struct ApiBase {
  Table (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

enum Place : int {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttributeFloat = 85,
  kKernelInfoGetAttributeInt64 = 86,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseShape = 99,
  kKernelInfoGetConstantInput = 249,
  kGetBuildInfoString = 254,
  kKernelContextParallelFor = 274,
};

enum Type : int { kAnyType = 0, kFloat = 1, kUint8 = 2, kFloat16 = 10 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

// A function of the table, by its place and its type.
template <typename Function>
Function function(Table table, Place place) {
  Function f;
  std::memcpy(&f, &table[place], sizeof f);
  return f;
}

// Whether the function at one of the places answers as it should.
inline bool check_table(Table table) {
  const char* text = function<const char* (*)()>(table, kGetBuildInfoString)();
  return text != nullptr && std::strncmp(text, "ORT Build Info", 14) == 0;
}

struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, Table, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const CustomOp*, size_t);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t);
  int (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, Table, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  void* (*InferOutputShapeFn)(const CustomOp*, void*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // namespace ort

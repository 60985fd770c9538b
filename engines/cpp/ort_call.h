// What an operator needs of ONNX Runtime: its constants, the tensors of a run, the threads of the session.
#pragma once

#include <immintrin.h>

#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ort_abi.h"

namespace styleclip {

struct Failure : std::exception {
  std::string text;
  explicit Failure(std::string t) : text(std::move(t)) {}
  const char* what() const noexcept override { return text.c_str(); }
};

inline void expect(bool condition, const char* otherwise) {
  if (!condition) throw Failure(otherwise);
}

struct Half {
  uint16_t bits;
  explicit operator float() const { return _cvtsh_ss(bits); }
};

// The functions of ONNX Runtime that are called; a status that is not null becomes a Failure.
struct Api {
  ort::Table table = nullptr;

  ort::Status* status(const char* text) const {
    constexpr int fail = 1;
    return ort::function<ort::Status* (*)(int, const char*)>(table, ort::kCreateStatus)(fail, text);
  }

  template <typename... A>
  void call(ort::Place place, A... arguments) const {
    ort::Status* status = ort::function<ort::Status* (*)(A...)>(table, place)(arguments...);
    if (status == nullptr) return;
    ort::function<void (*)(ort::Status*)>(table, ort::kReleaseStatus)(status);
    throw Failure("a call of ONNX Runtime failed (function " + std::to_string(place) + " of its table)");
  }
};

struct Tensor {
  const void* data = nullptr;
  std::vector<int64_t> shape;
  int type = 0;

  explicit operator bool() const { return data != nullptr; }
  const float* floats() const { return static_cast<const float*>(data); }
  int64_t size() const {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    return n;
  }
  float at(int64_t i) const {
    return type == ort::kFloat16 ? static_cast<float>(static_cast<const Half*>(data)[i]) : floats()[i];
  }
};

inline Tensor tensor_of(const Api& api, const ort::Value* value) {
  Tensor t;
  if (value == nullptr) return t;
  ort::Shape* shape = nullptr;
  api.call(ort::kGetTensorTypeAndShape, value, &shape);
  const std::unique_ptr<ort::Shape, void (*)(ort::Shape*)> held(
      shape, ort::function<void (*)(ort::Shape*)>(api.table, ort::kReleaseShape));
  const ort::Shape* about = shape;
  size_t rank = 0;
  api.call(ort::kGetDimensionsCount, about, &rank);
  t.shape.resize(rank);
  api.call(ort::kGetDimensions, about, t.shape.data(), rank);
  api.call(ort::kGetTensorElementType, about, &t.type);
  void* data = nullptr;
  api.call(ort::kGetTensorMutableData, const_cast<ort::Value*>(value), &data);
  t.data = data;
  return t;
}

// A constant input of a node; empty where it has none there, or it is computed.
inline Tensor constant(const Api& api, const ort::KernelInfo* info, size_t index) {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  api.call(ort::kKernelInfoGetConstantInput, info, index, &is_constant, &value);
  return is_constant ? tensor_of(api, value) : Tensor();
}

// What a run of a node takes and gives.
struct Call {
  const Api& api;
  ort::KernelContext* context;

  Tensor input(size_t index) const {
    const ort::Value* value = nullptr;
    api.call(ort::kKernelContextGetInput, static_cast<const ort::KernelContext*>(context), index, &value);
    return tensor_of(api, value);
  }

  float* output(const std::vector<int64_t>& shape) const {
    ort::Value* value = nullptr;
    api.call(ort::kKernelContextGetOutput, context, size_t{0}, shape.data(), shape.size(), &value);
    void* data = nullptr;
    api.call(ort::kGetTensorMutableData, value, &data);
    return static_cast<float*>(data);
  }

  // Every part of a job on the threads of the session, each by whoever is free.
  template <typename Job>
  void parallel(const Job& job) const {
    void (*part)(void*, size_t) = [](void* user, size_t i) {
      (*static_cast<const Job*>(user))(static_cast<int64_t>(i));
    };
    const auto parts = static_cast<size_t>(job.parts());
    if (parts > 0)
      api.call(ort::kKernelContextParallelFor, static_cast<const ort::KernelContext*>(context), part, parts, parts,
               static_cast<void*>(const_cast<Job*>(&job)));
  }
};

inline float scalar(const Tensor& t, float otherwise) { return t ? t.at(0) : otherwise; }

inline const float* sized(const Tensor& t, int64_t size, const char* otherwise) {
  expect(!t || t.size() == size, otherwise);
  return t ? t.floats() : nullptr;
}

}  // namespace styleclip

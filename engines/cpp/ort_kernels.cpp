// Custom operators of ONNX Runtime for the CPU: StyledConv.
#include "ort_abi.h"
#include "winograd.h"

#include <exception>
#include <vector>
#include <cstdio>

namespace {

using namespace styleclip;

struct Half {
  uint16_t bits;
  explicit operator float() const { return _cvtsh_ss(bits); }
};

struct Failure : std::exception {
  std::string text;
  explicit Failure(std::string t) : text(std::move(t)) {}
  const char* what() const noexcept override { return text.c_str(); }
};

struct Api {
  ort::Table table;
  ort::Status* status(const char* text) const {
    return ort::function<ort::Status* (*)(int, const char*)>(table, ort::kCreateStatus)(1, text);
  }
  void check(ort::Status* status) const {
    if (status == nullptr) return;
    ort::function<void (*)(ort::Status*)>(table, ort::kReleaseStatus)(status);
    throw Failure("a call of ONNX Runtime failed");
  }
  template <typename... A>
  void call(ort::Place place, A... arguments) const {
    check(ort::function<ort::Status* (*)(A...)>(table, place)(arguments...));
  }
};

struct Tensor {
  const void* data = nullptr;
  std::vector<int64_t> shape;
  int type = 0;
  int64_t size() const {
    int64_t n = 1;
    for (auto d : shape) n *= d;
    return n;
  }
  const float* floats() const { return static_cast<const float*>(data); }
  explicit operator bool() const { return data != nullptr; }
};

Tensor describe(const Api& api, const ort::Value* value) {
  Tensor t;
  if (value == nullptr) return t;
  ort::Shape* info = nullptr;
  api.call(ort::kGetTensorTypeAndShape, value, &info);
  size_t rank = 0;
  api.call(ort::kGetDimensionsCount, static_cast<const ort::Shape*>(info), &rank);
  t.shape.resize(rank);
  api.call(ort::kGetDimensions, static_cast<const ort::Shape*>(info), t.shape.data(), rank);
  api.call(ort::kGetTensorElementType, static_cast<const ort::Shape*>(info), &t.type);
  ort::function<void (*)(ort::Shape*)>(api.table, ort::kReleaseShape)(info);
  void* data = nullptr;
  api.call(ort::kGetTensorMutableData, const_cast<ort::Value*>(value), &data);
  t.data = data;
  return t;
}

enum Input : size_t { kX, kWeight, kStyle, kDemod, kNoise, kBias, kGain, kValue, kFir, kWeightGain, kInputs };

Tensor constant(const Api& api, const ort::KernelInfo* info, size_t index) {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  api.call(ort::kKernelInfoGetConstantInput, info, index, &is_constant, &value);
  if (!is_constant) return {};
  return describe(api, value);
}

float scalar(const Tensor& t, float otherwise) {
  if (!t) return otherwise;
  return t.type == ort::kFloat16 ? float(*static_cast<const Half*>(t.data)) : *t.floats();
}

struct Kernel {
  Api api;
  Filter filter;
  float slope = 1;

  Kernel(Api a, const ort::KernelInfo* info) : api(a) {
    api.call(ort::kKernelInfoGetAttributeFloat, info, "slope", &slope);
    const Tensor w = constant(api, info, kWeight), fir = constant(api, info, kFir);
    if (!w || w.shape.size() != 4) throw Failure("StyledConv: the weight is no constant of rank 4");
    const float gain = scalar(constant(api, info, kWeightGain), 1);
    int64_t up = 0;
    api.call(ort::kKernelInfoGetAttributeInt64, info, "up", &up);
    float taps[16];
    if (up) {
      if (!fir || fir.size() != 16 * w.shape[1]) throw Failure("StyledConv: the filter is no constant");
      for (int k = 0; k < 16; k++)
        taps[k] = fir.type == ort::kFloat16 ? float(static_cast<const Half*>(fir.data)[k]) : fir.floats()[k];
    }
    auto make = [&](const auto* p) {
      return up ? upsampling_filter(p, gain, taps, w.shape[0], w.shape[1])
                : plain_filter(p, gain, w.shape[1], w.shape[0]);
    };
    filter = w.type == ort::kFloat16 ? make(static_cast<const Half*>(w.data)) : make(w.floats());
  }

  struct Job {
    const Kernel* kernel;
    std::vector<Map> maps;
    Plan plan;
    int64_t blocks, splits, units, chunk;
  };

  static void part(void* user, size_t index) {
    const Job& job = *static_cast<const Job*>(user);
    const auto i = static_cast<int64_t>(index);
    const Filter& f = job.kernel->filter;
    thread_local Buffer scratch;
    thread_local int64_t size = 0;
    const int64_t needed = scratch_floats(f, job.plan);
    if (needed > size) scratch = nullptr, scratch = buffer(needed), size = needed;
    const int64_t split = i % job.splits, block = i / job.splits % job.blocks, n = i / job.splits / job.blocks;
    run(job.maps[n], f, job.plan, block * job.plan.units, std::min(job.units, (block + 1) * job.plan.units),
        split * job.chunk, std::min(f.rows(), (split + 1) * job.chunk), scratch.get());
  }

  void compute(ort::KernelContext* context) {
    Tensor in[kInputs];
    for (size_t i = 0; i < kInputs; i++) {
      const ort::Value* value = nullptr;
      if (i == kWeight || i == kFir || i == kWeightGain) continue;
      api.call(ort::kKernelContextGetInput, static_cast<const ort::KernelContext*>(context), i, &value);
      in[i] = describe(api, value);
    }
    const auto& shape = in[kX].shape;
    const int64_t n = shape[0], h = shape[2], w = shape[3], up = filter.phases == 4 ? 2 : 1;
    if (shape.size() != 4 || shape[1] != filter.in || w % kUnit || h % kTile) throw Failure("StyledConv: bad shape");
    const int64_t out_shape[4] = {n, filter.out, h * up, w * up};
    ort::Value* value = nullptr;
    api.call(ort::kKernelContextGetOutput, context, size_t{0}, static_cast<const int64_t*>(out_shape), size_t{4}, &value);
    void* y = nullptr;
    api.call(ort::kGetTensorMutableData, value, &y);
    const int64_t pixels = h * up * w * up;
    Job job{this, {}, {6, 32}, 0, 1, h / kTile * (w / kUnit), filter.rows()};
    job.blocks = (job.units + job.plan.units - 1) / job.plan.units;
    if (job.blocks * n < 8 && filter.rows() >= 128) {
      job.splits = std::min<int64_t>((8 + job.blocks * n - 1) / (job.blocks * n), filter.rows() / 64);
      job.chunk = (filter.rows() / job.splits + 31) / 32 * 32;
      job.splits = (filter.rows() + job.chunk - 1) / job.chunk;
    }
    for (int64_t k = 0; k < n; k++)
      job.maps.push_back(Map{in[kX].floats() + k * filter.in * h * w, static_cast<float*>(y) + k * filter.out * pixels,
                             in[kStyle] ? in[kStyle].floats() + k * filter.in : nullptr,
                             in[kDemod] ? in[kDemod].floats() + k * filter.out : nullptr,
                             in[kNoise] ? in[kNoise].floats() : nullptr, in[kBias] ? in[kBias].floats() : nullptr,
                             scalar(in[kValue], 1), scalar(in[kGain], 1), slope, h, w,
                             in[kNoise].size() == filter.out * pixels ? pixels : 0,
                             filter.out * pixels * 4 > (8 << 20)});
    const auto parts = static_cast<size_t>(n * job.blocks * job.splits);
    api.call(ort::kKernelContextParallelFor, static_cast<const ort::KernelContext*>(context), &Kernel::part, parts,
             parts, static_cast<void*>(&job));
  }
};

const char* name(const ort::CustomOp*) { return "StyledConv"; }
const char* provider(const ort::CustomOp*) { return "CPUExecutionProvider"; }
int input_type(const ort::CustomOp*, size_t i) { return i == kWeight || i == kFir ? ort::kAnyType : ort::kFloat; }
size_t input_count(const ort::CustomOp*) { return kInputs; }
int output_type(const ort::CustomOp*, size_t) { return ort::kFloat; }
size_t output_count(const ort::CustomOp*) { return 1; }
int input_kind(const ort::CustomOp*, size_t i) { return i <= kWeight ? ort::kRequired : ort::kOptional; }
int output_kind(const ort::CustomOp*, size_t) { return ort::kRequired; }
int memory(const ort::CustomOp*, size_t) { return 0; }
int one(const ort::CustomOp*) { return 1; }
int last(const ort::CustomOp*) { return 0x7fffffff; }
ort::Status* create(const ort::CustomOp*, ort::Table table, const ort::KernelInfo* info, void** kernel) {
  const Api api{table};
  try {
    *kernel = new Kernel(api, info);
    return nullptr;
  } catch (const std::exception& e) {
    return api.status(e.what());
  }
}
ort::Status* compute(void* kernel, ort::KernelContext* context) {
  auto* k = static_cast<Kernel*>(kernel);
  try {
    k->compute(context);
    return nullptr;
  } catch (const std::exception& e) {
    return k->api.status(e.what());
  }
}
void destroy(void* kernel) { delete static_cast<Kernel*>(kernel); }

const ort::CustomOp kOp = {ort::kApiVersion, nullptr, name, provider, input_type, input_count, output_type,
                           output_count, nullptr, destroy, input_kind, output_kind, memory, one, one, one, one,
                           create, compute, nullptr, one, last, nullptr, nullptr, nullptr, nullptr};

}  // namespace

extern "C" ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  const Api api{base->GetApi(ort::kApiVersion)};
  if (api.table == nullptr || !ort::check_table(api.table)) return nullptr;  // the session then misses the operator
  try {
    static ort::Domain* domain = [&] {
      ort::Domain* made = nullptr;
      api.call(ort::kCreateCustomOpDomain, "styleclip_rt", &made);
      api.call(ort::kCustomOpDomainAdd, made, &kOp);
      return made;
    }();
    api.call(ort::kAddCustomOpDomain, options, domain);
    return nullptr;
  } catch (const std::exception& e) {
    return api.status(e.what());
  }
}

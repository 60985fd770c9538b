// A library of custom operators of ONNX Runtime for x86-64 CPUs with AVX2, FMA and F16C; domain styleclip_rt.
//
// StyledConv: a 3x3 convolution of StyleGAN2 with everything around it, see styled_conv.h. Attributes: up (1: it
//   doubles the image), slope (of the leaky ReLU). Inputs, those after the weight optional: x [N, I, H, W],
//   weight [O, I, 3, 3] or for up [I, O, 3, 3], style [N, I], demod [N, O], noise [H, W] or [O, H, W] of the output,
//   bias [O], gain (of noise and bias), value (times demod), fir [O, 1, 4, 4] (only for up; the same for every
//   channel), weight gain.
// StyledRgb: the branch to colours, see styled_rgb.h. Inputs, those after the weight optional: x [N, C, H, W],
//   weight [3, C, 1, 1], style [N, C], bias [3], previous [N, 3, H / 2, W / 2], fir [3, 1, 4, 4], weight gain.
// PlainConv: a 3x3 convolution with a border of 1, see plain_conv.h. Attributes: stride (1 or 2), slope (where none is
//   given by channel; 1: no activation). Inputs, those after the weight optional: x [N, I, H, W], weight [O, I, 3, 3],
//   weight gain (one, or O of them), bias [O], slope (one, or O of them).
//
// Weights and filters are constants, float32 or float16; everything else is float32. `style` and `demod` may have
// further axes of size 1.

#include <exception>
#include <utility>
#include <vector>

#include "ort_abi.h"
#include "ort_call.h"
#include "plain_calls.h"
#include "plain_conv.h"
#include "styled_conv.h"
#include "styled_rgb.h"
#include "styled_up.h"

namespace {

using namespace styleclip;

// StyledConv ----------------------------------------------------------------------------------------------------------

class StyledConv {
 public:
  enum Input : size_t { kX, kWeight, kStyle, kDemod, kNoise, kBias, kGain, kValue, kFir, kWeightGain, kInputs };
  static const char* name() { return "StyledConv"; }
  static bool constant_input(size_t i) { return i == kWeight || i == kFir || i == kWeightGain; }

  StyledConv(const Api& api, const ort::KernelInfo* info) {
    int64_t up = 0;
    api.call(ort::kKernelInfoGetAttributeFloat, info, "slope", &slope_);
    api.call(ort::kKernelInfoGetAttributeInt64, info, "up", &up);
    const Tensor w = constant(api, info, kWeight), fir = constant(api, info, kFir);
    const float gain = scalar(constant(api, info, kWeightGain), 1);
    expect(w.shape.size() == 4 && w.shape[2] == 3 && w.shape[3] == 3,
           "StyledConv: the weight is not constant [.,.,3,3]");
    expect(w.shape[0] % kRows == 0 && w.shape[1] % kRows == 0, "StyledConv: channels must be multiples of 4");
    expect(slope_ >= 0 && slope_ <= 1, "StyledConv: slope must lie in 0..1");
    float taps[16] = {};
    if (up) {
      expect(fir.size() == 16 * w.shape[1], "StyledConv: the FIR is no constant [O,1,4,4]");
      for (int64_t i = 0; i < fir.size(); i++) {
        expect(fir.at(i) == fir.at(i % 16), "StyledConv: the FIR differs from channel to channel");
        taps[i % 16] = fir.at(i);
      }
    }
    const auto make = [&](const auto* p) {
      up_ = up != 0;
      if (up_)
        expect(up_filter_.make(p, gain, taps, w.shape[0], w.shape[1]), "StyledConv: the FIR is no outer product");
      else
        filter_.make(p, gain, w.shape[1], w.shape[0]);
    };
    if (w.type == ort::kFloat16)
      make(static_cast<const Half*>(w.data));
    else
      make(w.floats());
  }

  void run(const Call& call) const {
    const Tensor x = call.input(kX), style = call.input(kStyle), demod = call.input(kDemod),
                 noise = call.input(kNoise), bias = call.input(kBias);
    const int64_t inputs = up_ ? up_filter_.in : filter_.in, outputs = up_ ? up_filter_.out : filter_.out;
    expect(x.shape.size() == 4 && x.shape[1] == inputs, "StyledConv: x does not have the weight's channels");
    const int64_t n = x.shape[0], h = x.shape[2], w = x.shape[3], scaling = up_ ? 2 : 1;
    const int64_t pixels = h * w * scaling * scaling;
    const bool by_channel = noise.size() == outputs * pixels;
    float* y = call.output({n, outputs, h * scaling, w * scaling});
    std::vector<Map> maps;
    for (int64_t k = 0; k < n; k++) {
      Map map{};
      map.x = x.floats() + k * inputs * h * w;
      map.y = y + k * outputs * pixels;
      map.style = offset(sized(style, n * inputs, "StyledConv: style does not fit"), k * inputs);
      map.demod = offset(sized(demod, n * outputs, "StyledConv: demod does not fit"), k * outputs);
      map.noise = sized(noise, by_channel ? outputs * pixels : pixels, "StyledConv: noise does not fit");
      map.noise_stride = by_channel ? pixels : 0;
      map.bias = sized(bias, outputs, "StyledConv: bias does not fit");
      map.gain = scalar(call.input(kGain), 1), map.value = scalar(call.input(kValue), 1), map.slope = slope_;
      map.height = h, map.width = w;
      maps.push_back(map);
    }
    if (up_)
      call.parallel(UpJob(up_filter_, std::move(maps)));
    else
      call.parallel(ConvJob(filter_, std::move(maps)));
  }

 private:
  static const float* offset(const float* p, int64_t by) { return p ? p + by : nullptr; }

  bool up_ = false;
  Filter filter_;
  UpFilter up_filter_;  // one of the two is filled
  float slope_ = 1;
};

// StyledRgb -----------------------------------------------------------------------------------------------------------

class StyledRgb {
 public:
  enum Input : size_t { kX, kWeight, kStyle, kBias, kPrevious, kFir, kWeightGain, kInputs };
  static const char* name() { return "StyledRgb"; }
  static bool constant_input(size_t i) { return i == kWeight || i == kFir || i == kWeightGain; }

  StyledRgb(const Api& api, const ort::KernelInfo* info) {
    const Tensor w = constant(api, info, kWeight), fir = constant(api, info, kFir);
    const float gain = scalar(constant(api, info, kWeightGain), 1);
    expect(w.shape.size() == 4 && w.shape[0] == 3 && w.size() == 3 * w.shape[1] && w.shape[1] % 4 == 0,
           "StyledRgb: the weight is no constant [3,C,1,1] with C a multiple of 4");
    expect(!fir || fir.size() == 3 * 16, "StyledRgb: the FIR is no constant [3,1,4,4]");
    for (int64_t i = 0; i < w.size(); i++) weight_.push_back(gain * w.at(i));
    for (int64_t i = 0; fir && i < fir.size(); i++) fir_.push_back(fir.at(i));
  }

  void run(const Call& call) const {
    const Tensor x = call.input(kX), style = call.input(kStyle), bias = call.input(kBias),
                 previous = call.input(kPrevious);
    const auto channels = static_cast<int64_t>(weight_.size() / 3);
    expect(x.shape.size() == 4 && x.shape[1] == channels, "StyledRgb: x does not have the weight's channels");
    const int64_t n = x.shape[0], h = x.shape[2], w = x.shape[3];
    expect(w % (2 * kLanes) == 0 && h % 2 == 0, "StyledRgb: the width must be a multiple of 16, the height of 2");
    expect(!previous || !fir_.empty(), "StyledRgb: there is no FIR for the previous image");
    const float* styles = sized(style, n * channels, "StyledRgb: style does not fit");
    const float* before = sized(previous, n * 3 * h * w / 4, "StyledRgb: the previous image is not half as large");
    float* rgb = call.output({n, 3, h, w});
    std::vector<float> weights(static_cast<size_t>(n * 3 * channels));
    std::vector<RgbMap> maps;
    for (int64_t k = 0; k < n; k++) {
      float* scaled = weights.data() + k * 3 * channels;
      for (int64_t i = 0; i < 3 * channels; i++)
        scaled[i] = weight_[static_cast<size_t>(i)] * (styles ? styles[k * channels + i % channels] : 1.f);
      maps.push_back(RgbMap{x.floats() + k * channels * h * w, scaled, sized(bias, 3, "StyledRgb: bias does not fit"),
                            before ? before + k * 3 * h * w / 4 : nullptr, fir_.data(), rgb + k * 3 * h * w, channels,
                            h, w});
    }
    call.parallel(RgbJob{std::move(maps)});
  }

 private:
  std::vector<float> weight_, fir_;
};

// PlainConv -----------------------------------------------------------------------------------------------------------

class PlainConv {
 public:
  enum Input : size_t { kX, kWeight, kWeightGain, kBias, kSlope, kInputs };
  static const char* name() { return "PlainConv"; }
  static bool constant_input(size_t i) { return i == kWeight || i == kWeightGain; }

  PlainConv(const Api& api, const ort::KernelInfo* info) {
    int64_t stride = 1;
    api.call(ort::kKernelInfoGetAttributeFloat, info, "slope", &slope_);
    api.call(ort::kKernelInfoGetAttributeInt64, info, "stride", &stride);
    const Tensor w = constant(api, info, kWeight), gain = constant(api, info, kWeightGain);
    expect(w.shape.size() == 4 && w.shape[2] == 3 && w.shape[3] == 3 && w.shape[0] % kRows == 0,
           "PlainConv: the weight is no constant [O,.,3,3] with O a multiple of 4");
    expect(!gain || gain.size() == 1 || gain.size() == w.shape[0], "PlainConv: the weight gain does not fit");
    expect(stride == 1 || stride == 2, "PlainConv: the stride is neither 1 nor 2");
    for (int64_t o = 0; o < w.shape[0]; o++) scale_.push_back(gain ? gain.at(gain.size() == 1 ? 0 : o) : 1.f);
    const auto make = [&](const auto* p) { filter_.make(p, w.shape[1], w.shape[0], stride); };
    if (w.type == ort::kFloat16)
      make(static_cast<const Half*>(w.data));
    else
      make(w.floats());
  }

  void run(const Call& call) const {
    const Tensor x = call.input(kX), bias = call.input(kBias), slope = call.input(kSlope);
    expect(x.shape.size() == 4 && x.shape[1] == filter_.in, "PlainConv: x does not have the weight's channels");
    const int64_t n = x.shape[0], h = x.shape[2], w = x.shape[3], stride = filter_.stride;
    const int64_t high = (h + stride - 1) / stride, wide = (w + stride - 1) / stride;
    float* y = call.output({n, filter_.out, high, wide});
    const std::vector<float> biases = each(bias, 0.f, "PlainConv: bias does not fit");
    const std::vector<float> slopes = each(slope, slope_, "PlainConv: slope does not fit");
    std::vector<PlainMap> maps;
    for (int64_t k = 0; k < n; k++)
      maps.push_back({x.floats() + k * filter_.in * h * w, y + k * filter_.out * high * wide, scale_.data(),
                      biases.data(), slopes.data(), h, w});
    const auto parallel = [&](const auto& job) { call.parallel(job); };
    if (stride == 1)
      run_plain<StrideOne>(filter_, maps, parallel);
    else
      run_plain<StrideTwo>(filter_, maps, parallel);
  }

 private:
  // A value for each channel of the output, from a tensor of one for each, or of one for all, or none.
  std::vector<float> each(const Tensor& t, float otherwise, const char* message) const {
    expect(!t || t.size() == 1 || t.size() == filter_.out, message);
    std::vector<float> values(static_cast<size_t>(filter_.out), t ? t.at(0) : otherwise);
    for (int64_t o = 0; t && t.size() > 1 && o < filter_.out; o++) values[static_cast<size_t>(o)] = t.at(o);
    return values;
  }

  PlainFilter filter_;
  std::vector<float> scale_;
  float slope_ = 1;
};

// How ONNX Runtime sees an operator -----------------------------------------------------------------------------------

template <typename Op>
struct Held {
  Api api;
  Op op;
};

template <typename Op>
constexpr ort::CustomOp described() {
  ort::CustomOp d{};
  d.version = ort::kApiVersion;
  d.GetName = [](const ort::CustomOp*) { return Op::name(); };
  d.GetExecutionProviderType = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
  d.GetInputType = [](const ort::CustomOp*, size_t i) -> int {
    return Op::constant_input(i) ? ort::kAnyType : ort::kFloat;
  };
  d.GetInputTypeCount = [](const ort::CustomOp*) { return static_cast<size_t>(Op::kInputs); };
  d.GetOutputType = [](const ort::CustomOp*, size_t) -> int { return ort::kFloat; };
  d.GetOutputTypeCount = [](const ort::CustomOp*) { return size_t{1}; };
  d.KernelDestroy = [](void* kernel) { delete static_cast<Held<Op>*>(kernel); };
  d.GetInputCharacteristic = [](const ort::CustomOp*, size_t i) -> int {
    return i <= Op::kWeight ? ort::kRequired : ort::kOptional;
  };
  d.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) -> int { return ort::kRequired; };
  d.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };
  const auto one = [](const ort::CustomOp*) { return 1; };
  d.GetVariadicInputMinArity = d.GetVariadicInputHomogeneity = one;
  d.GetVariadicOutputMinArity = d.GetVariadicOutputHomogeneity = one;
  d.GetStartVersion = one;
  d.GetEndVersion = [](const ort::CustomOp*) { return 0x7fffffff; };
  d.CreateKernelV2 = [](const ort::CustomOp*, ort::Table table, const ort::KernelInfo* info,
                        void** kernel) -> ort::Status* {
    const Api api{table};
    try {
      *kernel = new Held<Op>{api, Op(api, info)};
      return nullptr;
    } catch (const std::exception& error) {
      return api.status(error.what());
    }
  };
  d.KernelComputeV2 = [](void* kernel, ort::KernelContext* context) -> ort::Status* {
    const auto& held = *static_cast<const Held<Op>*>(kernel);
    try {
      held.op.run(Call{held.api, context});
      return nullptr;
    } catch (const std::exception& error) {
      return held.api.status(error.what());
    }
  };
  return d;
}

const ort::CustomOp kStyledConv = described<StyledConv>(), kStyledRgb = described<StyledRgb>(),
                    kPlainConv = described<PlainConv>();

}  // namespace

// What ONNX Runtime calls when the library is registered with a session's options.
extern "C" ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  const Api api{base->GetApi(ort::kApiVersion)};
  if (api.table == nullptr || !ort::check_table(api.table)) return nullptr;  // its sessions then miss the operators
  try {
    static ort::Domain* const domain = [&] {  // for the life of the process, as its operators are
      ort::Domain* made = nullptr;
      api.call(ort::kCreateCustomOpDomain, "styleclip_rt", &made);
      for (const auto* op : {&kStyledConv, &kStyledRgb, &kPlainConv}) api.call(ort::kCustomOpDomainAdd, made, op);
      return made;
    }();
    api.call(ort::kAddCustomOpDomain, options, domain);
    return nullptr;
  } catch (const std::exception& error) {
    return api.status(error.what());
  }
}

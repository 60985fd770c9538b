// The same kernels as plain C functions, for callers with memory of their own (`engines/kernel_calls.py`). Pointers are
// to float32 in C order; those marked * may be null. A function returns 0, or 1 where memory or a thread cannot be had.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "styled_conv.h"
#include "styled_rgb.h"
#include "styled_up.h"

namespace styleclip {

// Threads that wait for work: each keeps its scratch memory, so that the system hands out its pages once.
class Pool {
 public:
  static Pool& shared() {
    static Pool* const pool = new Pool;  // never destroyed: threads may outlive what runs at exit
    return *pool;
  }

  // Every part of a job on `threads` threads, each by whoever is free; one job at a time.
  template <typename Job>
  void run(const Job& job, int64_t threads) {
    const std::lock_guard<std::mutex> turn(turn_);
    const int64_t parts = job.parts();
    grow(std::min(threads, parts) - 1);
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const std::function<void()> work = [&] {
      try {
        for (int64_t i = next++; i < parts; i = next++) job(i);
      } catch (const std::exception&) {
        failed = true;
      }
    };
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work, open_ = std::min<int64_t>(std::min(threads, parts) - 1, size_), busy_ = 0;
    }
    wake_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = 0;  // whoever has not begun need not
    done_.wait(lock, [&] { return busy_ == 0; });
    work_ = nullptr;
    if (failed) throw std::bad_alloc();
  }

 private:
  void grow(int64_t wanted) {
    try {
      for (; size_ < wanted; size_++) std::thread([this] { wait(); }).detach();
    } catch (const std::exception&) {  // fewer threads do it too
    }
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return open_ > 0; });
      open_--, busy_++;
      const auto* work = work_;
      lock.unlock();
      (*work)();
      lock.lock();
      if (--busy_ == 0) done_.notify_all();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  const std::function<void()>* work_ = nullptr;
  int64_t open_ = 0, busy_ = 0, size_ = 0;
};

struct PlainLayer {
  bool up = false;
  Filter filter;
  UpFilter up_filter;  // one of the two is filled
};

template <typename Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

}  // namespace styleclip

extern "C" {

// w [out, in, 3, 3], or with fir* [4, 4]: w [in, out, 3, 3] of an up-sampling layer. Null where memory cannot be had,
// or the FIR is no outer product.
void* styleclip_conv_new(const float* w, const float* fir, int64_t in, int64_t out) {
  auto made = std::make_unique<styleclip::PlainLayer>();
  bool right = true;
  made->up = fir != nullptr;
  const int failed = styleclip::guarded([&] {
    if (fir)
      right = made->up_filter.make(w, 1.f, fir, in, out);
    else
      made->filter.make(w, 1.f, in, out);
  });
  return failed || !right ? nullptr : made.release();
}

void styleclip_conv_free(void* layer) { delete static_cast<styleclip::PlainLayer*>(layer); }

// y [n, out, h', w'] = lrelu(demod * conv(x * style) + gain * (noise + bias), slope) for x [n, in, h, w]; style* [in],
// demod* [out], noise* [h', w'] and bias* [out] hold for every image. A plain convolution of even h, of w that is a
// multiple of 16, also makes rgb* [n, 3, h, w] = conv1x1(y, rgb_weight [3, out]) + rgb_bias* [3]; then y may be null.
int styleclip_conv_run(const void* layer, const float* x, float* y, int64_t n, int64_t h, int64_t w, const float* style,
                       const float* demod, const float* noise, const float* bias, float gain, float slope,
                       const float* rgb_weight, const float* rgb_bias, float* rgb, int64_t threads) {
  return styleclip::guarded([&] {
    const auto& of = *static_cast<const styleclip::PlainLayer*>(layer);
    const int64_t in = of.up ? of.up_filter.in : of.filter.in, out = of.up ? of.up_filter.out : of.filter.out;
    const int64_t floats = (of.up ? 4 : 1) * out * h * w;
    std::vector<styleclip::Map> maps;
    for (int64_t k = 0; k < n; k++) {
      styleclip::Map map{};
      map.x = x + k * in * h * w, map.y = y ? y + k * floats : nullptr, map.style = style, map.demod = demod;
      map.noise = noise, map.bias = bias, map.value = 1, map.gain = gain, map.slope = slope;
      map.height = h, map.width = w;
      if (rgb) map.colours = {rgb_weight, rgb_bias, rgb + k * 3 * h * w, out, h, w};
      maps.push_back(map);
    }
    if (of.up)
      styleclip::Pool::shared().run(styleclip::UpJob(of.up_filter, std::move(maps)), threads);
    else
      styleclip::Pool::shared().run(styleclip::ConvJob(of.filter, std::move(maps)), threads);
  });
}

// rgb [n, 3, h, w] = conv1x1(x, weight [3, channels]) + bias* [3] for x [n, channels, h, w].
int styleclip_rgb_run(const float* x, const float* weight, const float* bias, float* rgb, int64_t n, int64_t channels,
                      int64_t h, int64_t w, int64_t threads) {
  return styleclip::guarded([&] {
    std::vector<styleclip::RgbMap> maps;
    for (int64_t k = 0; k < n; k++)
      maps.push_back({x + k * channels * h * w, weight, bias, nullptr, nullptr, rgb + k * 3 * h * w, channels, h, w});
    styleclip::Pool::shared().run(styleclip::RgbJob{std::move(maps)}, threads);
  });
}

}  // extern "C"

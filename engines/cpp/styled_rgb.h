// The branch of StyleGAN2 that leads to colours (Karras et al. 2020, figure 7), in one pass over the map:
//
//   rgb = conv1x1(x * s, w) + bias + upsample(previous)
//
// Three channels are written for C that are read, so the time is that of reading x once.
#pragma once

#include "vectors.h"

#include <algorithm>
#include <vector>

namespace styleclip {

struct RgbMap {  // one image, planar
  const float* x;         // [channels, H, W]
  const float* weight;    // [3, channels], times the style
  const float* bias;      // [3] or null
  const float* previous;  // [3, H / 2, W / 2] or null
  const float* fir;       // [16]: a transposed convolution of stride 2 with a border of 1
  float* rgb;             // [3, H, W]
  int64_t channels, height, width;
};

inline int64_t rgb_scratch_floats(int64_t width) { return 4 * (width / 2 + 4 * kLanes); }

// One row of the doubled image, added to `to`. Even places read the taps 1 and 3 of a row, odd ones 0 and 2, and rows
// do the same.
inline void add_upsampled(const float* previous, const float* fir, int64_t height, int64_t width, int64_t row,
                          float* to, float* scratch) {
  const int64_t h = height / 2, w = width / 2, stride = w + 4 * kLanes;
  const int64_t near = row / 2, far = row % 2 ? near + 1 : near - 1;
  const float *near_taps = fir + (row % 2 ? 2 : 1) * 4, *far_taps = fir + (row % 2 ? 0 : 3) * 4;
  const bool has_far = far >= 0 && far < h;
  float* sums[4];  // sums[k][m]: both rows of `previous` at m, with the taps of column k; a zero at either end
  for (int k = 0; k < 4; k++) {
    sums[k] = scratch + k * stride + kLanes;
    sums[k][-1] = sums[k][w] = 0;
    for (int64_t m = 0; m < w; m++)
      sums[k][m] = near_taps[k] * previous[near * w + m] + (has_far ? far_taps[k] * previous[far * w + m] : 0.f);
  }
  for (int64_t m = 0; m < w; m += kLanes) {
    alignas(32) float pairs[2 * kLanes];
    store_pairs(pairs, _mm256_add_ps(load(sums[1] + m), load(sums[3] + m - 1)),
                _mm256_add_ps(load(sums[0] + m + 1), load(sums[2] + m)));
    for (int64_t half = 0; half < 2; half++) {
      float* at = to + 2 * m + half * kLanes;
      _mm256_storeu_ps(at, _mm256_add_ps(load(at), _mm256_load_ps(pairs + half * kLanes)));
    }
  }
}

// Row `row`; the width is a multiple of 16, the channels of 4; scratch: `rgb_scratch_floats(width)` floats.
inline void rgb_row(const RgbMap& map, int64_t row, float* scratch) {
  const int64_t plane = map.height * map.width;
  float* to[3];
  for (int k = 0; k < 3; k++) {
    to[k] = map.rgb + k * plane + row * map.width;
    std::fill_n(to[k], map.width, map.bias ? map.bias[k] : 0.f);
    if (map.previous)
      add_upsampled(map.previous + k * plane / 4, map.fir + k * 16, map.height, map.width, row, to[k], scratch);
  }
  for (int64_t c = 0; c < map.channels; c += 4) {
    const float* x = map.x + c * plane + row * map.width;
    V w[3][4];
    for (int k = 0; k < 3; k++)
      for (int j = 0; j < 4; j++) w[k][j] = _mm256_set1_ps(map.weight[k * map.channels + c + j]);
    for (int64_t m = 0; m < map.width; m += kLanes) {
      const V x0 = load(x + m), x1 = load(x + plane + m), x2 = load(x + 2 * plane + m), x3 = load(x + 3 * plane + m);
      for (int k = 0; k < 3; k++) {
        V sum = _mm256_fmadd_ps(w[k][0], x0, load(to[k] + m));
        sum = _mm256_fmadd_ps(w[k][1], x1, sum);
        sum = _mm256_fmadd_ps(w[k][2], x2, sum);
        _mm256_storeu_ps(to[k] + m, _mm256_fmadd_ps(w[k][3], x3, sum));
      }
    }
  }
}

// Colours of a map [channels, H, W] that is not read again for them: its tiles are added while they are in the cache.
struct Colours {
  const float* weight;  // [3, channels], times the style
  const float* bias;    // [3] or null
  float* rgb;           // [3, H, W], or null for no colours
  int64_t channels, height, width;  // the width is a multiple of 16
};

// 8 N pixels of row `row` from `column` on, of `count` channels from `first` on, `stride` floats apart. The first
// channels of all set the pixels, the others add to them.
template <int N>
inline void add_colours(const Colours& of, const float* x, int64_t stride, int64_t first, int64_t count, int64_t row,
                        int64_t column) {
  float* to = of.rgb + row * of.width + column;
  const int64_t plane = of.height * of.width;
  V sum[3][N];
#pragma GCC unroll 3
  for (int k = 0; k < 3; k++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++)
      sum[k][n] = first > 0 ? load(to + k * plane + n * kLanes) : _mm256_set1_ps(of.bias ? of.bias[k] : 0.f);
  const float* weight = of.weight + first;
  for (int64_t c = 0; c < count; c++, x += stride, weight++) {
#pragma GCC unroll 3
    for (int k = 0; k < 3; k++) {
      const V w = _mm256_broadcast_ss(weight + k * of.channels);
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) sum[k][n] = _mm256_fmadd_ps(w, load(x + n * kLanes), sum[k][n]);
    }
  }
#pragma GCC unroll 3
  for (int k = 0; k < 3; k++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) _mm256_storeu_ps(to + k * plane + n * kLanes, sum[k][n]);
}

// Maps of one size, in parts that may run in any order on any thread.
struct RgbJob {
  static constexpr int64_t kStrip = 4;  // rows
  std::vector<RgbMap> maps;

  int64_t strips() const { return maps.empty() ? 0 : (maps[0].height + kStrip - 1) / kStrip; }
  int64_t parts() const { return static_cast<int64_t>(maps.size()) * strips(); }

  void operator()(int64_t i) const {
    const RgbMap& map = maps[static_cast<size_t>(i / strips())];
    const int64_t first = i % strips() * kStrip;
    for (int64_t row = first; row < std::min(map.height, first + kStrip); row++)
      rgb_row(map, row, scratch(rgb_scratch_floats(map.width)));
  }
};

}  // namespace styleclip

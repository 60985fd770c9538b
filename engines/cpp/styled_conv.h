// The styled 3x3 convolution of StyleGAN2 on x86 with AVX2 and FMA, by tiles: F(4x4, 3x3) of Winograd (Lavin and Gray
// 2016), with everything around it fused.
//
//   y = lrelu(d * value * conv(x * s, w) + gain * (noise + bias))      (Karras et al. 2020, equations 1 to 3)
//
// A tile of 4x4 pixels costs 36 products a pair of channels in place of 144. A block of tiles stays in the cache
// between its three stages: input transform (which multiplies by the style), 36 matrix products, output transform
// (which demodulates, adds noise and bias, activates).
//
// Vectors hold 8 tiles that lie side by side: 32 pixels of a row, a unit. Sizes are free; what a last unit or tile
// holds beyond the border is computed as zeros and not written.
#pragma once

#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace styleclip {

constexpr int64_t kTile = 4, kPoints = 36, kUnit = kTile * kLanes, kRows = 4;

// The transformed weights of a layer, [36][out / 4][in][4]: G g G^T for the taps g of every pair of channels, at(o, i, k)
// being tap k, and place(u, v) the place among the 36 of row u and column v. Those places lie far apart, often at
// distances that share a line of the cache, so a few channels are gathered before they are stored.
template <typename Place, typename At>
Buffer transformed(const float (&G)[6][3], int64_t in, int64_t out, const Place& place, const At& at) {
  constexpr int64_t few = 16;
  Buffer taps = buffer(kPoints * in * out);
  alignas(64) float kept[kPoints][few * kRows];
  const auto row = [&](int u, const V& a, const V& b, const V& c) {
    const V sum = _mm256_mul_ps(_mm256_set1_ps(G[u][0]), a);
    return _mm256_fmadd_ps(_mm256_set1_ps(G[u][2]), c, _mm256_fmadd_ps(_mm256_set1_ps(G[u][1]), b, sum));
  };
  for (int64_t o = 0; o < out; o += kRows)
    for (int64_t first = 0; first < in; first += few) {
      const int64_t count = std::min(few, in - first);
      for (int64_t i = 0; i < count; i += 2) {  // two channels to a vector
        const int64_t a = first + i, b = std::min(a + 1, in - 1);
        V g[9], half[6][3];
        for (int k = 0; k < 9; k++)
          g[k] = _mm256_setr_ps(at(o, a, k), at(o + 1, a, k), at(o + 2, a, k), at(o + 3, a, k), at(o, b, k),
                                at(o + 1, b, k), at(o + 2, b, k), at(o + 3, b, k));
        for (int u = 0; u < 6; u++)
          for (int c = 0; c < 3; c++) half[u][c] = row(u, g[c], g[3 + c], g[6 + c]);
        for (int u = 0; u < 6; u++)
          for (int v = 0; v < 6; v++)
            _mm256_store_ps(kept[place(u, v)] + i * kRows, row(v, half[u][0], half[u][1], half[u][2]));
      }
      for (int64_t p = 0; p < kPoints; p++)
        std::copy_n(kept[p], count * kRows, taps.get() + (p * out + o) * in + first * kRows);
    }
  return taps;
}

struct Filter {
  int64_t in = 0, out = 0;
  Buffer taps;  // see `transformed`

  // w [out, in, 3, 3] of any type that converts to float, times `gain`.
  template <typename T>
  void make(const T* w, float gain, int64_t inputs, int64_t outputs) {
    in = inputs, out = outputs;
    static constexpr float G[6][3] = {{1.f / 4, 0, 0}, {-1.f / 6, -1.f / 6, -1.f / 6}, {-1.f / 6, 1.f / 6, -1.f / 6},
                                      {1.f / 24, 1.f / 12, 1.f / 6}, {1.f / 24, -1.f / 12, 1.f / 6}, {0, 0, 1}};
    const auto place = [](int u, int v) { return u * 6 + v; };
    taps = transformed(G, in, out, place, [&](int64_t o, int64_t i, int64_t k) {
      return gain * static_cast<float>(w[(o * in + i) * 9 + k]);
    });
  }
};

struct Map {  // one image of the input and of the output, planar
  const float* x;
  float* y;
  const float* style;   // [in] or null
  const float* demod;   // [out] or null
  const float* noise;   // of the output, [H, W] for every channel or [out, H, W], or null
  const float* bias;    // [out] or null
  float value, gain, slope;
  int64_t height, width;  // of the input
  int64_t noise_stride;   // floats from a channel of the noise to the next, 0: the same one

  V scale(int64_t o) const { return _mm256_set1_ps(value * (demod ? demod[o] : 1.f)); }
  V offset(int64_t o) const { return _mm256_set1_ps(bias ? gain * bias[o] : 0.f); }
  int64_t across() const { return (width + kUnit - 1) / kUnit; }
  int64_t units() const { return (height + kTile - 1) / kTile * across(); }
};

// A unit of the next channel, which the processor does not foresee: channels lie far apart. Past the end it does
// nothing.
inline void prefetch(const float* line) {
  _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(line + 16), _MM_HINT_T0);
}

inline V lo_hi(const float* low, const float* high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}

// Four vectors whose lane t is p[4 t + j], j = 0..3.
inline void split4(const float* p, V out[4]) {
  const V a = lo_hi(p, p + 16), b = lo_hi(p + 4, p + 20), c = lo_hi(p + 8, p + 24), d = lo_hi(p + 12, p + 28);
  const V ab0 = _mm256_unpacklo_ps(a, b), ab1 = _mm256_unpackhi_ps(a, b);
  const V cd0 = _mm256_unpacklo_ps(c, d), cd1 = _mm256_unpackhi_ps(c, d);
  out[0] = _mm256_shuffle_ps(ab0, cd0, 0x44);
  out[1] = _mm256_shuffle_ps(ab0, cd0, 0xEE);
  out[2] = _mm256_shuffle_ps(ab1, cd1, 0x44);
  out[3] = _mm256_shuffle_ps(ab1, cd1, 0xEE);
}

// The inverse: 32 floats in order, as four vectors.
inline void join4(const V in[4], V out[4]) {
  const V ab0 = _mm256_unpacklo_ps(in[0], in[1]), ab1 = _mm256_unpackhi_ps(in[0], in[1]);
  const V cd0 = _mm256_unpacklo_ps(in[2], in[3]), cd1 = _mm256_unpackhi_ps(in[2], in[3]);
  const V r0 = _mm256_shuffle_ps(ab0, cd0, 0x44), r1 = _mm256_shuffle_ps(ab0, cd0, 0xEE);
  const V r2 = _mm256_shuffle_ps(ab1, cd1, 0x44), r3 = _mm256_shuffle_ps(ab1, cd1, 0xEE);
  out[0] = _mm256_permute2f128_ps(r0, r1, 0x20);
  out[1] = _mm256_permute2f128_ps(r2, r3, 0x20);
  out[2] = _mm256_permute2f128_ps(r0, r1, 0x31);
  out[3] = _mm256_permute2f128_ps(r2, r3, 0x31);
}

// Eight vectors, vector j with lane t for place 8 t + j: 64 floats in order.
inline void join8(const V in[8], V out[8]) {
  V a[8], b[8];
  for (int j = 0; j < 4; j++) {
    a[2 * j] = _mm256_unpacklo_ps(in[2 * j], in[2 * j + 1]);
    a[2 * j + 1] = _mm256_unpackhi_ps(in[2 * j], in[2 * j + 1]);
  }
  for (int h = 0; h < 2; h++) {
    b[4 * h + 0] = _mm256_shuffle_ps(a[4 * h], a[4 * h + 2], 0x44);
    b[4 * h + 1] = _mm256_shuffle_ps(a[4 * h], a[4 * h + 2], 0xEE);
    b[4 * h + 2] = _mm256_shuffle_ps(a[4 * h + 1], a[4 * h + 3], 0x44);
    b[4 * h + 3] = _mm256_shuffle_ps(a[4 * h + 1], a[4 * h + 3], 0xEE);
  }
  for (int t = 0; t < 4; t++) {
    out[t] = _mm256_permute2f128_ps(b[t], b[4 + t], 0x20);
    out[4 + t] = _mm256_permute2f128_ps(b[t], b[4 + t], 0x31);
  }
}

// B^T d for six vectors.
inline void transform_input(const V d[6], V* to, int64_t stride) {
  const V four = _mm256_set1_ps(4), five = _mm256_set1_ps(5), two = _mm256_set1_ps(2);
  const V a = _mm256_fnmadd_ps(four, d[2], d[4]), b = _mm256_fnmadd_ps(four, d[1], d[3]);
  const V c = _mm256_sub_ps(d[4], d[2]), e = _mm256_sub_ps(d[3], d[1]);
  to[0] = _mm256_fmadd_ps(four, d[0], _mm256_fnmadd_ps(five, d[2], d[4]));
  to[stride] = _mm256_add_ps(a, b);
  to[2 * stride] = _mm256_sub_ps(a, b);
  to[3 * stride] = _mm256_fmadd_ps(two, e, c);
  to[4 * stride] = _mm256_fnmadd_ps(two, e, c);
  to[5 * stride] = _mm256_fmadd_ps(four, d[1], _mm256_fnmadd_ps(five, d[3], d[5]));
}

// A^T m: four vectors of six.
inline void transform_output(const V m[6], V y[4]) {
  const V two = _mm256_set1_ps(2), four = _mm256_set1_ps(4), eight = _mm256_set1_ps(8);
  const V near = _mm256_add_ps(m[1], m[2]), near_odd = _mm256_sub_ps(m[1], m[2]);
  const V far = _mm256_add_ps(m[3], m[4]), far_odd = _mm256_sub_ps(m[3], m[4]);
  y[0] = _mm256_add_ps(m[0], _mm256_add_ps(near, far));
  y[1] = _mm256_fmadd_ps(two, far_odd, near_odd);
  y[2] = _mm256_fmadd_ps(four, far, near);
  y[3] = _mm256_add_ps(_mm256_fmadd_ps(eight, far_odd, near_odd), m[5]);
}

// The unit at `row`, `column` (pixels) of one channel, to 36 vectors `stride` floats apart.
inline void input_unit(const Map& map, const float* x, float style, int64_t row, int64_t column, float* to,
                       int64_t stride) {
  alignas(32) V down[6][6];  // [row of B^T][column of the tile]
  alignas(32) V part[6][6];  // [row of the tile][column]
  const V scale = _mm256_set1_ps(style);
  const __m256i right = _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6), left = _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0);
  for (int64_t r = 0; r < 6; r++) {
    const int64_t y = row - 1 + r;
    if (y < 0 || y >= map.height) {
      for (auto& v : part[r]) v = _mm256_setzero_ps();
      continue;
    }
    const float* line = x + y * map.width + column;
    prefetch(line + map.height * map.width);
    V e[4];
    if (column + kUnit <= map.width) {
      split4(line, e);
    } else {
      alignas(32) float inside[kUnit] = {};
      std::copy_n(line, map.width - column, inside);
      split4(inside, e);
    }
    const float before = column > 0 ? line[-1] * style : 0.f;
    const float after = column + kUnit < map.width ? line[kUnit] * style : 0.f;
    for (int j = 0; j < 4; j++) part[r][1 + j] = e[j] = _mm256_mul_ps(e[j], scale);
    part[r][0] = _mm256_blend_ps(_mm256_permutevar8x32_ps(e[3], right), _mm256_set1_ps(before), 0x01);
    part[r][5] = _mm256_blend_ps(_mm256_permutevar8x32_ps(e[0], left), _mm256_set1_ps(after), 0x80);
  }
  for (int c = 0; c < 6; c++) {
    const V d[6] = {part[0][c], part[1][c], part[2][c], part[3][c], part[4][c], part[5][c]};
    transform_input(d, &down[0][c], 6);
  }
  for (int u = 0; u < 6; u++) {
    V v[6];
    transform_input(down[u], v, 1);
    for (int c = 0; c < 6; c++) _mm256_store_ps(to + (u * 6 + c) * stride, v[c]);
  }
}

// Four rows of m, `row_stride` apart, at `at`[0..N) = taps [in][4] x v [in][lanes], for N = 1..3 vectors. The twelve
// sums are spelt out: as an array, compilers keep them in memory.
template <int N>
inline void multiply(const float* taps, const float* v, int64_t in, int64_t lanes, float* m, int64_t row_stride,
                     const int64_t at[3]) {
  const V zero = _mm256_setzero_ps();
  V a0 = zero, a1 = zero, a2 = zero, b0 = zero, b1 = zero, b2 = zero;
  V c0 = zero, c1 = zero, c2 = zero, d0 = zero, d1 = zero, d2 = zero;
  for (int64_t i = 0; i < in; i++, v += lanes, taps += kRows) {
    const V x0 = _mm256_load_ps(v), x1 = N > 1 ? _mm256_load_ps(v + kLanes) : zero,
            x2 = N > 2 ? _mm256_load_ps(v + 2 * kLanes) : zero;
    V w = _mm256_broadcast_ss(taps);
    a0 = _mm256_fmadd_ps(w, x0, a0);
    if (N > 1) a1 = _mm256_fmadd_ps(w, x1, a1);
    if (N > 2) a2 = _mm256_fmadd_ps(w, x2, a2);
    w = _mm256_broadcast_ss(taps + 1);
    b0 = _mm256_fmadd_ps(w, x0, b0);
    if (N > 1) b1 = _mm256_fmadd_ps(w, x1, b1);
    if (N > 2) b2 = _mm256_fmadd_ps(w, x2, b2);
    w = _mm256_broadcast_ss(taps + 2);
    c0 = _mm256_fmadd_ps(w, x0, c0);
    if (N > 1) c1 = _mm256_fmadd_ps(w, x1, c1);
    if (N > 2) c2 = _mm256_fmadd_ps(w, x2, c2);
    w = _mm256_broadcast_ss(taps + 3);
    d0 = _mm256_fmadd_ps(w, x0, d0);
    if (N > 1) d1 = _mm256_fmadd_ps(w, x1, d1);
    if (N > 2) d2 = _mm256_fmadd_ps(w, x2, d2);
  }
  const V sums[kRows][3] = {{a0, a1, a2}, {b0, b1, b2}, {c0, c1, c2}, {d0, d1, d2}};
  for (int64_t r = 0; r < kRows; r++)
    for (int n = 0; n < N; n++) _mm256_store_ps(m + r * row_stride + at[n], sums[r][n]);
}

inline V activated(V acc, V scale, V offset, V slope) {
  const V y = _mm256_fmadd_ps(acc, scale, offset);
  return _mm256_max_ps(y, _mm256_mul_ps(y, slope));  // 0 <= slope <= 1
}

inline void untransform(const float* m, V y[4][4]) {
  V half[4][6];
  for (int v = 0; v < 6; v++) {
    V column[6], out[4];
    for (int u = 0; u < 6; u++) column[u] = _mm256_load_ps(m + (u * 6 + v) * kLanes);
    transform_output(column, out);
    for (int a = 0; a < 4; a++) half[a][v] = out[a];
  }
  for (int a = 0; a < 4; a++) transform_output(half[a], y[a]);
}

// `count` vectors of a row of the output, from `to` on, of which `valid` floats are inside the image.
inline void finish(const Map& map, float* to, const float* noise, const V* acc, int count, int64_t valid, V scale,
                   V bias) {
  const V slope = _mm256_set1_ps(map.slope), gain = _mm256_set1_ps(map.gain);
  if (valid < count * kLanes) {
    alignas(32) float offsets[2 * kUnit] = {}, line[2 * kUnit];
    if (noise) std::copy_n(noise, valid, offsets);
    for (int n = 0; n < count; n++) {
      const V offset = _mm256_fmadd_ps(_mm256_load_ps(offsets + n * kLanes), gain, bias);
      _mm256_store_ps(line + n * kLanes, activated(acc[n], scale, offset, slope));
    }
    std::copy_n(line, valid, to);
    return;
  }
  for (int n = 0; n < count; n++) {
    const V offset = noise ? _mm256_fmadd_ps(load(noise + n * kLanes), gain, bias) : bias;
    _mm256_storeu_ps(to + n * kLanes, activated(acc[n], scale, offset, slope));
  }
}

// m [36][8]: the products of one output channel and unit.
inline void output_unit(const Map& map, int64_t o, int64_t row, int64_t column, const float* m) {
  const int64_t rows = std::min(kTile, map.height - row), valid = map.width - column;
  const V scale = map.scale(o), bias = map.offset(o);
  float* y = map.y + o * map.height * map.width + row * map.width + column;
  const float* noise = map.noise ? map.noise + o * map.noise_stride + row * map.width + column : nullptr;
  V pixels[4][4], line[4];
  untransform(m, pixels);
  for (int64_t a = 0; a < rows; a++) {
    join4(pixels[a], line);
    finish(map, y + a * map.width, noise ? noise + a * map.width : nullptr, line, 4, valid, scale, bias);
  }
}

struct Plan {
  int64_t units, rows;  // units in a block; channels between two output transforms
};

inline int64_t plane_floats(const Filter& f, int64_t units) {
  return f.in * units * kLanes + 16;  // + 16: the 36 planes do not share sets of the cache
}

inline int64_t scratch_floats(const Filter& f, const Plan& p) {
  return kPoints * plane_floats(f, p.units) + p.rows * p.units * kPoints * kLanes;
}

// Units [first, last) of a map, at most a block; channels [begin, end) of the output (multiples of 4).
inline void run_block(const Map& map, const Filter& f, const Plan& plan, int64_t first, int64_t last, int64_t begin,
                      int64_t end, float* scratch) {
  const int64_t across = map.across(), units = last - first, lanes = units * kLanes;
  const int64_t plane = plane_floats(f, units), row_stride = units * kPoints * kLanes;
  constexpr int64_t at[3] = {0, kPoints * kLanes, 2 * kPoints * kLanes};
  float *v = scratch, *m = scratch + kPoints * plane;
  for (int64_t i = 0; i < f.in; i++)
    for (int64_t n = 0; n < units; n++)
      input_unit(map, map.x + i * map.height * map.width, map.style ? map.style[i] : 1.f, (first + n) / across * kTile,
                 (first + n) % across * kUnit, v + i * lanes + n * kLanes, plane);
  for (int64_t top = begin; top < end; top += plan.rows) {
    const int64_t rows = std::min(plan.rows, end - top);
    for (int64_t p = 0; p < kPoints; p++)
      for (int64_t r = 0; r < rows; r += kRows) {
        const float *taps = f.taps.get() + (p * f.out + top + r) * f.in, *from = v + p * plane;
        float* to = m + r * row_stride + p * kLanes;
        int64_t n = 0;
        for (; n + 3 <= units; n += 3)
          multiply<3>(taps, from + n * kLanes, f.in, lanes, to + n * at[1], row_stride, at);
        if (units - n == 2) multiply<2>(taps, from + n * kLanes, f.in, lanes, to + n * at[1], row_stride, at);
        if (units - n == 1) multiply<1>(taps, from + n * kLanes, f.in, lanes, to + n * at[1], row_stride, at);
      }
    for (int64_t r = 0; r < rows; r++)
      for (int64_t n = 0; n < units; n++)
        output_unit(map, top + r, (first + n) / across * kTile, (first + n) % across * kUnit,
                    m + r * row_stride + n * at[1]);
  }
}

// A layer over maps of one size, in parts that may run in any order on any thread.
struct ConvJob {
  const Filter& filter;
  std::vector<Map> maps;
  Plan plan{};
  int64_t units = 0, blocks = 0, splits = 1, chunk = 0;

  // Sizes are the measured ones: a block of 8 units does not wrap at 1024 px; a small map, of which there are few
  // blocks, is shared out by channels too, at the cost of one more input transform each.
  ConvJob(const Filter& f, std::vector<Map> m) : filter(f), maps(std::move(m)), chunk(f.out) {
    if (maps.empty() || (units = maps[0].units()) == 0) return;
    constexpr int64_t enough = 8, smallest = 64;
    plan = Plan{maps[0].across() >= 32 ? 8 : 6, 32};
    blocks = (units + plan.units - 1) / plan.units;
    const auto all = blocks * static_cast<int64_t>(maps.size());
    if (all < enough) {
      const int64_t wanted = (enough + all - 1) / all;
      chunk = std::max((filter.out / wanted + smallest - 1) / smallest * smallest, smallest);
      splits = (filter.out + chunk - 1) / chunk;
    }
  }

  int64_t parts() const { return static_cast<int64_t>(maps.size()) * blocks * splits; }

  void operator()(int64_t i) const {
    const int64_t split = i % splits, block = i / splits % blocks, k = i / splits / blocks;
    run_block(maps[static_cast<size_t>(k)], filter, plan, block * plan.units,
              std::min(units, (block + 1) * plan.units), split * chunk, std::min(filter.out, (split + 1) * chunk),
              scratch(scratch_floats(filter, plan)));
  }
};

}  // namespace styleclip

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

#include "products.h"
#include "styled_rgb.h"
#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace styleclip {

constexpr int64_t kTile = 4, kPoints = 36, kUnit = kTile * kLanes;

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
  float* y;  // null where only its colours are wanted, by the plain convolution
  const float* style;   // [in] or null
  const float* demod;   // [out] or null
  const float* noise;   // of the output, [H, W] for every channel or [out, H, W], or null
  const float* bias;    // [out] or null
  float value, gain, slope;
  int64_t height, width;  // of the input
  int64_t noise_stride;   // floats from a channel of the noise to the next, 0: the same one
  Colours colours;        // of y, by the plain convolution
  bool passes = false;    // y goes past the cache to memory: it is so large that nobody would find it there

  V scale(int64_t o) const { return _mm256_set1_ps(value * (demod ? demod[o] : 1.f)); }
  V offset(int64_t o) const { return _mm256_set1_ps(bias ? gain * bias[o] : 0.f); }
  int64_t across() const { return (width + kUnit - 1) / kUnit; }
  int64_t units() const { return (height + kTile - 1) / kTile * across(); }

  // Decides `passes` for y of `floats` floats, in rows of `line`.
  void choose_way(int64_t floats, int64_t line) {
    constexpr int64_t large = 8 << 20;
    const bool aligned = line % kLanes == 0 && reinterpret_cast<uintptr_t>(y) % (kLanes * sizeof(float)) == 0;
    passes = floats >= large && colours.rgb == nullptr && aligned;
  }
};

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

inline V activated(V acc, V scale, V offset, V slope) {
  const V y = _mm256_fmadd_ps(acc, scale, offset);
  return _mm256_max_ps(y, _mm256_mul_ps(y, slope));  // 0 <= slope <= 1
}

inline void untransform(const float* m, int64_t plane, V y[4][4]) {
  V half[4][6];
  for (int v = 0; v < 6; v++) {
    V column[6], out[4];
    for (int u = 0; u < 6; u++) column[u] = _mm256_load_ps(m + (u * 6 + v) * plane);
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
    const V y = activated(acc[n], scale, offset, slope);
    if (map.passes)
      _mm256_stream_ps(to + n * kLanes, y);
    else
      _mm256_storeu_ps(to + n * kLanes, y);
  }
}

// m: the products of one output channel and unit, 36 vectors `plane` floats apart. The pixels go to `y`, rows `stride`
// floats apart.
inline void output_unit(const Map& map, int64_t o, int64_t row, int64_t column, const float* m, int64_t plane, float* y,
                        int64_t stride) {
  const int64_t rows = std::min(kTile, map.height - row), valid = map.width - column;
  const V scale = map.scale(o), bias = map.offset(o);
  const float* noise = map.noise ? map.noise + o * map.noise_stride + row * map.width + column : nullptr;
  V pixels[4][4], line[4];
  untransform(m, plane, pixels);
  for (int64_t a = 0; a < rows; a++) {
    join4(pixels[a], line);
    finish(map, y + a * stride, noise ? noise + a * map.width : nullptr, line, 4, valid, scale, bias);
  }
}

struct Plan {
  int64_t units, rows;  // units in a block; channels between two output transforms, at most
};

// A block of units of one map: their transformed input [36][panel][in][3][8], what it makes [36][rows][units][8], and
// pixels of a few channels.
class ConvBlock {
 public:
  static constexpr int64_t kPixels = kTile * kUnit, kAtOnce = 32;  // channels whose pixels are still near for colours

  static int64_t scratch_floats(const Filter& f, const Plan& p) {
    return kPoints * (input_floats(f.in, p.units) + product_floats(p.rows, p.units)) + kAtOnce * p.units * kPixels;
  }

  // Units [first, last) of the map.
  ConvBlock(const Map& map, const Filter& filter, const Plan& plan, int64_t first, int64_t last, float* scratch)
      : map_(map), filter_(filter), most_(plan.rows), first_(first), units_(last - first), lanes_(units_ * kLanes),
        input_plane_(input_floats(filter.in, units_)), product_plane_(product_floats(plan.rows, units_)),
        inputs_(scratch), products_(inputs_ + kPoints * input_plane_), pixels_(products_ + kPoints * product_plane_) {}

  // Channels [begin, end) of the output (multiples of 4).
  void run(int64_t begin, int64_t end) {
    input();
    for (int64_t top = begin; top < end; top += most_) {
      const int64_t bottom = std::min(end, top + most_);
      multiply_rows(top, bottom - top);
      for (int64_t o = top; o < bottom; o += kAtOnce) output(top, o, std::min(bottom, o + kAtOnce));
    }
  }

 private:
  // + 16: the planes do not share sets of the cache
  static int64_t input_floats(int64_t in, int64_t units) { return (units / kPanel + 1) * in * kPanelFloats + 16; }
  static int64_t product_floats(int64_t rows, int64_t units) { return rows * units * kLanes + 16; }

  int64_t row(int64_t n) const { return (first_ + n) / map_.across() * kTile; }
  int64_t column(int64_t n) const { return (first_ + n) % map_.across() * kUnit; }

  void input() {
    float* to = inputs_;
    for (int64_t n = 0, size = 0; n < units_; n += size, to += filter_.in * kPanelFloats) {
      size = panel_size(units_ - n);
      for (int64_t i = 0; i < filter_.in; i++)
        for (int64_t k = 0; k < size; k++)
          input_unit(map_, map_.x + i * map_.height * map_.width, map_.style ? map_.style[i] : 1.f, row(n + k),
                     column(n + k), to + i * kPanelFloats + k * kLanes, input_plane_);
    }
  }

  // One point after the other: its inputs stay in the second level of the cache for all rows.
  void multiply_rows(int64_t top, int64_t rows) {
    constexpr int64_t at[kPanel] = {0, kLanes, 2 * kLanes}, together = 32;
    for (int64_t p = 0; p < kPoints; p++)
      for (int64_t r = 0; r < rows; r += together) {
        const float *taps = filter_.taps.get() + (p * filter_.out + top + r) * filter_.in,
                    *from = inputs_ + p * input_plane_;
        float* to = products_ + p * product_plane_ + r * lanes_;
        for (int64_t n = 0, size = 0; n < units_; n += size, from += filter_.in * kPanelFloats) {
          size = panel_size(units_ - n);
          multiply_panel(taps, from, filter_.in, std::min(together, rows - r), size, to + n * kLanes, lanes_, at);
        }
      }
  }

  // Channels [first, last), whose products begin with those of `top`.
  void output(int64_t top, int64_t first, int64_t last) {
    const int64_t plane = map_.height * map_.width;
    const int64_t channel = map_.y ? plane : units_ * kPixels, line = map_.y ? map_.width : kUnit;
    const auto place = [&](int64_t n) {
      return map_.y ? map_.y + first * plane + row(n) * map_.width + column(n) : pixels_ + n * kPixels;
    };
    for (int64_t o = first; o < last; o++)
      for (int64_t n = 0; n < units_; n++)
        output_unit(map_, o, row(n), column(n), products_ + (o - top) * lanes_ + n * kLanes, product_plane_,
                    place(n) + (o - first) * channel, line);
    for (int64_t n = 0; n < units_ && map_.colours.rgb; n++)
      for (int64_t a = 0; a < std::min(kTile, map_.height - row(n)); a++) {
        if (column(n) + kUnit <= map_.width)
          add_colours<4>(map_.colours, place(n) + a * line, channel, first, last - first, row(n) + a, column(n));
        else
          add_colours<2>(map_.colours, place(n) + a * line, channel, first, last - first, row(n) + a, column(n));
      }
  }

  const Map& map_;
  const Filter& filter_;
  int64_t most_, first_, units_, lanes_, input_plane_, product_plane_;
  float *inputs_, *products_, *pixels_;
};

// A layer over maps of one size, in parts that may run in any order on any thread.
struct ConvJob {
  const Filter& filter;
  std::vector<Map> maps;
  Plan plan{};
  int64_t units = 0, blocks = 0, splits = 1, chunk = 0;

  // Sizes are the measured ones. Few channels: a block stays in the second level of the cache, and 8 units do not wrap
  // at 1024 px. Many: their weights come from memory, once for more units. A small map, of which there are few blocks,
  // is shared out by channels too, at the cost of one more input transform each; with colours it is not.
  ConvJob(const Filter& f, std::vector<Map> m) : filter(f), maps(std::move(m)), chunk(f.out) {
    if (maps.empty() || (units = maps[0].units()) == 0) return;
    for (Map& map : maps) map.choose_way(filter.out * map.height * map.width, map.width);
    constexpr int64_t enough = 8, smallest = 64;  // parts; channels
    plan = filter.in > smallest ? Plan{12, filter.out} : Plan{maps[0].across() >= 32 ? 8 : 6, ConvBlock::kAtOnce};
    blocks = (units + plan.units - 1) / plan.units;
    const auto all = blocks * static_cast<int64_t>(maps.size());
    if (all < enough && maps[0].colours.rgb == nullptr) {
      const int64_t wanted = (enough + all - 1) / all;
      chunk = std::max((filter.out / wanted + smallest - 1) / smallest * smallest, smallest);
      splits = (filter.out + chunk - 1) / chunk;
    }
  }

  int64_t parts() const { return static_cast<int64_t>(maps.size()) * blocks * splits; }

  void operator()(int64_t i) const {
    const int64_t split = i % splits, block = i / splits % blocks, k = i / splits / blocks;
    ConvBlock(maps[static_cast<size_t>(k)], filter, plan, block * plan.units, std::min(units, (block + 1) * plan.units),
              scratch(ConvBlock::scratch_floats(filter, plan)))
        .run(split * chunk, std::min(filter.out, (split + 1) * chunk));
    _mm_sfence();  // what went past the cache is there before the others hear that this part is done
  }
};

}  // namespace styleclip

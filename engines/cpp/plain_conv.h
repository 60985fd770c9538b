// A 3x3 convolution with a border of 1 and a stride of 1 or 2, as networks that read images have it, by Winograd's
// tiles (Lavin and Gray 2016):
//
//   y = prelu(scale * conv(x, w) + bias)        with a slope for each channel
//
// Stride 1 is F(4x4, 3x3): 36 products a tile of 4x4 pixels and a pair of channels in place of 144. Under stride 2 an
// output reads two odd lines of the image and one even line between them, in either direction: odd ones take F(4, 2),
// even ones a product each. So a tile costs (5 + 4)^2 = 81 products, those of the up-sampling layer turned round.
//
// Maps are small and channels many here, so a vector holds the next 8 tiles of the map in reading order, whatever rows
// they lie in. Lines are first copied into a plane with the border around them: tiles read without a look at the edge.
#pragma once

#include "styled_up.h"

namespace styleclip {

struct PlainMap {  // one image of the input and of the output, planar
  const float* x;
  float* y;
  const float *scale, *bias, *slope;  // [out]
  int64_t height, width;  // of the input
};

struct PlainFilter {
  int64_t in = 0, out = 0, stride = 1;
  Buffer taps;  // [36][out / 4][in][4]

  // w [out, in, 3, 3] of any type that converts to float.
  template <typename T>
  void make(const T* w, int64_t inputs, int64_t outputs, int64_t step) {
    in = inputs, out = outputs, stride = step;
    if (stride == 1) {
      Filter filter;
      filter.make(w, 1.f, in, out);
      taps = std::move(filter.taps);
    } else {  // a convolution reads its taps in the opposite order to a transposed one
      taps = transformed_sets(in, out, [&](int64_t o, int64_t i, int64_t k) {
        return static_cast<float>(w[(o * in + i) * 9 + 8 - k]);
      });
    }
  }
};

// Four vectors of columns of 8 tiles: lane t of vector j is p[at[t] + j].
inline void columns(const float* p, const int64_t at[8], V out[4]) {
  transpose4(lo_hi(p + at[0], p + at[4]), lo_hi(p + at[1], p + at[5]), lo_hi(p + at[2], p + at[6]),
             lo_hi(p + at[3], p + at[7]), out);
}

// A plane holds the lines of a block of tiles, from the one above the first tile on, each with a zero before it and
// zeros after it. `input` makes the products' vectors of 8 tiles, whose corners are at `at`.
struct StrideOne {
  static constexpr int64_t kProduct = kPoints, kStep = kTile, kLines = kTile + 2;  // kStep: from a tile to the next
  static Products products(int set) { return {set, 1, set / 6, set % 6}; }
  static int64_t line_floats(int64_t across) { return across * kTile + kLanes; }
  static int64_t side(int64_t of_input) { return of_input; }

  static void copy_line(const float* x, int64_t width, float* line, int64_t) { std::copy_n(x, width, line + 1); }

  static void input(const float* plane, int64_t line, const int64_t at[8], V* to) {
    V part[6][8], down[6][6];
    for (int r = 0; r < 6; r++) {
      columns(plane + r * line, at, part[r]);
      columns(plane + r * line + 4, at, part[r] + 4);
    }
    for (int c = 0; c < 6; c++) {
      const V d[6] = {part[0][c], part[1][c], part[2][c], part[3][c], part[4][c], part[5][c]};
      transform_input(d, &down[0][c], 6);
    }
    for (int u = 0; u < 6; u++) transform_input(down[u], to + u * 6, 1);
  }

  static void output(const float* m, V y[4][4]) { untransform(m, kLanes, y); }
};

struct StrideTwo {  // a line is its odd places, from -1 on, and behind them its even places
  static constexpr int64_t kProduct = kProducts, kStep = 2 * kTile, kLines = 2 * kTile + 1;
  static Products products(int set) { return products_of(set); }
  static int64_t line_floats(int64_t across) { return 2 * (across * kTile + kLanes); }
  static int64_t side(int64_t of_input) { return (of_input + 1) / 2; }

  static void copy_line(const float* x, int64_t width, float* line, int64_t floats) {
    for (int64_t j = 0; 2 * j + 1 < width; j++) line[j + 1] = x[2 * j + 1];
    for (int64_t j = 0; 2 * j < width; j++) line[floats / 2 + j] = x[2 * j];
  }

  static void input(const float* plane, int64_t line, const int64_t at[8], V* to) {
    V part[9][12];  // [line][odd places, three that nobody reads, even places]
    for (int r = 0; r < 9; r++) {
      columns(plane + r * line, at, part[r]);
      columns(plane + r * line + 4, at, part[r] + 4);
      columns(plane + r * line + line / 2, at, part[r] + 8);
    }
    V odd[5][12];  // [row point][column]
    for (int c = 0; c < 12; c++) {
      if (c > 4 && c < 8) continue;
      const V d[5] = {part[0][c], part[2][c], part[4][c], part[6][c], part[8][c]};
      transform_five(d, &odd[0][c], 12);
    }
    for (int u = 0; u < 5; u++) {
      transform_five(odd[u], to + u * 5, 1);
      for (int c = 0; c < 4; c++) to[25 + u * 4 + c] = odd[u][8 + c];
    }
    for (int a = 0; a < 4; a++) {
      transform_five(part[2 * a + 1], to + 45 + a, 4);
      for (int c = 0; c < 4; c++) to[65 + a * 4 + c] = part[2 * a + 1][8 + c];
    }
  }

  static void output(const float* m, V y[4][4]) {
    V half[4][5];  // by point of the columns
    for (int v = 0; v < 5; v++) {
      V points[5], out[4];
      for (int u = 0; u < 5; u++) points[u] = _mm256_load_ps(m + (u * 5 + v) * kLanes);
      four_of_five(points, out);
      for (int a = 0; a < 4; a++) half[a][v] = _mm256_add_ps(out[a], _mm256_load_ps(m + (45 + v * 4 + a) * kLanes));
    }
    for (int a = 0; a < 4; a++) four_of_five(half[a], y[a]);
    for (int c = 0; c < 4; c++) {
      V points[5], out[4];
      for (int u = 0; u < 5; u++) points[u] = _mm256_load_ps(m + (25 + u * 4 + c) * kLanes);
      four_of_five(points, out);
      for (int a = 0; a < 4; a++)
        y[a][c] = _mm256_add_ps(y[a][c], _mm256_add_ps(out[a], _mm256_load_ps(m + (65 + a * 4 + c) * kLanes)));
    }
  }
};

// Units [first, first + units) of one image, a unit being 8 tiles.
template <typename Scheme>
class PlainBlock {
 public:
  PlainBlock(const PlainMap& map, const PlainFilter& filter, int64_t first, int64_t count)
      : map_(map), filter_(filter), first_(first), units_(count), height_(Scheme::side(map.height)),
        width_(Scheme::side(map.width)), across_(tiles(width_)), all_(across_ * tiles(height_)),
        line_(Scheme::line_floats(across_)), top_(first * kLanes / across_) {
    const int64_t last = std::min(all_, (first + units_) * kLanes) - 1;
    lines_ = (last / across_ - top_) * Scheme::kStep + Scheme::kLines;
    for (int64_t t = 0; t < units_ * kLanes; t++) {
      const int64_t tile = std::min(first * kLanes + t, last);
      corners_.push_back((tile / across_ - top_) * Scheme::kStep * line_ + tile % across_ * kTile);
    }
    places_.resize(static_cast<size_t>(units_ * Scheme::kProduct));
    int64_t start = 0;
    for (int set = 0; set < kSets; set++, start += 16) {  // the sets do not begin at the same place of the cache
      const Products of = Scheme::products(set);
      const int64_t vectors = units_ * of.count;
      for (int64_t at = 0; at < vectors;) {
        const int64_t wide = panel_size(vectors - at);
        panels_.push_back({set, at, wide, start});
        for (int64_t k = 0; k < wide; k++, at++)
          places_[static_cast<size_t>(at / of.count * Scheme::kProduct + of.first + at % of.count)] =
              {start + k * kLanes, wide * kLanes};
        start += wide * kLanes * filter_.in;
      }
    }
    inputs_ = start;
  }

  static int64_t units(const PlainMap& map) {
    return (tiles(Scheme::side(map.width)) * tiles(Scheme::side(map.height)) + kLanes - 1) / kLanes;
  }

  int64_t input_floats() const { return inputs_; }
  int64_t plane_floats() const { return lines_ * line_; }
  int64_t row_floats() const { return units_ * Scheme::kProduct * kLanes; }  // the products of an output channel

  // Channels [begin, end) of the input, to v; plane: scratch memory.
  void read(int64_t begin, int64_t end, float* v, float* plane) const {
    std::fill_n(plane, plane_floats(), 0.f);
    const int64_t above = top_ * Scheme::kStep - 1;
    for (int64_t i = begin; i < end; i++) {
      const float* x = map_.x + i * map_.height * map_.width;
      for (int64_t r = std::max<int64_t>(0, -above); r < std::min(lines_, map_.height - above); r++)
        Scheme::copy_line(x + (above + r) * map_.width, map_.width, plane + r * line_, line_);
      for (int64_t n = 0; n < units_; n++) {
        V products[Scheme::kProduct];
        Scheme::input(plane, line_, corners_.data() + n * kLanes, products);
        const Place* place = places_.data() + n * Scheme::kProduct;
        for (int64_t p = 0; p < Scheme::kProduct; p++)
          _mm256_store_ps(v + place[p].first + i * place[p].step, products[p]);
      }
    }
  }

  // Channels [begin, end) of the output, at most as many as m has rows for; multiples of 4.
  void write(int64_t begin, int64_t end, const float* v, float* m) const {
    const int64_t stride = row_floats();
    for (const Panel& of : panels_) {
      const Products products = Scheme::products(of.set);
      int64_t at[kPanel];
      for (int64_t k = 0; k < of.wide; k++) {
        const int64_t n = of.first + k;
        at[k] = (n / products.count * Scheme::kProduct + products.first + n % products.count) * kLanes;
      }
      for (int64_t o = begin; o < end; o += kRows) {
        const float* taps = filter_.taps.get() + (of.set * filter_.out + o) * filter_.in;
        kMultiply[of.wide](taps, v + of.start, filter_.in, m + (o - begin) * stride, stride, at, false);
      }
    }
    for (int64_t o = begin; o < end; o++)
      for (int64_t n = 0; n < units_; n++) write_unit(o, n, m + (o - begin) * stride + n * Scheme::kProduct * kLanes);
  }

 private:
  struct Place {  // of a product's vector: of the first channel, and from a channel to the next, floats
    int64_t first, step;
  };
  struct Panel {  // vectors that are multiplied at once lie together, [in][wide][8]
    int set;
    int64_t first, wide, start;
  };

  using Multiply = void (*)(const float*, const float*, int64_t, float*, int64_t, const int64_t*, bool);
  static constexpr Multiply kMultiply[4] = {nullptr, multiply<1, kLanes>, multiply<2, 2 * kLanes>, multiply<3>};

  static int64_t tiles(int64_t side) { return (side + kTile - 1) / kTile; }

  void write_unit(int64_t o, int64_t unit, const float* m) const {
    const V scale = _mm256_set1_ps(map_.scale[o]), bias = _mm256_set1_ps(map_.bias[o]);
    const V slope = _mm256_set1_ps(map_.slope[o]);
    V pixels[4][4];
    Scheme::output(m, pixels);
    const int64_t tile = (first_ + unit) * kLanes, row = tile / across_ * kTile, column = tile % across_ * kTile;
    const bool in_line = column + kUnit <= width_;
    float* y = map_.y + o * height_ * width_;
    for (int64_t a = 0; a < kTile; a++) {
      V line[4];
      join4(pixels[a], line);
      for (V& part : line) {
        const V sum = _mm256_fmadd_ps(part, scale, bias);
        part = _mm256_blendv_ps(sum, _mm256_mul_ps(sum, slope), sum);  // by the sign
      }
      if (!in_line)
        write_tiles(y, tile, a, line);
      else if (row + a < height_)
        for (int64_t k = 0; k < 4; k++) _mm256_storeu_ps(y + (row + a) * width_ + column + k * kLanes, line[k]);
    }
  }

  // Line a of tiles that lie in several rows, or at the border.
  void write_tiles(float* y, int64_t tile, int64_t a, const V line[4]) const {
    alignas(32) float pixels[kUnit];
    for (int k = 0; k < 4; k++) _mm256_store_ps(pixels + k * kLanes, line[k]);
    for (int64_t t = 0; t < std::min(kLanes, all_ - tile); t++) {
      const int64_t row = (tile + t) / across_ * kTile + a, column = (tile + t) % across_ * kTile;
      if (row >= height_) return;
      float* to = y + row * width_ + column;
      if (column + kTile <= width_)
        _mm_storeu_ps(to, _mm_load_ps(pixels + t * kTile));
      else
        std::copy_n(pixels + t * kTile, width_ - column, to);
    }
  }

  const PlainMap& map_;
  const PlainFilter& filter_;
  int64_t first_, units_, height_, width_, across_, all_, line_, top_, lines_ = 0, inputs_ = 0;
  std::vector<int64_t> corners_;  // of each tile, in the plane
  std::vector<Place> places_;     // [unit][product]
  std::vector<Panel> panels_;
};

// Maps of one size, each cut into blocks that are computed from input to output by one thread.
template <typename Scheme>
struct PlainJob {
  static constexpr int64_t kBlock = 6, kGroup = 32;  // units; channels between two output transforms
  const PlainFilter& filter;
  const std::vector<PlainMap>& maps;

  int64_t units() const { return maps.empty() ? 0 : PlainBlock<Scheme>::units(maps[0]); }
  int64_t blocks() const { return (units() + kBlock - 1) / kBlock; }
  int64_t parts() const { return static_cast<int64_t>(maps.size()) * blocks(); }

  void operator()(int64_t i) const {
    const int64_t first = i % blocks() * kBlock;
    const PlainBlock<Scheme> block(maps[static_cast<size_t>(i / blocks())], filter, first,
                                   std::min(kBlock, units() - first));
    const int64_t outputs = std::max(kGroup * block.row_floats(), block.plane_floats());
    float *v = scratch(block.input_floats() + outputs), *m = v + block.input_floats();
    block.read(0, filter.in, v, m);
    for (int64_t o = 0; o < filter.out; o += kGroup) block.write(o, std::min(filter.out, o + kGroup), v, m);
  }
};

// A small map as one block that all threads share: first its input by channels, then its output by channels.
template <typename Scheme>
struct SharedInput {
  static constexpr int64_t kGroup = 32;
  const PlainBlock<Scheme>& block;
  int64_t channels;
  float* v;

  int64_t parts() const { return (channels + kGroup - 1) / kGroup; }
  void operator()(int64_t i) const {
    block.read(i * kGroup, std::min(channels, (i + 1) * kGroup), v, scratch(block.plane_floats()));
  }
};

template <typename Scheme>
struct SharedOutput {
  static constexpr int64_t kGroup = 64;
  const PlainBlock<Scheme>& block;
  int64_t channels;
  const float* v;

  int64_t parts() const { return (channels + kGroup - 1) / kGroup; }
  void operator()(int64_t i) const {
    block.write(i * kGroup, std::min(channels, (i + 1) * kGroup), v, scratch(kGroup * block.row_floats()));
  }
};

// parallel: a function of a job that runs all its parts.
template <typename Scheme, typename Parallel>
void run_plain(const PlainFilter& filter, const std::vector<PlainMap>& maps, const Parallel& parallel) {
  constexpr int64_t enough = 8;  // blocks
  const PlainJob<Scheme> job{filter, maps};
  if (job.parts() >= enough) return parallel(job);
  thread_local Buffer kept;
  thread_local int64_t size = 0;
  for (const PlainMap& map : maps) {
    const PlainBlock<Scheme> block(map, filter, 0, job.units());
    if (block.input_floats() > size) kept = nullptr, kept = buffer(block.input_floats()), size = block.input_floats();
    parallel(SharedInput<Scheme>{block, filter.in, kept.get()});
    parallel(SharedOutput<Scheme>{block, filter.out, kept.get()});
  }
}

}  // namespace styleclip

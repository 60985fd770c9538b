// The up-sampling layer of StyleGAN2 in the same way: a 3x3 convolution transposed by 2, a 4x4 FIR, and the epilogue.
//
// The transposed convolution t, 2 H + 1 by 2 W + 1, has even places that read two neighbours, t[2i] = w0 x[i] + w2
// x[i-1], and odd ones that read one, t[2i+1] = w1 x[i], in either direction. Four neighbours of the even kind are
// F(4, 2) of Winograd: five products in place of eight, from the points 0, 1, -1, 2 and infinity. So a tile of 4x4
// pixels costs (5 + 4)^2 = 81 products a pair of channels, where the transposed convolution has 144 and the four phases
// with the FIR folded in have 576. The FIR then runs over rows of t that have just been made: a band of tiles goes down
// the image, and the last three filtered rows wait for the next tiles.
//
// What lies beyond the image is zero, yet t has a row and a column more than twice the image. Where a tile or a unit
// ends exactly at the border, the next one is computed for their sake: all it reads is one line, of which the transform
// leaves one point, so that it costs a ninth of another.
#pragma once

#include "products.h"
#include "styled_conv.h"

namespace styleclip {

// Products of a tile: even rows and columns [5][5], even rows and odd columns [5][4], odd and even [4][5], odd and odd
// [4][4]. Odd places share their weights: there are 36 different sets, each with 1, 4 or 16 of the products.
struct Products {
  int first, count, row_point, column_point;  // a point of 0 to 4, or -1 for odd places
};

constexpr int kSets = kPoints, kProducts = 81;

inline Products products_of(int set) {
  if (set < 25) return {set, 1, set / 5, set % 5};
  if (set < 30) return {25 + (set - 25) * 4, 4, set - 25, -1};
  if (set < 35) return {45 + (set - 30) * 4, 4, -1, set - 30};
  return {65, 16, -1, -1};
}

// The weights of the 36 sets, see `transformed`; at(o, i, k) is tap k of the transposed convolution.
template <typename At>
Buffer transformed_sets(int64_t in, int64_t out, const At& at) {
  // The five products of g = (w2, w0), and the one of w1: what each makes of the three taps.
  static constexpr float G[6][3] = {{0, 0, 1.f / 2}, {-1.f / 2, 0, -1.f / 2}, {1.f / 6, 0, -1.f / 6},
                                    {2.f / 6, 0, 1.f / 6}, {1, 0, 0}, {0, 1, 0}};
  const auto place = [](int u, int v) { return u < 5 ? (v < 5 ? u * 5 + v : 25 + u) : 30 + v; };  // of `products_of`
  return transformed(G, in, out, place, at);
}

struct UpFilter {
  int64_t in = 0, out = 0;
  Buffer taps;  // [36][out / 4][in][4]
  float down[4] = {}, across[4] = {};  // the FIR is their outer product

  // w [in, out, 3, 3] of any type that converts to float, times `gain`; fir [4, 4]. False where it is no outer product.
  template <typename T>
  bool make(const T* w, float gain, const float fir[16], int64_t inputs, int64_t outputs) {
    in = inputs, out = outputs;
    if (!separate(fir)) return false;
    taps = transformed_sets(in, out, [&](int64_t o, int64_t i, int64_t k) {
      return gain * static_cast<float>(w[(i * out + o) * 9 + k]);
    });
    return true;
  }

 private:
  bool separate(const float fir[16]) {
    int largest = 0;
    for (int k = 1; k < 16; k++)
      if (std::abs(fir[k]) > std::abs(fir[largest])) largest = k;
    for (int k = 0; k < 4; k++) {
      across[k] = fir[largest / 4 * 4 + k];
      down[k] = fir[largest] == 0 ? 0 : fir[k * 4 + largest % 4] / fir[largest];
    }
    for (int k = 0; k < 16; k++)
      if (std::abs(fir[k] - down[k / 4] * across[k % 4]) > 1e-6f * std::abs(fir[largest])) return false;
    return true;
  }
};

// B^T d of F(4, 2) for five vectors.
inline void transform_five(const V d[5], V* to, int64_t stride) {
  const V two = _mm256_set1_ps(2), three = _mm256_set1_ps(3), p = _mm256_sub_ps(d[3], d[1]);
  to[0] = _mm256_fmadd_ps(two, _mm256_sub_ps(d[0], d[2]), p);
  to[stride] = _mm256_sub_ps(p, _mm256_add_ps(d[1], d[2]));
  to[2 * stride] = _mm256_fmadd_ps(three, _mm256_sub_ps(d[1], d[2]), p);
  to[3 * stride] = p;
  to[4 * stride] = _mm256_fnmadd_ps(two, p, _mm256_sub_ps(d[4], d[2]));
}

// A^T m of F(4, 2): [[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 0], [0, 1, -1, 8, 1]].
inline void four_of_five(const V m[5], V y[4]) {
  const V two = _mm256_set1_ps(2), four = _mm256_set1_ps(4), eight = _mm256_set1_ps(8);
  const V sum = _mm256_add_ps(m[1], m[2]), difference = _mm256_sub_ps(m[1], m[2]);
  y[0] = _mm256_add_ps(_mm256_add_ps(m[0], m[3]), sum);
  y[1] = _mm256_fmadd_ps(two, m[3], difference);
  y[2] = _mm256_fmadd_ps(four, m[3], sum);
  y[3] = _mm256_add_ps(_mm256_fmadd_ps(eight, m[3], difference), m[4]);
}

// The work of one thread on a band of tiles and a range of channels. Scratch: [products][in] vectors of a row of tiles,
// the products of a few channels, the rows of one channel, and for each channel the three rows that wait.
class UpBand {
 public:
  // Channels between two output transforms: their products should stay in the second level of the cache.
  static int64_t group(const Map& map) {
    constexpr int64_t floats = 64 << 10;
    return std::max<int64_t>(floats / (across(map) * kProducts * kLanes) / kRows * kRows, 2 * kRows);
  }
  static int64_t across(const Map& map) { return map.width / kUnit + 1; }
  static int64_t down(const Map& map) { return map.height / kTile + 1; }
  static int64_t scratch_floats(const Map& map, int64_t in, int64_t channels) {
    const int64_t units = across(map), row = row_floats(map);
    return input_floats(in, units) + group(map) * units * kProducts * kLanes + (8 + 11) * row + channels * 3 * row;
  }

  UpBand(const Map& map, const UpFilter& filter, int64_t begin, int64_t end, float* scratch)
      : map_(map), filter_(filter), begin_(begin), end_(end), units_(across(map)), row_(row_floats(map)),
        group_(group(map)) {
    inputs_ = scratch;
    products_ = inputs_ + input_floats(filter.in, units_);
    lines_ = products_ + group_ * units_ * kProducts * kLanes;
    filtered_ = lines_ + 8 * row_;
    waiting_ = filtered_ + 11 * row_;
    places_.assign(static_cast<size_t>(units_ * kProducts), 0);  // at first, all where nobody reads
    int64_t start = panel_floats(filter_.in);
    for (int set = 0; set < kSets; set++) {
      const Products of = products_of(set);
      const bool all = map.width % kUnit != 0 || of.column_point == 0;
      vectors_[set] = (all ? units_ : units_ - 1) * of.count;
      start_[set] = start;
      for (int64_t at = 0; at < vectors_[set]; start += panel_floats(filter_.in))
        for (const int64_t first = at, end = at + panel_size(vectors_[set] - at); at < end; at++)
          places_[static_cast<size_t>(at / of.count * kProducts + of.first + at % of.count)] =
              start + (at - first) * kLanes;
    }
  }

  // Rows [first, last) of tiles.
  void run(int64_t first, int64_t last) {
    std::fill_n(products_, group_ * units_ * kProducts * kLanes, 0.f);
    std::fill_n(lines_, 8 * row_, 0.f);
    std::fill_n(waiting_, (end_ - begin_) * 3 * row_, 0.f);
    for (int64_t tile = std::max<int64_t>(0, first - 1); tile < last; tile++) {
      const bool border = tile * kTile == map_.height;  // only its first row of t is not zero
      if (border) std::fill_n(products_, group_ * units_ * kProducts * kLanes, 0.f);
      for (int64_t left = 0; left < units_; left += kPanel)  // in the order in which the panels lie
        for (int64_t i = 0; i < filter_.in; i++)
          for (int64_t n = left; n < std::min(units_, left + kPanel); n++) input_unit(i, tile * kTile, n);
      for (int64_t top = begin_; top < end_; top += group_) {
        const int64_t rows = std::min(group_, end_ - top);
        for (int set = 0; set < kSets; set++)
          if (!border || products_of(set).row_point == 0) multiply_set(set, top, rows);
        for (int64_t o = top; o < top + rows; o++) output_channel(o, tile, tile >= first);
      }
    }
  }

 private:
  static constexpr int64_t kMargin = kLanes;  // zeros before a row of t, and after it

  static int64_t input_floats(int64_t in, int64_t units) {
    int64_t panels = 1;
    for (int set = 0; set < kSets; set++) panels += units * products_of(set).count / kPanel + 2;
    return panels * panel_floats(in);
  }
  // + 16: the panels, into which an input goes one after the other, do not share sets of the cache
  static int64_t panel_floats(int64_t in) { return kPanelFloats * in + 16; }

  static int64_t row_floats(const Map& map) { return across(map) * 2 * kUnit + 2 * kMargin; }

  void input_unit(int64_t i, int64_t row, int64_t n) {
    const int64_t column = n * kUnit;
    const float* x = map_.x + i * map_.height * map_.width;
    const float style = map_.style ? map_.style[i] : 1.f;
    const __m256i right = _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6);
    const V scale = _mm256_set1_ps(style), zero = _mm256_setzero_ps();
    const int64_t* places = places_.data() + n * kProducts;
    float* to = inputs_ + i * kPanelFloats;
    V raw[5][4], points[5][5];  // [row of the tile][column], [row][point of the columns]
    for (int64_t r = 0; r < 5; r++) {
      const int64_t y = row - 1 + r;
      V d[5] = {zero, zero, zero, zero, zero};
      if (y >= 0 && y < map_.height) {
        const float* line = x + y * map_.width + column;
        prefetch(line + map_.height * map_.width);
        if (column + kUnit <= map_.width) {
          split4(line, d + 1);
        } else if (column < map_.width) {
          alignas(32) float inside[kUnit] = {};
          std::copy_n(line, map_.width - column, inside);
          split4(inside, d + 1);
        }
        for (int j = 1; j < 5; j++) d[j] = _mm256_mul_ps(d[j], scale);
        const V before = _mm256_set1_ps(column > 0 ? line[-1] * style : 0.f);
        d[0] = _mm256_blend_ps(_mm256_permutevar8x32_ps(d[4], right), before, 0x01);
      }
      for (int j = 0; j < 4; j++) raw[r][j] = d[1 + j];
      transform_five(d, points[r], 1);
    }
    for (int v = 0; v < 5; v++) {
      const V d[5] = {points[0][v], points[1][v], points[2][v], points[3][v], points[4][v]};
      V even[5];
      transform_five(d, even, 1);
      for (int u = 0; u < 5; u++) _mm256_store_ps(to + places[u * 5 + v], even[u]);
      for (int a = 0; a < 4; a++) _mm256_store_ps(to + places[45 + v * 4 + a], d[1 + a]);
    }
    for (int c = 0; c < 4; c++) {
      const V d[5] = {raw[0][c], raw[1][c], raw[2][c], raw[3][c], raw[4][c]};
      V even[5];
      transform_five(d, even, 1);
      for (int u = 0; u < 5; u++) _mm256_store_ps(to + places[25 + u * 4 + c], even[u]);
      for (int a = 0; a < 4; a++) _mm256_store_ps(to + places[65 + a * 4 + c], d[1 + a]);
    }
  }

  void multiply_set(int set, int64_t top, int64_t rows) {
    const Products of = products_of(set);
    const int64_t row_stride = units_ * kProducts * kLanes;
    const float* v = inputs_ + start_[set];
    for (int64_t n = 0, size = 0; n < vectors_[set]; n += size, v += panel_floats(filter_.in)) {
      size = panel_size(vectors_[set] - n);
      int64_t at[kPanel];
      for (int64_t k = 0; k < kPanel; k++) at[k] = ((n + k) / of.count * kProducts + (n + k) % of.count) * kLanes;
      multiply_panel(filter_.taps.get() + (set * filter_.out + top) * filter_.in, v, filter_.in, rows, size,
                     products_ + of.first * kLanes, row_stride, at);
    }
  }

  // The 8x8 places of t of every tile of a unit, m [81][8], into `lines_`.
  void unfold(const float* m, int64_t n) {
    V t[8][8];
    V half[4][5];  // even rows, by point of the columns
    for (int v = 0; v < 5; v++) {
      V column[5], out[4];
      for (int u = 0; u < 5; u++) column[u] = _mm256_load_ps(m + (u * 5 + v) * kLanes);
      four_of_five(column, out);
      for (int a = 0; a < 4; a++) half[a][v] = out[a];
    }
    for (int a = 0; a < 4; a++) {
      V out[4], odd[5];
      four_of_five(half[a], out);
      for (int c = 0; c < 4; c++) t[2 * a][2 * c] = out[c];
      for (int v = 0; v < 5; v++) odd[v] = _mm256_load_ps(m + (45 + v * 4 + a) * kLanes);
      four_of_five(odd, out);
      for (int c = 0; c < 4; c++) {
        t[2 * a + 1][2 * c] = out[c];
        t[2 * a + 1][2 * c + 1] = _mm256_load_ps(m + (65 + a * 4 + c) * kLanes);
      }
    }
    for (int c = 0; c < 4; c++) {
      V column[5], out[4];
      for (int u = 0; u < 5; u++) column[u] = _mm256_load_ps(m + (25 + u * 4 + c) * kLanes);
      four_of_five(column, out);
      for (int a = 0; a < 4; a++) t[2 * a][2 * c + 1] = out[a];
    }
    for (int j = 0; j < 8; j++) {
      V line[8];
      join8(t[j], line);
      float* to = lines_ + j * row_ + kMargin + n * 2 * kUnit;
      for (int k = 0; k < 8; k++) _mm256_store_ps(to + k * kLanes, line[k]);
    }
  }

  void output_channel(int64_t o, int64_t tile, bool write) {
    const int64_t width = 2 * map_.width, height = 2 * map_.height, padded = (width + kLanes - 1) / kLanes * kLanes;
    const float* m = products_ + (o - begin_) % group_ * units_ * kProducts * kLanes;
    float* wait = waiting_ + (o - begin_) * 3 * row_;
    for (int64_t n = 0; n < units_; n++) unfold(m + n * kProducts * kLanes, n);
    std::copy_n(wait, 3 * row_, filtered_);
    V taps[4];
    for (int k = 0; k < 4; k++) taps[k] = _mm256_set1_ps(filter_.across[k]);
    for (int j = 0; j < 8; j++) {
      const float* t = lines_ + j * row_ + kMargin;
      float* to = filtered_ + (3 + j) * row_;
      for (int64_t x = 0; x < padded; x += kLanes) {
        V sum = _mm256_mul_ps(taps[0], load(t + x - 1));
        sum = _mm256_fmadd_ps(taps[1], load(t + x), sum);
        sum = _mm256_fmadd_ps(taps[2], load(t + x + 1), sum);
        _mm256_store_ps(to + x, _mm256_fmadd_ps(taps[3], load(t + x + 2), sum));
      }
    }
    std::copy_n(filtered_ + 8 * row_, 3 * row_, wait);
    if (!write) return;
    for (int64_t k = 0; k < 8; k++) {
      const int64_t y = tile * 2 * kTile - 2 + k;
      if (y >= 0 && y < height) output_row(o, y, filtered_ + k * row_, width, height);
    }
  }

  // Row y of channel o from four filtered rows.
  void output_row(int64_t o, int64_t y, const float* rows, int64_t width, int64_t height) {
    const V scale = map_.scale(o), bias = map_.offset(o);
    const float* noise = map_.noise ? map_.noise + o * map_.noise_stride + y * width : nullptr;
    float* to = map_.y + (o * height + y) * width;
    V taps[4];
    for (int k = 0; k < 4; k++) taps[k] = _mm256_set1_ps(filter_.down[k]);
    for (int64_t x = 0; x < width; x += kLanes) {
      V sum = _mm256_mul_ps(taps[0], _mm256_load_ps(rows + x));
      for (int k = 1; k < 4; k++) sum = _mm256_fmadd_ps(taps[k], _mm256_load_ps(rows + k * row_ + x), sum);
      finish(map_, to + x, noise ? noise + x : nullptr, &sum, 1, width - x, scale, bias);
    }
  }

  const Map& map_;
  const UpFilter& filter_;
  int64_t begin_, end_, units_, row_, group_;
  int64_t start_[kSets] = {}, vectors_[kSets] = {};
  std::vector<int64_t> places_;  // [unit][product]: of its vector of the first input channel, floats after `inputs_`
  float *inputs_, *products_, *lines_, *filtered_, *waiting_;
};

// An up-sampling layer over maps of one size, in parts that may run in any order on any thread.
struct UpJob {
  const UpFilter& filter;
  std::vector<Map> maps;
  int64_t bands = 1, splits = 1, band = 0, chunk = 0;

  // A band starts with a row of tiles of the one above it, so it should be high; a share of the channels makes its own
  // input transform, so it should be large.
  UpJob(const UpFilter& f, std::vector<Map> m) : filter(f), maps(std::move(m)), chunk(f.out) {
    constexpr int64_t enough = 8, highest = 32, smallest = 64;
    if (maps.empty() || maps[0].units() == 0) {
      bands = 0;
      return;
    }
    for (Map& map : maps) map.choose_way(4 * filter.out * map.height * map.width, 2 * map.width);
    const int64_t rows = UpBand::down(maps[0]);
    bands = std::max<int64_t>(1, rows / highest), band = (rows + bands - 1) / bands;
    bands = (rows + band - 1) / band;
    const auto all = bands * static_cast<int64_t>(maps.size());
    const int64_t wanted = std::max<int64_t>(1, (enough + all - 1) / all);
    chunk = std::max((filter.out / wanted + kRows - 1) / kRows * kRows, smallest);
    splits = (filter.out + chunk - 1) / chunk;
  }

  int64_t parts() const { return static_cast<int64_t>(maps.size()) * bands * splits; }

  void operator()(int64_t i) const {
    const Map& map = maps[static_cast<size_t>(i / splits / bands)];
    const int64_t split = i % splits, at = i / splits % bands;
    const int64_t begin = split * chunk, end = std::min(filter.out, begin + chunk);
    UpBand(map, filter, begin, end, scratch(UpBand::scratch_floats(map, filter.in, end - begin)))
        .run(at * band, std::min(UpBand::down(map), (at + 1) * band));
    _mm_sfence();
  }
};

}  // namespace styleclip

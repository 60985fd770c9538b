// The matrix products of both convolutions: weights of four output channels times vectors of the input.
//
// Vectors that are multiplied at once lie together, a panel: [in][3][8]. Four times three sums fill the registers, and
// `kDeep` channels of a panel stay in the first level of the cache for all rows.
#pragma once

#include "vectors.h"

#include <algorithm>

namespace styleclip {

constexpr int64_t kRows = 4, kPanel = 3, kPanelFloats = kPanel * kLanes, kDeep = 256;

// Of `left` vectors, how many the next panel takes. One alone would waste two thirds of the sums.
inline int64_t panel_size(int64_t left) { return left == 4 ? 2 : std::min(left, kPanel); }

// Four rows of m, `row_stride` apart, at `at`[0..N) = taps [in][4] x v [in][Step], for N = 1..3 vectors; with `more`,
// added to what is there. The twelve sums are spelt out: as an array, compilers keep them in memory.
template <int N, int64_t Step = kPanelFloats>
inline void multiply(const float* taps, const float* v, int64_t in, float* m, int64_t row_stride,
                     const int64_t at[kPanel], bool more = false) {
  const V zero = _mm256_setzero_ps();
  V a0 = zero, a1 = zero, a2 = zero, b0 = zero, b1 = zero, b2 = zero;
  V c0 = zero, c1 = zero, c2 = zero, d0 = zero, d1 = zero, d2 = zero;
#pragma GCC unroll 4
  for (int64_t i = 0; i < in; i++, v += Step, taps += kRows) {
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
  const V sums[kRows][kPanel] = {{a0, a1, a2}, {b0, b1, b2}, {c0, c1, c2}, {d0, d1, d2}};
  for (int64_t r = 0; r < kRows; r++)
    for (int n = 0; n < N; n++) {
      float* to = m + r * row_stride + at[n];
      _mm256_store_ps(to, more ? _mm256_add_ps(_mm256_load_ps(to), sums[r][n]) : sums[r][n]);
    }
}

// `rows` rows of m (a multiple of 4) = taps [rows / 4][in][4] x a panel of `size` vectors.
inline void multiply_panel(const float* taps, const float* v, int64_t in, int64_t rows, int64_t size, float* m,
                           int64_t row_stride, const int64_t at[kPanel]) {
  for (int64_t i = 0; i < in; i += kDeep, v += kDeep * kPanelFloats) {
    const int64_t deep = std::min(kDeep, in - i);
    for (int64_t r = 0; r < rows; r += kRows) {
      const float* w = taps + r * in + i * kRows;
      if (size == 3)
        multiply<3>(w, v, deep, m + r * row_stride, row_stride, at, i > 0);
      else if (size == 2)
        multiply<2>(w, v, deep, m + r * row_stride, row_stride, at, i > 0);
      else
        multiply<1>(w, v, deep, m + r * row_stride, row_stride, at, i > 0);
    }
  }
}

}  // namespace styleclip

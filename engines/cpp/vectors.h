// What the kernels share: vectors of eight floats, and memory for them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace styleclip {

using V = __m256;

constexpr int64_t kLanes = 8;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

inline Buffer buffer(int64_t floats) {
  void* p = std::aligned_alloc(64, (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(p));
}

// Memory of this thread, kept for its next part.
inline float* scratch(int64_t floats) {
  thread_local Buffer kept;
  thread_local int64_t size = 0;
  if (floats > size) {
    kept = nullptr, size = 0;
    kept = buffer(floats), size = floats;
  }
  return kept.get();
}

inline V load(const float* p) { return _mm256_loadu_ps(p); }

// Lanes of a and b in turn: 16 floats in order, to `to`.
inline void store_pairs(float* to, V a, V b) {
  const V low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
  _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
  _mm256_storeu_ps(to + kLanes, _mm256_permute2f128_ps(low, high, 0x31));
}

// A unit of the next channel, which the processor does not foresee: channels lie far apart. Past the end it does
// nothing.
inline void prefetch(const float* line) {
  _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(line + 16), _MM_HINT_T0);
}

inline V lo_hi(const float* low, const float* high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}

// The columns of four by four floats, in the low and in the high half: out[j] is a[j], b[j], c[j], d[j].
inline void transpose4(V a, V b, V c, V d, V out[4]) {
  const V ab0 = _mm256_unpacklo_ps(a, b), ab1 = _mm256_unpackhi_ps(a, b);
  const V cd0 = _mm256_unpacklo_ps(c, d), cd1 = _mm256_unpackhi_ps(c, d);
  out[0] = _mm256_shuffle_ps(ab0, cd0, 0x44);
  out[1] = _mm256_shuffle_ps(ab0, cd0, 0xEE);
  out[2] = _mm256_shuffle_ps(ab1, cd1, 0x44);
  out[3] = _mm256_shuffle_ps(ab1, cd1, 0xEE);
}

// Four vectors whose lane t is p[4 t + j], j = 0..3.
inline void split4(const float* p, V out[4]) {
  transpose4(lo_hi(p, p + 16), lo_hi(p + 4, p + 20), lo_hi(p + 8, p + 24), lo_hi(p + 12, p + 28), out);
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

}  // namespace styleclip

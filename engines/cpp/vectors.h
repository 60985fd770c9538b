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

}  // namespace styleclip

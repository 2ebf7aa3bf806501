// float16 as CUDA offers it, rounded to nearest even, with subnormals.
#pragma once
#include "cuda_runtime.h"

struct __half {
  uint16_t word;
};

inline uint16_t __half_as_ushort(__half v) { return v.word; }
inline __half __ushort_as_half(uint16_t word) { return {word}; }

inline float __half2float(__half v) {
  const uint32_t sign = static_cast<uint32_t>(v.word & 0x8000) << 16;
  const uint32_t exponent = v.word >> 10 & 0x1f, fraction = v.word & 0x3ff;
  if (exponent == 0x1f) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) {  // zero or subnormal: the fraction counts in units of 2^-24
    const float size = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    return sign ? -size : size;
  }
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

inline __half __float2half_rn(float v) {
  uint32_t bits = __float_as_uint(v);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {0x7fff};
  if (bits >= 0x47800000) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (bits < 0x38800000) {  // subnormal: let the float adder round at the right place
    const uint32_t half = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000;
    return {static_cast<uint16_t>(sign | half)};
  }
  bits += 0xc8000fff + (bits >> 13 & 1);
  return {static_cast<uint16_t>(sign | bits >> 13)};
}

// One vector type per instruction set, and loads and stores that widen half types to float.
//
// Every object is compiled once per instruction set with MEDSEG_ISA as its namespace. Nothing here
// may call an inline library function: it would become a weak symbol, compiled for AVX-512 in one
// object, and the linker may hand that copy to the baseline.
#pragma once
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define MEDSEG_INLINE inline __attribute__((always_inline))

namespace medseg {
namespace MEDSEG_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

template <class A>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float vec __attribute__((vector_size(kBytes)));
  typedef int32_t ivec __attribute__((vector_size(kBytes)));
  using integer = int32_t;
  static constexpr int count = kBytes / 4;
};
template <>
struct Lanes<double> {
  typedef double vec __attribute__((vector_size(kBytes)));
  typedef int64_t ivec __attribute__((vector_size(kBytes)));
  using integer = int64_t;
  static constexpr int count = kBytes / 8;
};
template <class A>
using Vec = typename Lanes<A>::vec;
template <class A>
using IVec = typename Lanes<A>::ivec;

typedef uint32_t U32 __attribute__((vector_size(kBytes)));
typedef uint16_t U16 __attribute__((vector_size(kBytes / 2)));

template <class A>
MEDSEG_INLINE Vec<A> fill(A value) {
  return Vec<A>{} + value;
}
template <class A>
MEDSEG_INLINE IVec<A> ifill(int64_t value) {
  return IVec<A>{} + static_cast<typename Lanes<A>::integer>(value);
}
template <class A>
MEDSEG_INLINE IVec<A> lane_numbers() {
  IVec<A> v;
  for (int i = 0; i < Lanes<A>::count; ++i) v[i] = i;
  return v;
}
template <class A>
constexpr A lowest() {
  return -static_cast<A>(__builtin_inf());
}

// max(a, b) drops a NaN in a; whoever needs it finds it in the sum of the same line.
#if defined(__AVX512F__)
MEDSEG_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
}
MEDSEG_INLINE Vec<double> vmax(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm512_max_pd((__m512d)a, (__m512d)b);
}
#elif defined(__AVX2__)
MEDSEG_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
}
MEDSEG_INLINE Vec<double> vmax(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b);
}
#else
template <class V>
MEDSEG_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}
#endif

template <class V>
MEDSEG_INLINE V read(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
MEDSEG_INLINE void write(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// Half types as they lie in memory, and as floats.
MEDSEG_INLINE Vec<float> widen(BFloat16, U16 v) {
  return (Vec<float>)(__builtin_convertvector(v, U32) << 16);
}
MEDSEG_INLINE Vec<float> widen(Float16, U16 v) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps((__m256i)v);
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps((__m128i)v);
#else
  // Shift exponent and mantissa into place, then scale by 2^112: denormals come out right.
  const U32 half = __builtin_convertvector(v, U32);
  const U32 shifted = (half & 0x7fffu) << 13;
  const U32 finite = (U32)((Vec<float>)shifted * 0x1p112f);
  const U32 magnitude = (half & 0x7c00u) == 0x7c00u ? shifted | 0x7f800000u : finite;
  return (Vec<float>)(magnitude | (half & 0x8000u) << 16);
#endif
}
MEDSEG_INLINE U16 narrow(BFloat16, Vec<float> v) {
  const U32 bits = (U32)v;
  const U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U32 nan = (bits >> 16) | 0x40u;  // keep a NaN a NaN: its low bits may be all it has
  return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded, U16);
}
MEDSEG_INLINE U16 narrow(Float16, Vec<float> v) {
#if defined(__AVX512F__)
  return (U16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (U16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  const U32 sign = (U32)v >> 16 & 0x8000u, bits = (U32)v & 0x7fffffffu;
  const U32 normal = (bits + 0xfffu + (bits >> 13 & 1u) - (112u << 23)) >> 13;
  const U32 denormal = (U32)((Vec<float>)bits + 0.5f) - 0x3f000000u;  // the adder rounds it
  U32 half = bits < 0x38800000u ? denormal : normal;
  half = bits >= 0x477ff000u ? U32{} + 0x7c00u : half;  // rounds to infinity
  half = bits > 0x7f800000u ? U32{} + 0x7e00u : half;
  return __builtin_convertvector(sign | half, U16);
#endif
}

// Lanes<Acc<T>>::count elements, widened.
template <class T>
MEDSEG_INLINE Vec<Acc<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2)
    return widen(T{}, read<U16>(p));
  else
    return read<Vec<T>>(p);
}
template <class T>
MEDSEG_INLINE void store(T* p, Vec<Acc<T>> v) {
  if constexpr (sizeof(T) == 2)
    write(p, narrow(T{}, v));
  else
    write(p, v);
}

// The first `count` elements, fewer than all; the other lanes are zero, and are not stored.
#if defined(__AVX512F__)
template <class T>
MEDSEG_INLINE Vec<float> load_part(const T* p, int64_t count) {
  const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(T) == 2)
    return widen(T{}, (U16)_mm256_maskz_loadu_epi16(lanes, p));
  else
    return (Vec<float>)_mm512_maskz_loadu_ps(lanes, p);
}
template <class T>
MEDSEG_INLINE void store_part(T* p, Vec<float> v, int64_t count) {
  const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(T) == 2)
    _mm256_mask_storeu_epi16(p, lanes, (__m256i)narrow(T{}, v));
  else
    _mm512_mask_storeu_ps(p, lanes, (__m512)v);
}
#else
template <class T>
MEDSEG_INLINE Vec<Acc<T>> load_part(const T* p, int64_t count) {
  T line[Lanes<Acc<T>>::count] = {};
  for (int64_t i = 0; i < count; ++i) line[i] = p[i];
  return load(line);
}
template <class T>
MEDSEG_INLINE void store_part(T* p, Vec<Acc<T>> v, int64_t count) {
  T line[Lanes<Acc<T>>::count];
  store(line, v);
  for (int64_t i = 0; i < count; ++i) p[i] = line[i];
}
#endif

template <class A>
MEDSEG_INLINE A sum_lanes(Vec<A> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_reduce_add_ps((__m512)v);
  if constexpr (sizeof(A) == 8) return _mm512_reduce_add_pd((__m512d)v);
#endif
  A part[Lanes<A>::count];
  write(part, v);
  for (int half = Lanes<A>::count / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}
template <class A>
MEDSEG_INLINE A max_lanes(Vec<A> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_reduce_max_ps((__m512)v);
  if constexpr (sizeof(A) == 8) return _mm512_reduce_max_pd((__m512d)v);
#endif
  A part[Lanes<A>::count];
  write(part, v);
  for (int half = Lanes<A>::count / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] = part[i] > part[i + half] ? part[i] : part[i + half];
  return part[0];
}

// exp by 2^k * polynomial, at most 2 ulp off; NaN stays NaN, large |x| saturates.
MEDSEG_INLINE Vec<float> vexp(Vec<float> x) {
  x = x > 88.3f ? fill(88.3f) : x;
  x = x < -87.3f ? fill(-87.3f) : x;
  const Vec<float> shifted = x * 1.44269504088896341f + 12582912.f;  // rounds to an integer
  const Vec<float> k = shifted - 12582912.f;
  const Vec<float> r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  Vec<float> y = fill(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.f;
  const U32 exponent = ((U32)shifted - 0x4b400000u + 127u) << 23;
  return y * (Vec<float>)exponent;
}
MEDSEG_INLINE Vec<double> vexp(Vec<double> x) {
  for (int i = 0; i < Lanes<double>::count; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}
// vexp saturates short of infinity, so the end where the gate is exactly 0 is put in by hand:
// infinity * 0 has to be NaN, as it is in the reference.
template <class A>
MEDSEG_INLINE Vec<A> sigmoid(Vec<A> z) {
  const Vec<A> g = A(1) / (A(1) + vexp(-z));
  return z == lowest<A>() ? Vec<A>{} : g;
}
template <class A>
MEDSEG_INLINE A sigmoid_scalar(A z) {
  if constexpr (sizeof(A) == 4) return 1.f / (1.f + __builtin_expf(-z));
  if constexpr (sizeof(A) == 8) return 1. / (1. + __builtin_exp(-z));
}

MEDSEG_INLINE int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}
MEDSEG_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
MEDSEG_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

#define MEDSEG_STRING(name) #name
#define MEDSEG_NAME(name) MEDSEG_STRING(name)
// float64 proves the formulas (gradcheck): it is compiled once, and the baseline serves all.
constexpr bool kHasFloat64 = MEDSEG_NAME(MEDSEG_ISA)[0] == 'b';

// The body of `entry`: function<T> for the element type T that the dtype code names.
#define MEDSEG_DISPATCH(entry, function, dtype, ...)                \
  switch (dtype) {                                                  \
    case kFloat32:                                                  \
      return function<float>(__VA_ARGS__);                          \
    case kBFloat16:                                                 \
      return function<BFloat16>(__VA_ARGS__);                       \
    case kFloat16:                                                  \
      return function<Float16>(__VA_ARGS__);                        \
    default:                                                        \
      if constexpr (kHasFloat64)                                    \
        return function<double>(__VA_ARGS__);                       \
      else                                                          \
        return medseg::baseline::kernels.entry(dtype, __VA_ARGS__); \
  }

}  // namespace MEDSEG_ISA
}  // namespace medseg

// Split attention on NCHW: a thread owns channels, with all their splits. What was pooled last is
// combined first, while it is still in the thread's own cache.
#pragma once
#include "split_gate.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

constexpr int64_t kLineBlock = 4096;  // elements summed in floats before they go to double

// Sum over `count` elements of term(i), a vector from element i, or term(i, rest) with the rest.
template <class A, class Term>
MEDSEG_INLINE double sum_terms(int64_t count, Term term) {
  constexpr int64_t L = Lanes<A>::count;
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kLineBlock) {
    const int64_t end = smaller(count, begin + kLineBlock);
    Vec<A> s0{}, s1{}, s2{}, s3{};
    int64_t i = begin;
    for (; i + 4 * L <= end; i += 4 * L) {
      s0 += term(i, L);
      s1 += term(i + L, L);
      s2 += term(i + 2 * L, L);
      s3 += term(i + 3 * L, L);
    }
    for (; i + L <= end; i += L) s0 += term(i, L);
    if (i < end) {
      A last[Lanes<A>::count];
      write(last, term(i, end - i));
      for (int64_t j = 0; j < end - i; ++j) total += last[j];
    }
    total += sum_lanes<A>((s0 + s1) + (s2 + s3));
  }
  return total;
}

template <class T>
MEDSEG_INLINE Vec<Acc<T>> load_rest(const T* p, int64_t rest) {
  return rest == Lanes<Acc<T>>::count ? load(p) : load_part(p, rest);
}
template <class T>
MEDSEG_INLINE void store_rest(T* p, Vec<Acc<T>> v, int64_t rest) {
  rest == Lanes<Acc<T>>::count ? store(p, v) : store_part(p, v, rest);
}

template <class V, class A>
MEDSEG_INLINE V activate(V v, A scale, A shift) {
  return vmax(V{}, v * scale + shift);  // this way round the maximum keeps a NaN
}

// Calls body(i, rest) for every vector of a line of `count` elements, the last one short.
template <class A, class Body>
MEDSEG_INLINE void for_vectors(int64_t count, Body body) {
  constexpr int64_t L = Lanes<A>::count;
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + L <= count; i += L) body(i, L);
  if (i < count) body(i, count - i);
}

// sums[c] = sum over splits and pixels of x, of relu(x * scale + shift) with kFold.
template <bool kFold, class T>
void pool_planes(const T* image, const SplitShape& s, const Acc<T>* scale, const Acc<T>* shift,
                 Range channels, double* sums) {
  using A = Acc<T>;
  for (int64_t c = channels.begin; c < channels.end; ++c) {
    sums[c] = 0;
    for (int64_t k = c; k < s.radix * s.c; k += s.c) {
      const T* p = image + k * s.stride_c;
      const A mul = kFold ? scale[k] : A(1), add = kFold ? shift[k] : A(0);
      sums[c] += sum_terms<A>(s.hw, [&](int64_t i, int64_t rest) {
        const Vec<A> v = load_rest(p + i, rest);
        return kFold ? activate(v, mul, add) : v;
      });
    }
  }
}

// out[c] = sum over splits of gate * x
template <int R, bool kFold, class T>
void combine_planes(const T* image, const SplitShape& s, const Acc<T>* scale, const Acc<T>* shift,
                    const Acc<T>* gates, Range channels, T* out) {
  using A = Acc<T>;
  for (int64_t c = channels.end; c-- > channels.begin;) {
    A gate[R], mul[R], add[R];
    const T* x[R];
    for (int r = 0; r < R; ++r) {
      const int64_t k = r * s.c + c;
      x[r] = image + k * s.stride_c;
      gate[r] = gates[r * line_of<A>(s) + c];
      mul[r] = kFold ? scale[k] : A(1);
      add[r] = kFold ? shift[k] : A(0);
    }
    for_vectors<A>(s.hw, [&](int64_t i, int64_t rest) {
      Vec<A> sum{};
      for (int r = 0; r < R; ++r) {
        const Vec<A> v = load_rest(x[r] + i, rest);
        sum += gate[r] * (kFold ? activate(v, mul[r], add[r]) : v);
      }
      store_rest(out + c * s.hw + i, sum, rest);
    });
  }
}

// sums[k] = sum over pixels of grad_out * x, for every channel of every split.
template <class T>
void dot_planes(const T* image, const T* dy, const SplitShape& s, Range channels, double* sums) {
  using A = Acc<T>;
  for (int64_t c = channels.begin; c < channels.end; ++c) {
    for (int64_t k = c; k < s.radix * s.c; k += s.c) {
      const T *p = image + k * s.stride_c, *q = dy + c * s.hw;
      sums[k] = sum_terms<A>(s.hw, [&](int64_t i, int64_t rest) {
        return load_rest(p + i, rest) * load_rest(q + i, rest);
      });
    }
  }
}

// grad_x[k] = grad_out * gate + term, for every channel of every split.
template <int R, class T>
void spread_planes(const T* dy, const SplitShape& s, const Acc<T>* gates, const Acc<T>* terms,
                   Range channels, T* grad_x) {
  using A = Acc<T>;
  for (int64_t c = channels.end; c-- > channels.begin;) {
    A gate[R];
    for (int r = 0; r < R; ++r) gate[r] = gates[r * line_of<A>(s) + c];
    for_vectors<A>(s.hw, [&](int64_t i, int64_t rest) {
      const Vec<A> v = load_rest(dy + c * s.hw + i, rest);
      for (int r = 0; r < R; ++r)
        store_rest(grad_x + (r * s.c + c) * s.hw + i, v * gate[r] + terms[c], rest);
    });
  }
}

}  // namespace
}  // namespace MEDSEG_ISA
}  // namespace medseg

// ECA on NCHW: a thread walks its planes, pools plane c+p and scales plane c while that is still in
// cache, so that memory sees one read and one write.
#pragma once
#include "team.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// Floats are added in blocks of this many elements, the blocks in double: exact enough for any map.
constexpr int64_t kBlock = 4096;

// sum of p[i], or of p[i] * q[i] with kDot.
template <bool kDot, class T>
double sum_line(const T* p, const T* q, int64_t count) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const auto term = [&](int64_t i) { return kDot ? load(p + i) * load(q + i) : load(p + i); };
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = smaller(count, begin + kBlock);
    Vec<A> s0{}, s1{}, s2{}, s3{};
    int64_t i = begin;
    for (; i + 4 * L <= end; i += 4 * L) {
      s0 += term(i);
      s1 += term(i + L);
      s2 += term(i + 2 * L);
      s3 += term(i + 3 * L);
    }
    for (; i + L <= end; i += L) s0 += term(i);
    if (i < end) {
      const Vec<A> tail = load_part(p + i, end - i);
      s1 += kDot ? tail * load_part(q + i, end - i) : tail;
    }
    total += sum_lanes<A>((s0 + s1) + (s2 + s3));
  }
  return total;
}

// out = p * factor + term, the shape of both directions' last pass.
template <bool kTerm, class T>
void scale_line(const T* p, Acc<T> factor, Acc<T> term, T* out, int64_t count) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const auto value = [&](Vec<A> v) { return kTerm ? v * factor + term : v * factor; };
  int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L) {
    const Vec<A> a = load(p + i), b = load(p + i + L), c = load(p + i + 2 * L),
                 d = load(p + i + 3 * L);
    store(out + i, value(a));
    store(out + i + L, value(b));
    store(out + i + 2 * L, value(c));
    store(out + i + 3 * L, value(d));
  }
  for (; i + L <= count; i += L) store(out + i, value(load(p + i)));
  if (i < count) store_part(out + i, value(load_part(p + i, count - i)), count - i);
}

// Two threads may pool the same plane at the edge of their ranges; both write the same bits.
template <class A>
MEDSEG_INLINE void publish(A* p, A value) {
  __atomic_store(p, &value, __ATOMIC_RELAXED);
}

// sum_j weight[j] * values[c + j - p] inside 0..channels-1; `reversed` runs the taps backward.
template <class A>
MEDSEG_INLINE A along_channels(const A* values, const A* weight, int taps, bool reversed, int64_t c,
                               int64_t channels) {
  A z = 0;
  for (int j = 0; j < taps; ++j) {
    const int64_t at = c + (reversed ? taps / 2 - j : j - taps / 2);
    if (at >= 0 && at < channels) z += weight[j] * values[at];
  }
  return z;
}

// Walks the planes of one thread: `ahead(i)` once for every plane within p of its range, in order,
// then `here(i)` as soon as its neighbourhood is known.
template <class Ahead, class Here>
MEDSEG_INLINE void walk_planes(const EcaShape& s, Ahead ahead, Here here) {
  const int64_t total = s.n * s.c, p = s.taps / 2;
  const int64_t thread = thread_number(), threads = thread_count();
  const int64_t begin = total * thread / threads, end = total * (thread + 1) / threads;
  int64_t next = begin;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i / s.c * s.c, last = first + s.c;
    if (i == begin || i == first) next = larger(first, i - p);
    for (; next < smaller(i + p + 1, last); ++next) ahead(next);
    here(i);
  }
}

template <class T>
MEDSEG_INLINE const T* plane_of(const T* x, const EcaShape& s, int64_t i) {
  return x + i / s.c * s.stride_n + i % s.c * s.stride_c;
}

template <class T>
void forward_planes(const EcaForward& a) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  const T* x = static_cast<const T*>(a.x);
  const A* weight = static_cast<const A*>(a.weight);
  const A bias = a.bias ? *static_cast<const A*>(a.bias) : A(0);
  A* pooled = static_cast<A*>(a.pooled);
  A* gate = static_cast<A*>(a.gate);
#pragma omp parallel num_threads(s.threads)
  walk_planes(
      s,
      [&](int64_t i) {
        publish(pooled + i, A(sum_line<false>(plane_of(x, s, i), plane_of(x, s, i), s.hw) / s.hw));
      },
      [&](int64_t i) {
        const A* values = pooled + i / s.c * s.c;
        gate[i] =
            sigmoid_scalar(bias + along_channels(values, weight, s.taps, false, i % s.c, s.c));
        scale_line<false>(plane_of(x, s, i), gate[i], A(0), static_cast<T*>(a.out) + i * s.hw,
                          s.hw);
      });
}

// dz[i] = (sum over the plane of grad_out * x) * gate * (1 - gate)
template <class T>
void backward_planes(const EcaBackward& a, Acc<T>* dz) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  const T* x = static_cast<const T*>(a.x);
  const T* dy = static_cast<const T*>(a.grad_out);
  const A* weight = static_cast<const A*>(a.weight);
  const A* gate = static_cast<const A*>(a.gate);
#pragma omp parallel num_threads(s.threads)
  walk_planes(
      s,
      [&](int64_t i) {
        const A g = gate[i];
        publish(dz + i, A(sum_line<true>(dy + i * s.hw, plane_of(x, s, i), s.hw)) * g * (1 - g));
      },
      [&](int64_t i) {
        if (!a.grad_x) return;
        const A* values = dz + i / s.c * s.c;
        const A ds = along_channels(values, weight, s.taps, true, i % s.c, s.c) / A(s.hw);
        scale_line<true>(dy + i * s.hw, gate[i], ds, static_cast<T*>(a.grad_x) + i * s.hw, s.hw);
      });
}

}  // namespace
}  // namespace MEDSEG_ISA
}  // namespace medseg

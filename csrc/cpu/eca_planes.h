// ECA on NCHW: a thread walks its planes, pools plane c+p and scales plane c while that is still in
// cache, so that memory sees one read and one write.
#pragma once
#include "eca_pool.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// What is summed: p, p * q, or p + q, which is also stored in r, and so rounded; kAddApart only
// rounds it, for a plane that is another thread's to store.
enum Term { kOne, kDot, kAdd, kAddApart };

// The terms of elements i to i + count; q and r may be null where they are not wanted.
template <Term kTerm, class T>
MEDSEG_INLINE Vec<Acc<T>> term(const T* p, const T* q, T* r, int64_t i, int64_t count) {
  const Vec<Acc<T>> v = load_some(p + i, count);
  if constexpr (kTerm == kDot) return v * load_some(q + i, count);
  if constexpr (kTerm == kOne) return v;
  T apart[Lanes<Acc<T>>::count];
  T* to = kTerm == kAdd ? r + i : apart;
  store_some(to, v + load_some(q + i, count), count);
  return load_some(to, count);
}

template <Term kTerm, class T>
double sum_line(const T* p, const T* q, T* r, int64_t count) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const auto at = [&](int64_t i, int64_t lanes) { return term<kTerm>(p, q, r, i, lanes); };
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = smaller(count, begin + kBlock);
    Vec<A> s0{}, s1{}, s2{}, s3{};
    int64_t i = begin;
    for (; i + 4 * L <= end; i += 4 * L) {
      s0 += at(i, L);
      s1 += at(i + L, L);
      s2 += at(i + 2 * L, L);
      s3 += at(i + 3 * L, L);
    }
    for (; i + L <= end; i += L) s0 += at(i, L);
    if (i < end) s1 += at(i, end - i);
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

// Two threads may pool the same plane at the edge of their ranges; both write the same bits, and
// one may read them while the other writes.
template <class A>
MEDSEG_INLINE void publish(A* p, A value) {
  __atomic_store(p, &value, __ATOMIC_RELAXED);
}
template <class A>
MEDSEG_INLINE A published(const A* p) {
  A value;
  __atomic_load(p, &value, __ATOMIC_RELAXED);
  return value;
}

// sum_j weight[j] * values[c + j - p] inside 0..channels-1; `reversed` runs the taps backward.
template <class A>
MEDSEG_INLINE A along_channels(const A* values, const A* weight, int taps, bool reversed, int64_t c,
                               int64_t channels) {
  A z = 0;
  for (int j = 0; j < taps; ++j) {
    const int64_t at = c + (reversed ? taps / 2 - j : j - taps / 2);
    if (at >= 0 && at < channels) z += weight[j] * published(values + at);
  }
  return z;
}

// Walks the planes of one thread: `ahead(i, mine)` once for every plane within p of its range, in
// order, then `here(i)` as soon as its neighbourhood is known.
template <class Ahead, class Here>
MEDSEG_INLINE void walk_planes(const EcaShape& s, Ahead ahead, Here here) {
  const int64_t total = s.n * s.c, p = s.taps / 2;
  const int64_t thread = thread_number(), threads = thread_count();
  const int64_t begin = total * thread / threads, end = total * (thread + 1) / threads;
  int64_t next = begin;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i / s.c * s.c, last = first + s.c;
    if (i == begin || i == first) next = larger(first, i - p);
    for (; next < smaller(i + p + 1, last); ++next) ahead(next, next >= begin && next < end);
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
  const T* residual = static_cast<const T*>(a.residual);
  T* summed = static_cast<T*>(a.summed);
  T* out = static_cast<T*>(a.out);
  const A* weight = static_cast<const A*>(a.weight);
  const A bias = a.bias ? *static_cast<const A*>(a.bias) : A(0);
  A* pooled = static_cast<A*>(a.pooled);
  A* gate = static_cast<A*>(a.gate);
#pragma omp parallel num_threads(s.threads)
  walk_planes(
      s,
      [&](int64_t i, bool mine) {
        const T *p = plane_of(x, s, i), *q = residual ? residual + i * s.hw : nullptr;
        const double sum = !residual ? sum_line<kOne, T>(p, nullptr, nullptr, s.hw)
                           : mine    ? sum_line<kAdd, T>(p, q, summed + i * s.hw, s.hw)
                                     : sum_line<kAddApart, T>(p, q, nullptr, s.hw);
        publish(pooled + i, A(sum / s.hw));
      },
      [&](int64_t i) {
        const A* values = pooled + i / s.c * s.c;
        const T* p = residual ? summed + i * s.hw : plane_of(x, s, i);
        gate[i] =
            sigmoid_scalar(bias + along_channels(values, weight, s.taps, false, i % s.c, s.c));
        s.pool == 2 ? pool_plane(p, s, gate[i], out + i * (s.hw / s.w / 2) * (s.w / 2))
                    : scale_line<false>(p, gate[i], A(0), out + i * s.hw, s.hw);
      });
}

// dz[i] = (sum over the plane of grad_out * x, or of what was pooled of it) * gate * (1 - gate)
template <class T>
void backward_planes(const EcaBackward& a, Acc<T>* dz) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  const T* x = static_cast<const T*>(a.x);
  const T* grad_out = static_cast<const T*>(a.grad_out);
  const T* grad_summed = static_cast<const T*>(a.grad_summed);
  const A* weight = static_cast<const A*>(a.weight);
  const A* gate = static_cast<const A*>(a.gate);
  const int64_t size = s.pool == 2 ? (s.hw / s.w / 2) * (s.w / 2) : s.hw;
#pragma omp parallel num_threads(s.threads)
  walk_planes(
      s,
      [&](int64_t i, bool) {
        const A g = gate[i];
        const T* dy = grad_out + i * size;
        const double sum = s.pool == 2 ? dot_plane(plane_of(x, s, i), dy, s, g)
                                       : sum_line<kDot, T>(dy, plane_of(x, s, i), nullptr, s.hw);
        publish(dz + i, A(sum) * g * (1 - g));
      },
      [&](int64_t i) {
        if (!a.grad_x) return;
        const A* values = dz + i / s.c * s.c;
        const A ds = along_channels(values, weight, s.taps, true, i % s.c, s.c) / A(s.hw);
        const T* dy = grad_out + i * size;
        T* dx = static_cast<T*>(a.grad_x) + i * s.hw;
        if (s.pool != 2) return scale_line<true>(dy, gate[i], ds, dx, s.hw);
        const T* add = grad_summed;
        if (add) add += i / s.c * a.summed_n + i % s.c * a.summed_c;
        spread_plane(plane_of(x, s, i), dy, add, s, gate[i], ds, dx);
      });
}

}  // namespace
}  // namespace MEDSEG_ISA
}  // namespace medseg

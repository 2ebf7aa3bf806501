// The attention gate's middle: total = A + B + C, product = A * B * C, A = relu(a) and so on.
//
// Maps of one dense layout, read as flat memory: one pass each way.
#include "team.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// max(x, 0), or NaN.
template <class V>
MEDSEG_INLINE V relu(V x) {
  return x <= 0 ? V{} : x;
}
// The gradient of relu at x.
template <class V>
MEDSEG_INLINE V where_positive(V x, V grad) {
  return x <= 0 ? V{} : grad;
}

// The share of this thread, cut at multiples of a cache line's worth of any type.
MEDSEG_INLINE Range share(int64_t count) {
  constexpr int64_t kStep = 64;
  const int64_t steps = (count + kStep - 1) / kStep;
  const int64_t thread = thread_number(), threads = thread_count();
  return {smaller(count, steps * thread / threads * kStep),
          smaller(count, steps * (thread + 1) / threads * kStep)};
}

template <class T>
void forward(const GateForward& f) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const T *a = static_cast<const T*>(f.a), *b = static_cast<const T*>(f.b),
          *c = static_cast<const T*>(f.c);
  T *total = static_cast<T*>(f.total), *product = static_cast<T*>(f.product);
#pragma omp parallel num_threads(f.threads)
  {
    const Range r = share(f.count);
    int64_t i = r.begin;
    for (; i + L <= r.end; i += L) {
      const Vec<A> x = relu(load(a + i)), y = relu(load(b + i)), z = relu(load(c + i));
      store(total + i, x + y + z);
      store(product + i, x * y * z);
    }
    if (const int64_t rest = r.end - i; rest > 0) {
      const Vec<A> x = relu(load_part(a + i, rest)), y = relu(load_part(b + i, rest)),
                   z = relu(load_part(c + i, rest));
      store_part(total + i, x + y + z, rest);
      store_part(product + i, x * y * z, rest);
    }
  }
}

// grad_a = grad_total + grad_product * B * C where a > 0, and so on in turn.
template <class A, bool kProduct>
struct Gradients {
  Vec<A> a, b, c;
  MEDSEG_INLINE Gradients(Vec<A> total, Vec<A> product, Vec<A> x, Vec<A> y, Vec<A> z) {
    if constexpr (kProduct) {
      const Vec<A> p = relu(x), q = relu(y), by_c = product * relu(z);
      a = total + by_c * q;
      b = total + by_c * p;
      c = total + product * (p * q);
    } else {  // not a product of 0: that would be NaN beside infinity
      a = b = c = total;
    }
    a = where_positive(x, a);
    b = where_positive(y, b);
    c = where_positive(z, c);
  }
};

template <class T, bool kProduct>
void backward_with(const GateBackward& f) {
  using A = Acc<T>;
  constexpr int64_t L = Lanes<A>::count;
  const T *a = static_cast<const T*>(f.a), *b = static_cast<const T*>(f.b),
          *c = static_cast<const T*>(f.c), *total = static_cast<const T*>(f.grad_total),
          *product = static_cast<const T*>(f.grad_product);
  T *grad_a = static_cast<T*>(f.grad_a), *grad_b = static_cast<T*>(f.grad_b),
    *grad_c = static_cast<T*>(f.grad_c);
#pragma omp parallel num_threads(f.threads)
  {
    const Range r = share(f.count);
    int64_t i = r.begin;
    for (; i + L <= r.end; i += L) {
      const Gradients<A, kProduct> g(total ? load(total + i) : Vec<A>{},
                                     kProduct ? load(product + i) : Vec<A>{}, load(a + i),
                                     load(b + i), load(c + i));
      store(grad_a + i, g.a);
      store(grad_b + i, g.b);
      store(grad_c + i, g.c);
    }
    if (const int64_t rest = r.end - i; rest > 0) {
      const Gradients<A, kProduct> g(total ? load_part(total + i, rest) : Vec<A>{},
                                     kProduct ? load_part(product + i, rest) : Vec<A>{},
                                     load_part(a + i, rest), load_part(b + i, rest),
                                     load_part(c + i, rest));
      store_part(grad_a + i, g.a, rest);
      store_part(grad_b + i, g.b, rest);
      store_part(grad_c + i, g.c, rest);
    }
  }
}

template <class T>
void backward(const GateBackward& f) {
  f.grad_product ? backward_with<T, true>(f) : backward_with<T, false>(f);
}

}  // namespace

void gate_forward(int dtype, const GateForward& f) {
  MEDSEG_DISPATCH(gate_forward, forward, dtype, f)
}
void gate_backward(int dtype, const GateBackward& f) {
  MEDSEG_DISPATCH(gate_backward, backward, dtype, f)
}

}  // namespace MEDSEG_ISA
}  // namespace medseg

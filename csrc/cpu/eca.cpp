// ECA: out[n,c,:] = s[n,c,:] * sigmoid(bias + sum_j weight[j] * mean(s[n,c+j-p,:])), s being x or
// x + residual; with pool = 2 the 2x2 max-pool of that (eca_pool.h).
//
// NCHW goes by planes (eca_planes.h), channels_last by pixels (eca_pixels.h).
#include "eca_pixels.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

template <class T>
void forward(const EcaForward& a) {
  a.shape.channels_last ? forward_pixels<T>(a) : forward_planes<T>(a);
}

template <class T>
void backward(const EcaBackward& a) {
  using A = Acc<T>;
  const EcaShape& s = a.shape;
  A* dz = static_cast<A*>(a.scratch);
  s.channels_last ? backward_pixels<T>(a, dz) : backward_planes<T>(a, dz);
  const A* pooled = static_cast<const A*>(a.pooled);
  double bias = 0;
  for (int64_t i = 0; i < s.n * s.c; ++i) bias += dz[i];
  *static_cast<A*>(a.grad_bias) = A(bias);
  for (int j = 0; j < s.taps; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < s.n * s.c; ++i) {
      const int64_t at = i % s.c + j - s.taps / 2;
      if (at >= 0 && at < s.c) sum += double(dz[i]) * pooled[i + j - s.taps / 2];
    }
    static_cast<A*>(a.grad_weight)[j] = A(sum);
  }
}

// Bytes: dz (n, c), then the lines of every thread.
template <class T>
int64_t scratch(const EcaShape& s) {
  using A = Acc<T>;
  const int64_t lines = s.channels_last ? s.threads * lines_bytes<A>(s) : 0;
  return round_up(s.n * s.c * int64_t(sizeof(A)), 64) + lines;
}

}  // namespace

void eca_forward(int dtype, const EcaForward& a) { MEDSEG_DISPATCH(eca_forward, forward, dtype, a) }
void eca_backward(int dtype,
                  const EcaBackward& a){MEDSEG_DISPATCH(eca_backward, backward, dtype, a)}

int64_t eca_scratch(int dtype, const EcaShape& s) {
  MEDSEG_DISPATCH(eca_scratch, scratch, dtype, s)
}

}  // namespace MEDSEG_ISA
}  // namespace medseg

// MDE: out[n,c] = x[n,c] filtered by sum_j tap_j(c) mask_j, one symmetric stencil a channel.
//
// NCHW goes by lines (mde_lines.h), channels_last by pixels (mde_pixels.h).
#include "mde_pixels.h"

namespace medseg {
namespace MEDSEG_ISA {
namespace {

// grad_tap[j] = sum_u mask_j[u] * (sums over all bands)[u], times kCorner where rows were weighed;
// gains are running sums of the taps.
template <class A>
void gradient_of_gains(const MdeCall& a, const Plan<A>& plan) {
  const MdeShape& s = a.shape;
  const Bands bands = bands_of(s);
  const int side = s.radius + 1;
  const double scale = a.adjoint && s.reflect ? kCorner : 1;
  double total[4] = {};
  A* grad = static_cast<A*>(a.grad_gains);
  for (int64_t c = 0; c < s.c; ++c) {
    double taps[4] = {};
    for (int64_t n = 0; n < s.n; ++n) {
      const int64_t plane = s.channels_last ? n : n * s.c + c;
      for (int64_t b = plane * bands.each; b < (plane + 1) * bands.each; ++b) {
        const double* sums = plan.of_band(a, b) + (s.channels_last ? c : 0);
        const int64_t pitch = s.channels_last ? s.c : 1;
        for (int j = 0; j < s.masks; ++j)
          for (int dx = 0; dx < side; ++dx)
            for (int dy = 0; dy <= dx; ++dy)
              taps[j] += a.quadrants[(j * side + dy) * side + dx] * sums[unique(dy, dx) * pitch];
      }
    }
    for (int j = 0; j < s.masks; ++j) {
      const double value = scale * (taps[j] - (j + 1 < s.masks ? taps[j + 1] : 0));
      total[j] += value;
      if (!s.shared) grad[c * s.masks + j] = A(value);
    }
  }
  if (s.shared)
    for (int j = 0; j < s.masks; ++j) grad[j] = A(total[j]);
}

// This thread's share of the planes that come up from the decoder.
template <class T>
void copy_planes(const MdeCall& a) {
  const MdeShape& s = a.shape;
  const MdeStrides &from = a.up_strides, &to = a.out_strides;
  const bool dense = from.h == s.w;
  const int64_t pieces = dense ? 1 : s.h, total = s.n * a.up_c * pieces;
  const int64_t thread = thread_number(), threads = thread_count();
  for (int64_t i = total * thread / threads; i < total * (thread + 1) / threads; ++i) {
    const int64_t plane = i / pieces, y = i % pieces, n = plane / a.up_c, c = plane % a.up_c;
    const T* p = static_cast<const T*>(a.up) + n * from.n + c * from.c + y * from.h;
    T* out = static_cast<T*>(a.up_out) + n * to.n + c * to.c + y * to.h;
    __builtin_memcpy(out, p, s.w * (dense ? s.h : 1) * sizeof(T));
  }
}

template <class T, template <class, int> class Walk, int P>
void walk(const MdeCall& a) {
  using A = Acc<T>;
  const Plan<A> plan(a.shape);
  A* table = static_cast<A*>(a.scratch);
  fold(a, plan.weights, table);
  const Bands bands = bands_of(a.shape);
  double* sums = plan.of_band(a, 0);
  if (a.x)
    for (int64_t i = 0; i < bands.planes * bands.each * plan.sums; ++i) sums[i] = 0;
  const Walk<T, P> share{a, plan, Walk<T, P>::must_keep(a)};
  const bool by_planes = a.up && !a.shape.channels_last;
#pragma omp parallel num_threads(a.shape.threads)
  {
    if (by_planes) copy_planes<T>(a);
    share(table);
  }
  if (a.x) gradient_of_gains(a, plan);
}

template <class T, template <class, int> class Walk>
void by_radius(const MdeCall& a) {
  if (a.shape.radius == 1) return walk<T, Walk, 1>(a);
  if (a.shape.radius == 2) return walk<T, Walk, 2>(a);
  walk<T, Walk, 3>(a);
}

template <class T>
void filter(const MdeCall& a) {
  by_pixels<Acc<T>>(a.shape) ? by_radius<T, PixelWalk>(a) : by_radius<T, LineWalk>(a);
}

template <class T>
int64_t scratch(const MdeShape& s) {
  return Plan<Acc<T>>(s).bytes(s);
}

}  // namespace

void mde(int dtype, const MdeCall& a){MEDSEG_DISPATCH(mde, filter, dtype, a)}

int64_t mde_scratch(int dtype, const MdeShape& s) {
  MEDSEG_DISPATCH(mde_scratch, scratch, dtype, s)
}

}  // namespace MEDSEG_ISA
}  // namespace medseg

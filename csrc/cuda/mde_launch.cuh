// Which kernel of the MDE filter a map takes; PRODUCTS apart, so that two files compile them.
#pragma once
#include "mde_rows.cuh"

namespace medseg::cuda {
namespace {

template <class T, int P, bool PRODUCTS>
cudaError_t launch_radius(const MdeWork& k, cudaStream_t stream) {
  constexpr int V = PRODUCTS ? 4 : kVector<T>;
  const MdePlan& p = k.plan;
  const int64_t blocks = ceil_div(p.units, p.block_u) * p.parts();
  auto* kernel = mde_rows<T, P, 1, 1, PRODUCTS>;
  if (p.columns == V) kernel = mde_rows<T, P, V, 1, PRODUCTS>;
  if (p.channels == 4) kernel = mde_rows < T, P, PRODUCTS ? 1 : 2, 4, PRODUCTS > ;
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), kMdeThreads, 0, stream, k);
}

template <bool PRODUCTS>
cudaError_t launch_rows(int dtype, int radius, const MdeWork& k, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    if (radius == 1) return launch_radius<T, 1, PRODUCTS>(k, stream);
    if (radius == 2) return launch_radius<T, 2, PRODUCTS>(k, stream);
    return launch_radius<T, 3, PRODUCTS>(k, stream);
  });
}

}  // namespace
}  // namespace medseg::cuda

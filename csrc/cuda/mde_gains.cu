// The MDE filter and, in the same pass, the sums that the gradient of its gains needs.
#include "mde_launch.cuh"

namespace medseg::cuda {

cudaError_t mde_launch_products(int dtype, int radius, const MdeWork& k, cudaStream_t stream) {
  return launch_rows<true>(dtype, radius, k, stream);
}

}  // namespace medseg::cuda

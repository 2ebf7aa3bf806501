// A haloed tile of a plane in shared memory, and the k x k convolution on it.
#pragma once
#include "triplet.cuh"

namespace medseg::cuda {
namespace {

// gate = sigmoid(gamma * (u - mean) * rstd + beta)
struct Norm {
  float mean, rstd, gamma, beta;
  __device__ __forceinline__ float hat(float u) const { return (u - mean) * rstd; }
  __device__ __forceinline__ float value(float u) const { return fmaf(hat(u), gamma, beta); }
};

__device__ __forceinline__ Norm norm_of(const Triplet& t, int gate, float mean, float rstd) {
  return {mean, rstd, load_param(t.bn_weight, gate), load_param(t.bn_bias, gate)};
}

__device__ __forceinline__ Norm running_norm(const Triplet& t, int gate) {
  const float rstd = 1.0f / sqrtf(load_param(t.running_var, gate) + t.eps);
  return norm_of(t, gate, load_param(t.running_mean, gate), rstd);
}

// 32 x 32 positions of image n; this thread owns 4 rows of one column of them.
struct GateTile {
  int64_t n;
  int row, col;  // of the tile

  __device__ __forceinline__ GateTile(const Plane& plane, int64_t item) {
    n = item / plane.tiles;
    const int64_t tile = item % plane.tiles;
    row = static_cast<int>(tile / plane.tiles_across) * kGateTile;
    col = static_cast<int>(tile % plane.tiles_across) * kGateTile;
  }
  __device__ __forceinline__ int my_row(int o) const {
    return row + static_cast<int>(threadIdx.x) / kGateTile * 4 + o;
  }
  __device__ __forceinline__ int my_col() const { return col + threadIdx.x % kGateTile; }
  __device__ __forceinline__ bool inside(const Plane& plane, int o) const {
    return my_row(o) < plane.rows && my_col() < plane.cols;
  }
  __device__ __forceinline__ int64_t at(const Plane& plane, int o) const {
    return n * plane.size + static_cast<int64_t>(my_row(o)) * plane.cols + my_col();
  }
  __device__ __forceinline__ float positions(const Plane& plane) const {
    const int rows = plane.rows - row, cols = plane.cols - col;
    return static_cast<float>((rows < kGateTile ? rows : kGateTile) *
                              (cols < kGateTile ? cols : kGateTile));
  }
};

// Shared memory of `images` haloed tiles and the two k x k sets of taps. K = 0: k at run time.
template <int K>
struct Conv {
  int k, images;
  float* shared;

  __device__ __forceinline__ Conv(int taps, int images, float* shared)
      : k(K ? K : taps), images(images), shared(shared) {}
  __device__ __forceinline__ int span() const { return kGateTile + k - 1; }
  __device__ __forceinline__ float* image(int i) const { return shared + i * span() * span(); }
  __device__ __forceinline__ float* taps_of(int set) const { return image(images) + set * k * k; }

  // The taps of this plane's gate, transposed where the plane lies so; `flipped` for the adjoint.
  __device__ __forceinline__ void load_taps(const Triplet& t, const Plane& plane,
                                            bool flipped) const {
    const int all = 2 * k * k;
    for (int i = threadIdx.x; i < all; i += kGateThreads) {
      const int set = i / (k * k), r = i % (k * k) / k, c = i % k;
      const int from = set * k * k + (plane.turned ? c * k + r : r * k + c);
      const int to = set * k * k + (flipped ? (k - 1 - r) * k + k - 1 - c : r * k + c);
      taps_of(0)[to] = load_param(t.conv_weight, static_cast<int64_t>(plane.gate) * all + from);
    }
  }

  // Calls f(slot, inside the plane, part of the tile itself, position) for the tile and its halo.
  template <class F>
  __device__ __forceinline__ void for_halo(const Plane& plane, const GateTile& tile, F f) const {
    for (int i = threadIdx.x; i < span() * span(); i += kGateThreads) {
      const int r = i / span() - k / 2, c = i % span() - k / 2;
      const int row = tile.row + r, col = tile.col + c;
      const bool inside = row >= 0 && row < plane.rows && col >= 0 && col < plane.cols;
      const bool core = r >= 0 && r < kGateTile && c >= 0 && c < kGateTile;
      f(i, inside, core, static_cast<int64_t>(row) * plane.cols + col);
    }
  }

  // u[o] += sum over taps of tap * image at this thread's position o, o rows down. A column of the
  // image slides through four registers, so that each value read serves four sums.
  __device__ __forceinline__ void apply(const float* image, const float* taps,
                                        float (&u)[4]) const {
    const float* corner = image + threadIdx.x / kGateTile * 4 * span() + threadIdx.x % kGateTile;
#pragma unroll 1  // one column of taps in flight is enough, all of them are too many registers
    for (int j = 0; j < k; ++j) {
      const float* q = corner + j;
      float a = q[0], b = q[span()], c = q[2 * span()];
#pragma unroll
      for (int i = 0; i < k; ++i) {
        const float d = q[(i + 3) * span()], tap = taps[i * k + j];
        u[0] = fmaf(tap, a, u[0]);
        u[1] = fmaf(tap, b, u[1]);
        u[2] = fmaf(tap, c, u[2]);
        u[3] = fmaf(tap, d, u[3]);
        a = b, b = c, c = d;
      }
    }
  }
};

inline size_t conv_shared(int taps, int images) {
  const size_t span = kGateTile + taps - 1;
  return (images * span * span + 2 * taps * taps) * sizeof(float);
}

// Blocks of the gate kernels: y is the plane, x the largest plane's count.
inline dim3 gate_grid(const Triplet& t) {
  int most = 1;
  for (const Plane& plane : t.plane)
    if (plane.gate >= 0 && plane.blocks > most) most = plane.blocks;
  return dim3(static_cast<unsigned>(most), 3);
}

}  // namespace
}  // namespace medseg::cuda

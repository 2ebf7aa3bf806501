// What both layouts of ECA share: the plan of a call, and the gradients of the taps.
#pragma once
#include <algorithm>

#include "common.cuh"

namespace medseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kLanes;  // pixels a block reads side by side in channels_last
constexpr int kUnroll = 4;                // independent 16-byte loads in flight per thread

// A plane (channels_last: an image) is pooled in `parts` of `part` positions and mapped in
// `map_parts` of `map_part`; `slab` channels make one 128-byte line.
struct EcaPlan {
  int64_t n, c, hw, h, w, stride_n, pitch;
  int64_t part, map_part;
  int64_t runs;  // with the max-pool, what is cut: rows of windows, kVector columns or one window
  int parts, map_parts;
  int slab, slabs;
  int taps, tap_slices;
};

// What is summed: x, x * other, or x + other, which is also stored, and so rounded.
enum Term { kOne, kDot, kAdd };

struct EcaGates {
  Param weight, bias;
  const float* partial;  // (n, c, parts): sums of x, or in backward of grad_out * x
  float* pooled;         // (n, c)
  float* gate;           // (n, c)
  float* slices;         // (taps + 1, tap_slices)
  float* grad_weight;
  float* grad_bias;
  int tap_blocks;  // leading blocks of the map launch that sum the gradients of the taps
};

// ---- gradients of the taps ----------------------------------------------------------------------

__device__ __forceinline__ void store_tap(const EcaPlan& p, const EcaGates& g, int j, float sum) {
  if (threadIdx.x != 0) return;
  if (j < p.taps) g.grad_weight[j] = sum;
  if (j == p.taps) g.grad_bias[0] = sum;
}

// grad_weight[j] = sum over (n, c) of dz[n, c] * mean[n, c + j - k/2]; j = taps: grad_bias = sum
// dz. A block owns one tap and one slice of the planes.
__device__ void tap_gradient(const EcaPlan& p, const EcaGates& g) {
  const int j = blockIdx.x % (p.taps + 1), slice = blockIdx.x / (p.taps + 1);
  const int64_t planes = p.n * p.c, size = ceil_div(planes, p.tap_slices);
  const int64_t last = (slice + 1) * size < planes ? (slice + 1) * size : planes;
  const int64_t offset = j < p.taps ? j - p.taps / 2 : 0;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t plane = slice * size + threadIdx.x; plane < last; plane += kThreads) {
    const int64_t other = plane % p.c + offset;
    if (other < 0 || other >= p.c) continue;
    const float* const parts = g.partial + plane * p.parts;
    const float dg = part_sum(p.parts, [&](int64_t s) { return parts[s]; });
    const float dz = dg * g.gate[plane] * (1.0f - g.gate[plane]);
    sum = fmaf(dz, j < p.taps ? g.pooled[plane + offset] : 1.0f, sum);
  }
  sum = block_sum<kThreads>(sum);
  if (p.tap_slices == 1) return store_tap(p, g, j, sum);
  if (threadIdx.x == 0) g.slices[static_cast<int64_t>(j) * p.tap_slices + slice] = sum;
}

// The slices of tap_gradient added up, a block for each tap.
__global__ void __launch_bounds__(kThreads) add_slices(const EcaPlan p, const EcaGates g) {
  float sum = 0.0f;
  for (int i = threadIdx.x; i < p.tap_slices; i += kThreads)
    sum += g.slices[static_cast<int64_t>(blockIdx.x) * p.tap_slices + i];
  store_tap(p, g, blockIdx.x, block_sum<kThreads>(sum));
}

}  // namespace
}  // namespace medseg::cuda

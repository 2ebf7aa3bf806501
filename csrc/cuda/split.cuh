// What the files of split attention share: one block of arguments for all kernels.
#pragma once
#include <algorithm>

#include "common.cuh"

namespace medseg::cuda {

// x is (n, radix * c, hw), read by stride_n and pitch; out, grad and mapped are dense. In backward
// `sums` has radix * c rows an image, in forward c. A plane (channels_last: an image) is summed in
// `parts` of `part` positions and mapped in `map_parts` of `map_part`; `slab` channels make one
// 128-byte line. Groups have per_c channels and per_i hidden units.
struct Split {
  int64_t n, c, hw, stride_n, pitch;
  int64_t part, map_part, per_c, per_i;
  int parts, map_parts, slab, slabs, radix, groups, inner;
  bool channels_last, training, aligned;  // aligned: 16-byte accesses on every row (channels_last)
  float eps;
  const void* x;
  const void* grad;  // backward: dense (n, c, hw)
  void* mapped;      // out, or backward grad_x
  Param scale, shift, fc1_weight, fc1_bias, bn_weight, bn_bias, mean, var, fc2_weight, fc2_bias;
  float* stats;   // (3, inner): mean, unbiased variance, rstd
  float* saved;   // (n, (1 + radix) * c): pooled means, attention
  float* sums;    // (n, rows, parts): partial sums
  float* hidden;  // (inner, n): fc1 before its batch norm
  float* dz;      // (n, radix * c), rows in the order of fc2
  float* dv;      // (inner, n): gradient behind the batch norm
  float* dh;      // (inner, n): gradient in front of it
  float* ds;      // (n, c): what each pixel gets of the pooled mean's gradient
  float *grad_fc1, *grad_fc1_bias, *grad_gamma, *grad_beta, *grad_fc2, *grad_fc2_bias;
};

// On NCHW and on channels_last: sums of u over pixels, or backward of grad * x; then out from u
// and the attention, or backward grad_x from grad.
cudaError_t split_sum_planes(int dtype, const Split& t, bool backward, cudaStream_t stream);
cudaError_t split_map_planes(int dtype, const Split& t, bool backward, cudaStream_t stream);
cudaError_t split_sum_pixels(int dtype, const Split& t, bool backward, cudaStream_t stream);
cudaError_t split_map_pixels(int dtype, const Split& t, bool backward, cudaStream_t stream);

cudaError_t split_attention_vectors(const Split& t, cudaStream_t stream);
cudaError_t split_gradient_vectors(const Split& t, cudaStream_t stream);

namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kLanes;  // pixels a block reads side by side in channels_last
constexpr int kMaxRadix = 4;

// Splits are unrolled as 1, 2 or 4; the fourth of three is skipped. Calls f(constant).
template <class F>
cudaError_t with_radix(int radix, F f) {
  if (radix == 1) return f(std::integral_constant<int, 1>{});
  if (radix == 2) return f(std::integral_constant<int, 2>{});
  return f(std::integral_constant<int, kMaxRadix>{});
}

// Packs of each split in flight per thread: four loads at a time, whatever the radix.
template <int R>
constexpr int kUnroll = R == 1 ? 4 : 4 / R;

// factor * u of one channel, u = x or relu(x * scale + shift): a factor of attention is positive,
// so it may go under the ReLU. Without scale the bound is -inf and -0 added: x's bits are kept.
struct Affine {
  float scale, shift, lowest;
  __device__ __forceinline__ float operator()(float x) const {
    const float u = fmaf(x, scale, shift);
    return u < lowest ? lowest : u;  // NaN stays
  }
};

__device__ __forceinline__ Affine affine_of(const Split& t, int64_t channel, float factor) {
  if (!t.scale.data) return {factor, -0.0f, -INFINITY};
  return {factor * load_param(t.scale, channel), factor * load_param(t.shift, channel), 0.0f};
}

// a[n, r, c].
__device__ __forceinline__ float attention_of(const Split& t, int64_t n, int r, int64_t c) {
  return t.saved[(n * (1 + t.radix) + 1 + r) * t.c + c];
}

}  // namespace
}  // namespace medseg::cuda

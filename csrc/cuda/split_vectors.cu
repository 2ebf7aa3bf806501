// Split attention between its passes over maps: C and I numbers an image. A launch owns what the
// next one needs whole; sums over images belong to one block, in a fixed order.
//
//   forward:  hidden = fc1(s) with the statistics of its batch norm;  a = softmax(fc2(relu(bn)))
//   backward: dz from the dot products, beside them hidden once more;  dh through fc2, ReLU and
//             norm;  then the gradients of both weights and of the pooled mean
#include "split.cuh"

namespace medseg::cuda {
namespace {

struct Norm {
  float mean, rstd, gamma, beta;
  __device__ __forceinline__ Norm(const Split& t, int64_t i)
      : mean(t.stats[i]),
        rstd(t.stats[2 * static_cast<int64_t>(t.inner) + i]),
        gamma(load_param(t.bn_weight, i)),
        beta(load_param(t.bn_bias, i)) {}
  __device__ __forceinline__ float hat(float hidden) const { return (hidden - mean) * rstd; }
  __device__ __forceinline__ float value(float hidden) const {
    return fmaf(hat(hidden), gamma, beta);
  }
  __device__ __forceinline__ float relu(float hidden) const {
    const float v = value(hidden);
    return v < 0.0f ? 0.0f : v;  // NaN stays
  }
};

// hidden[i, n] of all images, s being factor * the sum of the `parts` numbers that source has for a
// channel; KEEP saves s where unit i is the first of its group. A warp owns an image.
template <bool KEEP>
__device__ __forceinline__ void hidden_unit(const Split& t, int64_t i, const float* source,
                                            int64_t stride_n, int parts, float factor) {
  const int64_t first = i / t.per_i * t.per_c;
  const float bias = t.fc1_bias.data ? load_param(t.fc1_bias, i) : 0.0f;
  for (int64_t n = threadIdx.x / kWarp; n < t.n; n += kThreads / kWarp) {
    float sum = 0.0f;
    for (int64_t c = threadIdx.x % kWarp; c < t.per_c; c += kWarp) {
      const float* const own = source + n * stride_n + (first + c) * parts;
      const float s = part_sum(parts, [&](int64_t part) { return own[part]; }) * factor;
      if (KEEP && i % t.per_i == 0) t.saved[n * (1 + t.radix) * t.c + first + c] = s;
      sum = fmaf(load_param(t.fc1_weight, i * t.per_c + c), s, sum);
    }
    sum = lane_sum<kWarp>(sum);
    if (threadIdx.x % kWarp == 0) t.hidden[i * t.n + n] = sum + bias;
  }
}

// This block's sum of f(n) over all images, for every thread.
template <class F>
__device__ __forceinline__ float sum_images(const Split& t, F f) {
  float sum = 0.0f;
  for (int64_t n = threadIdx.x; n < t.n; n += kThreads) sum += f(n);
  return block_sum<kThreads>(sum);
}

// A block owns one hidden unit of all images, so that its statistics need no second launch.
__global__ void __launch_bounds__(kThreads) fc1(const __grid_constant__ Split t) {
  const int64_t i = blockIdx.x;
  const float hw = static_cast<float>(t.hw), images = static_cast<float>(t.n);
  hidden_unit<true>(t, i, t.sums, t.c * t.parts, t.parts, 1.0f / hw);
  float mean, var, unbiased;
  if (t.training) {
    __syncthreads();  // what is read now other warps have written
    const float* const own = t.hidden + i * t.n;
    mean = sum_images(t, [&](int64_t n) { return own[n]; }) / images;
    const float squares =
        sum_images(t, [&](int64_t n) { return (own[n] - mean) * (own[n] - mean); });
    var = squares / images;
    unbiased = squares / (images - 1.0f);
  } else {
    mean = load_param(t.mean, i);
    unbiased = var = load_param(t.var, i);
  }
  if (threadIdx.x != 0) return;
  t.stats[i] = mean;
  t.stats[t.inner + i] = unbiased;
  t.stats[2 * static_cast<int64_t>(t.inner) + i] = 1.0f / sqrtf(var + t.eps);
}

// a[n, r, c]; a warp owns a channel of one image. Row of z: (group, split, channel of the group).
__global__ void __launch_bounds__(kThreads) fc2(const __grid_constant__ Split t) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (item >= t.n * t.c) return;  // whole warps leave, and no barrier follows
  const int lane = threadIdx.x % kWarp;
  const int64_t n = item / t.c, c = item % t.c, group = c / t.per_c;
  const int64_t row = group * t.radix * t.per_c + c % t.per_c;
  float z[kMaxRadix] = {};
  for (int64_t k = lane; k < t.per_i; k += kWarp) {
    const int64_t i = group * t.per_i + k;
    const float h = Norm(t, i).relu(t.hidden[i * t.n + n]);
#pragma unroll
    for (int r = 0; r < kMaxRadix; ++r)
      if (r < t.radix)
        z[r] = fmaf(load_param(t.fc2_weight, (row + r * t.per_c) * t.per_i + k), h, z[r]);
  }
  float top = -INFINITY, sum = 0.0f;
#pragma unroll
  for (int r = 0; r < kMaxRadix; ++r) {
    if (r >= t.radix) break;
    z[r] = lane_sum<kWarp>(z[r]);
    if (t.fc2_bias.data) z[r] += load_param(t.fc2_bias, row + r * t.per_c);
    top = fmaxf(top, z[r]);
  }
#pragma unroll
  for (int r = 0; r < kMaxRadix; ++r)
    if (r < t.radix) sum += expf(z[r] - top);
#pragma unroll
  for (int r = 0; r < kMaxRadix; ++r) {
    if (r >= t.radix) break;
    const float a = t.radix == 1 ? sigmoid(z[r]) : expf(z[r] - top) / sum;
    if (lane == r) t.saved[(n * (1 + t.radix) + 1 + r) * t.c + c] = a;
  }
}

// dz of all splits of one channel of one image.
__device__ __forceinline__ void grad_logits(const Split& t, int64_t item) {
  if (item >= t.n * t.c) return;
  const int64_t n = item / t.c, c = item % t.c;
  float a[kMaxRadix] = {}, da[kMaxRadix] = {}, mean = 0.0f;
#pragma unroll
  for (int r = 0; r < kMaxRadix; ++r) {
    if (r >= t.radix) break;
    const float* const own = t.sums + ((n * t.radix + r) * t.c + c) * t.parts;
    da[r] = part_sum(t.parts, [&](int64_t part) { return own[part]; });
    a[r] = attention_of(t, n, r, c);
    mean = fmaf(a[r], da[r], mean);
  }
  float* const dz = t.dz + n * t.radix * t.c + c / t.per_c * t.radix * t.per_c + c % t.per_c;
#pragma unroll
  for (int r = 0; r < kMaxRadix; ++r) {
    if (r >= t.radix) break;
    dz[r * t.per_c] = t.radix == 1 ? da[0] * a[0] * (1.0f - a[0]) : a[r] * (da[r] - mean);
  }
}

// The first `inner` blocks work out hidden[i, :] again, each of the others owns 256 channels' dz.
__global__ void __launch_bounds__(kThreads) logits(const __grid_constant__ Split t) {
  if (blockIdx.x < static_cast<unsigned>(t.inner))
    return hidden_unit<false>(t, blockIdx.x, t.saved, (1 + t.radix) * t.c, 1, 1.0f);
  grad_logits(t, static_cast<int64_t>(blockIdx.x - t.inner) * kThreads + threadIdx.x);
}

// dh[i, :] and the gradients of fc1's bias and of the norm. A block owns one hidden unit of all
// images, a warp an image.
__global__ void __launch_bounds__(kThreads) hidden_gradients(const __grid_constant__ Split t) {
  const int64_t i = blockIdx.x, rows = t.radix * t.per_c, first = i / t.per_i * rows;
  const float images = static_cast<float>(t.n);
  const Norm norm(t, i);
  const float* const hidden = t.hidden + i * t.n;
  float* const dv = t.dv + i * t.n;
  for (int64_t n = threadIdx.x / kWarp; n < t.n; n += kThreads / kWarp) {
    float sum = 0.0f;
    for (int64_t row = first + threadIdx.x % kWarp; row < first + rows; row += kWarp)
      sum = fmaf(t.dz[n * t.groups * rows + row],
                 load_param(t.fc2_weight, row * t.per_i + i % t.per_i), sum);
    sum = lane_sum<kWarp>(sum);
    if (threadIdx.x % kWarp == 0) dv[n] = norm.value(hidden[n]) <= 0.0f ? 0.0f : sum;
  }
  __syncthreads();  // what is read now other warps have written
  const float grad_beta = sum_images(t, [&](int64_t n) { return dv[n]; });
  const float grad_gamma = sum_images(t, [&](int64_t n) { return dv[n] * norm.hat(hidden[n]); });
  const float scale = norm.gamma * norm.rstd;
  for (int64_t n = threadIdx.x; n < t.n; n += kThreads) {
    float d = dv[n];
    if (t.training) d -= grad_beta / images + norm.hat(hidden[n]) * (grad_gamma / images);
    t.dh[i * t.n + n] = d * scale;
  }
  if (threadIdx.x != 0) return;
  t.grad_gamma[i] = grad_gamma;
  t.grad_beta[i] = grad_beta;
  // The batch's mean takes any bias away, so its gradient is 0, or NaN where anything is.
  t.grad_fc1_bias[i] = grad_beta * (t.training ? 0.0f : scale);
}

// grad_fc2[row, k] = sum over n of dz[n, row] * relu(bn(hidden)); grad_fc2_bias = sum of dz.
__device__ __forceinline__ void grad_fc2(const Split& t, int64_t element) {
  const int64_t width = t.radix * t.c, row = element / t.per_i, k = element % t.per_i;
  if (row >= width) return;
  const int64_t i = row / (t.radix * t.per_c) * t.per_i + k;
  const Norm norm(t, i);
  const float* const hidden = t.hidden + i * t.n;
  t.grad_fc2[element] =
      part_sum(t.n, [&](int64_t n) { return t.dz[n * width + row] * norm.relu(hidden[n]); });
  if (k == 0)
    t.grad_fc2_bias[row] = part_sum(t.n, [&](int64_t n) { return t.dz[n * width + row]; });
}

// grad_fc1[i, k] = sum over n of dh[i, n] * s[n, c].
__device__ __forceinline__ void grad_fc1(const Split& t, int64_t element) {
  const int64_t i = element / t.per_c, c = i / t.per_i * t.per_c + element % t.per_c;
  if (i >= t.inner) return;
  t.grad_fc1[element] = part_sum(
      t.n, [&](int64_t n) { return t.dh[i * t.n + n] * t.saved[n * (1 + t.radix) * t.c + c]; });
}

// ds[n, c] = sum over the group's units i of fc1[i, c] * dh[i, n], over hw. A block owns 32
// channels of one image, a warp every eighth unit.
__device__ __forceinline__ void grad_mean(const Split& t, int64_t block) {
  struct Sums {
    float warp[kThreads / kWarp][kWarp];
  };
  MEDSEG_SHARED(Sums, sums);
  const int64_t blocks = ceil_div(t.c, kWarp), n = block / blocks;
  const int64_t c = block % blocks * kWarp + threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  float sum = 0.0f;
  if (c < t.c)
#pragma unroll 4
    for (int64_t k = warp; k < t.per_i; k += kThreads / kWarp) {
      const int64_t i = c / t.per_c * t.per_i + k;
      sum = fmaf(load_param(t.fc1_weight, i * t.per_c + c % t.per_c), t.dh[i * t.n + n], sum);
    }
  sums.warp[warp][threadIdx.x % kWarp] = sum;
  __syncthreads();
  if (warp != 0 || c >= t.c) return;
  sum = 0.0f;
  for (int w = 0; w < kThreads / kWarp; ++w) sum += sums.warp[w][threadIdx.x];
  t.ds[n * t.c + c] = sum / static_cast<float>(t.hw);
}

// Blocks of three kinds, in this order: elements of fc2's gradient, of fc1's, and the mean's.
struct WeightBlocks {
  int64_t fc2, fc1, mean;
  __host__ __device__ explicit WeightBlocks(const Split& t)
      : fc2(ceil_div(t.radix * t.c * t.per_i, kThreads)),
        fc1(ceil_div(t.inner * t.per_c, kThreads)),
        mean(t.mapped ? t.n * ceil_div(t.c, kWarp) : 0) {}
};

__global__ void __launch_bounds__(kThreads) weight_gradients(const __grid_constant__ Split t) {
  const WeightBlocks blocks(t);
  const int64_t block = blockIdx.x;
  if (block < blocks.fc2) return grad_fc2(t, block * kThreads + threadIdx.x);
  if (block < blocks.fc2 + blocks.fc1)
    return grad_fc1(t, (block - blocks.fc2) * kThreads + threadIdx.x);
  grad_mean(t, block - blocks.fc2 - blocks.fc1);
}

cudaError_t launch_blocks(void (*kernel)(Split), int64_t blocks, const Split& t,
                          cudaStream_t stream) {
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, t);
}

}  // namespace

cudaError_t split_attention_vectors(const Split& t, cudaStream_t stream) {
  const cudaError_t error = launch_blocks(fc1, t.inner, t, stream);
  if (error != cudaSuccess) return error;
  return launch_blocks(fc2, ceil_div(t.n * t.c, kThreads / kWarp), t, stream);
}

cudaError_t split_gradient_vectors(const Split& t, cudaStream_t stream) {
  cudaError_t error = launch_blocks(logits, t.inner + ceil_div(t.n * t.c, kThreads), t, stream);
  if (error != cudaSuccess) return error;
  error = launch_blocks(hidden_gradients, t.inner, t, stream);
  if (error != cudaSuccess) return error;
  const WeightBlocks blocks(t);
  return launch_blocks(weight_gradients, blocks.fc2 + blocks.fc1 + blocks.mean, t, stream);
}

}  // namespace medseg::cuda

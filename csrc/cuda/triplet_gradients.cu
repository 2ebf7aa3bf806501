// Backward through the gates. dG = sum over the axis of grad_out * x / gates came from the dot.
//
//   dv = dG * gate * (1 - gate)            u is convolved again from the kept planes, not stored
//   grad_bias = sum dv,  grad_gamma = sum dv * uhat
//   du = gamma * rstd * (dv - mean(dv) - uhat * mean(dv * uhat))     eval: gamma * rstd * dv
//   dM, dA = the adjoint convolution of du,  grad_taps = correlation of (max, mean) with du
//
// Two launches, because du needs sums over the whole batch. Blocks own 32 x 32 positions of a plane
// at a time, as in triplet_gates.cu; a block's sums go to its own slot and are added in a fixed
// order by whoever needs them. Bytes: some 40 per plane position, 1/C + 1/H + 1/W of x.
#include "triplet_tile.cuh"

namespace medseg::cuda {
namespace {

// gated, dv and uhat of every position, and this block's sums of dv and dv * uhat.
template <int K>
__global__ void __launch_bounds__(kGateThreads, 2)
    gate_gradients_kernel(const __grid_constant__ Triplet t) {
  MEDSEG_DYNAMIC_SHARED(float, shared);
  const Plane& plane = t.plane[blockIdx.y];
  if (plane.gate < 0 || blockIdx.x >= static_cast<unsigned>(plane.blocks)) return;
  const Conv<K> conv(t.taps, 2, shared);
  conv.load_taps(t, plane, false);
  const Norm norm = norm_of(t, plane.gate, t.stats[plane.gate], t.stats[2 * t.gates + plane.gate]);
  float sum = 0.0f, product = 0.0f;
  for (int64_t item = blockIdx.x; item < t.x.n * plane.tiles; item += plane.blocks) {
    const GateTile tile(plane, item);
    __syncthreads();  // the tile before may still be read
    conv.for_halo(plane, tile, [&](int slot, bool inside, bool, int64_t at) {
      conv.image(0)[slot] = inside ? plane.max[tile.n * plane.size + at] : 0.0f;
      conv.image(1)[slot] = inside ? plane.mean[tile.n * plane.size + at] : 0.0f;
    });
    __syncthreads();
    float u[4] = {};
    conv.apply(conv.image(0), conv.taps_of(0), u);
    conv.apply(conv.image(1), conv.taps_of(1), u);
#pragma unroll
    for (int o = 0; o < 4; ++o) {
      if (!tile.inside(plane, o)) continue;
      const int64_t at = tile.at(plane, o), position = at - tile.n * plane.size;
      const float* const parts = plane.part_sum + tile.n * plane.parts * plane.size + position;
      const float dot =
          part_sum(plane.parts, [&](int64_t part) { return parts[part * plane.size]; });
      const float gate = sigmoid(norm.value(u[o])), hat = norm.hat(u[o]);
      const float dv = dot * t.scale * gate * (1.0f - gate);
      plane.gated[at] = gate;
      plane.dv[at] = dv;
      plane.uhat[at] = hat;
      sum += dv;
      product = fmaf(dv, hat, product);
    }
  }
  sum = block_sum<kGateThreads>(sum);
  product = block_sum<kGateThreads>(product);
  if (threadIdx.x != 0) return;
  plane.moments[blockIdx.x] = sum;
  plane.moments[kGateBlocks + blockIdx.x] = product;
}

// Correlates (max, mean) with du. A unit is one image and one row of taps; `parts` threads share a
// unit, each with some rows of the tile, and 7 taps at a time slide along them, so that two values
// read serve 7 sums. The threads' sums meet in shared memory, over the tiles that are done with.
template <int K>
struct TapSums {
  static constexpr int kSlide = 7;
  static constexpr int kChunks =
      K ? (K + kSlide - 1) / kSlide : (kMaxTripletTaps + kSlide - 1) / kSlide;
  const Conv<K>& conv;
  int units, parts, rows;

  __device__ __forceinline__ explicit TapSums(const Conv<K>& conv) : conv(conv) {
    units = 2 * conv.k;
    parts = kGateThreads / units < kGateTile ? kGateThreads / units : kGateTile;
    rows = (kGateTile + parts - 1) / parts;
  }

  // Images: 0 maximum, 1 mean, 2 du, each with its halo.
  __device__ __forceinline__ void slide(int unit, int part, int first, float (&sum)[kSlide]) const {
    const int span = conv.span(), half = conv.k / 2;
    const float* q = conv.image(unit / conv.k);
    const float* du = conv.image(2) + half * span + half;
    for (int r = part * rows; r < (part + 1) * rows && r < kGateTile; ++r) {
      const float* line = q + (r + unit % conv.k) * span + first;
      const int room = span - first;  // columns from there on
      float window[kSlide];
#pragma unroll
      for (int j = 0; j < kSlide - 1; ++j) window[j + 1] = j < room ? line[j] : 0.0f;
      for (int c = 0; c < kGateTile; ++c) {
#pragma unroll
        for (int j = 0; j < kSlide - 1; ++j) window[j] = window[j + 1];
        window[kSlide - 1] = c + kSlide - 1 < room ? line[c + kSlide - 1] : 0.0f;
        const float d = du[r * span + c];
#pragma unroll
        for (int j = 0; j < kSlide; ++j) sum[j] = fmaf(window[j], d, sum[j]);
      }
    }
  }

  // Adds this tile's sums to tap_parts[tap, block]; called by all threads between two barriers.
  __device__ __forceinline__ void add(const Plane& plane, bool fresh) const {
    const int k = conv.k, taps = 2 * k * k;
    const int unit = threadIdx.x % units, part = threadIdx.x / units;
    float sum[kChunks][kSlide] = {};
    if (part < parts)
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
        if (chunk * kSlide < k) slide(unit, part, chunk * kSlide, sum[chunk]);
    __syncthreads();  // the images have been read by all; their place takes the sums
    float* const sums = conv.shared;
#pragma unroll
    for (int j = 0; j < kChunks * kSlide; ++j)
      if (part < parts && j < k) sums[part * taps + unit * k + j] = sum[j / kSlide][j % kSlide];
    __syncthreads();
    for (int i = threadIdx.x; i < taps; i += kGateThreads) {
      float* const to = plane.tap_parts + static_cast<int64_t>(i) * kGateBlocks + blockIdx.x;
      float total = fresh ? 0.0f : *to;
      for (int s = 0; s < parts; ++s) total += sums[s * taps + i];
      *to = total;
    }
  }
};

// The block sums of gate_gradients_kernel, added up by every block for itself.
__device__ __forceinline__ float plane_sum(const Plane& plane, int which) {
  const int i = threadIdx.x;
  return block_sum<kGateThreads>(i < plane.blocks ? plane.moments[which * kGateBlocks + i] : 0.0f);
}

// grad_max, grad_mean (over the axis' length) of every position, this block's gradients of the
// taps, and from each plane's first block the gradients of its batch norm.
template <int K>
__global__ void __launch_bounds__(kGateThreads, 2)
    plane_gradients_kernel(const __grid_constant__ Triplet t) {
  MEDSEG_DYNAMIC_SHARED(float, shared);
  const Plane& plane = t.plane[blockIdx.y];
  if (plane.gate < 0 || blockIdx.x >= static_cast<unsigned>(plane.blocks)) return;
  const Conv<K> conv(t.taps, 3, shared);
  conv.load_taps(t, plane, true);
  const float sum = plane_sum(plane, 0), product = plane_sum(plane, 1);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    t.grad_bn_bias[plane.gate] = sum;
    t.grad_bn_weight[plane.gate] = product;
  }
  const float count = static_cast<float>(t.x.n * plane.size);
  const float mean = t.training ? sum / count : 0.0f;
  const float slope = t.training ? product / count : 0.0f;
  const float steep = load_param(t.bn_weight, plane.gate) * t.stats[2 * t.gates + plane.gate];
  for (int64_t item = blockIdx.x; item < t.x.n * plane.tiles; item += plane.blocks) {
    const GateTile tile(plane, item);
    __syncthreads();  // the tile before may still be read
    conv.for_halo(plane, tile, [&](int slot, bool inside, bool, int64_t position) {
      const int64_t at = tile.n * plane.size + position;
      conv.image(0)[slot] = inside ? plane.max[at] : 0.0f;
      conv.image(1)[slot] = inside ? plane.mean[at] : 0.0f;
      const float du = inside ? steep * (plane.dv[at] - mean - plane.uhat[at] * slope) : 0.0f;
      conv.image(2)[slot] = du;
    });
    __syncthreads();
    float max[4] = {}, average[4] = {};
    conv.apply(conv.image(2), conv.taps_of(0), max);
    conv.apply(conv.image(2), conv.taps_of(1), average);
#pragma unroll
    for (int o = 0; o < 4; ++o) {
      if (!tile.inside(plane, o)) continue;
      plane.grad_max[tile.at(plane, o)] = max[o];
      plane.grad_mean[tile.at(plane, o)] = average[o] / static_cast<float>(plane.length);
    }
    TapSums<K>(conv).add(plane, item == blockIdx.x);
  }
}

template <class Kernel>
cudaError_t run(Kernel* seven, Kernel* three, Kernel* any, int images, const Triplet& t,
                cudaStream_t stream) {
  Kernel* kernel = t.taps == 7 ? seven : t.taps == 3 ? three : any;
  return launch(kernel, gate_grid(t), kGateThreads, conv_shared(t.taps, images), stream, t);
}

}  // namespace

cudaError_t launch_gate_gradients(const Triplet& t, cudaStream_t stream) {
  return run(gate_gradients_kernel<7>, gate_gradients_kernel<3>, gate_gradients_kernel<0>, 2, t,
             stream);
}

cudaError_t launch_plane_gradients(const Triplet& t, cudaStream_t stream) {
  return run(plane_gradients_kernel<7>, plane_gradients_kernel<3>, plane_gradients_kernel<0>, 3, t,
             stream);
}

}  // namespace medseg::cuda

// From pooled planes to gates: u = conv(max, mean), v = bn(u), gate = sigmoid(v).
//
// A block owns 32 x 32 positions of one plane at a time, a thread 4 of them, one below the other.
// It reads its haloed piece of the plane (adding up the pool's partials on the way), so the planes
// themselves never go to memory unless backward will ask for them. Bytes: planes are 1/C + 1/H +
// 1/W of x; the partials are read 1.4 times, the gates written once.
#include "triplet_tile.cuh"

namespace medseg::cuda {
namespace {

// Maximum and mean at `at` of image n, from the partials; kept for backward when `keep`.
__device__ __forceinline__ void gather(const Triplet& t, const Plane& plane, int64_t n, int64_t at,
                                       bool keep, float* max, float* mean) {
  float best = -INFINITY;
  int64_t arg = 0;
  const float sum = part_sum(plane.parts, [&](int64_t part) {
    const int64_t i = (n * plane.parts + part) * plane.size + at;
    const float value = load_as_float(plane.part_max, t.dtype, i);
    // Parts come in order, so the first of equal maxima stays; NaN counts as the largest.
    const bool better = part == 0 || value > best || (value != value && best == best);
    if (better) best = value;
    if (keep && better) arg = part * plane.tile + plane.part_arg[i];
    return plane.part_sum[i];
  });
  *max = best;
  *mean = sum / static_cast<float>(plane.length);
  if (!keep) return;
  const int64_t to = n * plane.size + at;
  plane.max[to] = *max;
  plane.mean[to] = *mean;
  if (t.index_bytes == 2) static_cast<int16_t*>(plane.index)[to] = static_cast<int16_t>(arg);
  if (t.index_bytes == 4) static_cast<int32_t*>(plane.index)[to] = static_cast<int32_t>(arg);
}

// Mean and sum of squared deviations of what the block has seen, joined as by Chan et al.
struct Moments {
  float count, mean, squares;
};

__device__ __forceinline__ Moments join(const Moments& a, const Moments& b) {
  const float count = a.count + b.count;
  if (count == 0.0f) return a;
  const float delta = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + delta * share, a.squares + b.squares + delta * delta * a.count * share};
}

// The moments of the block's 4 * kGateThreads values, those that lie inside the plane.
__device__ __forceinline__ Moments tile_moments(const GateTile& tile, const Plane& plane,
                                                const float (&u)[4]) {
  float sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int o = 0; o < 4; ++o) sum += tile.inside(plane, o) ? u[o] : 0.0f;
  const float count = tile.positions(plane);
  const float mean = block_sum<kGateThreads>(sum) / count;
#pragma unroll
  for (int o = 0; o < 4; ++o) squares += tile.inside(plane, o) ? (u[o] - mean) * (u[o] - mean) : 0;
  return {count, mean, block_sum<kGateThreads>(squares)};
}

// Inference: gated = sigmoid(bn(u)) and the statistics that were used. Training: gated = u and the
// moments of this block's tiles. blockIdx.y is the plane.
template <int K>
__global__ void __launch_bounds__(kGateThreads, 2) gate_kernel(const __grid_constant__ Triplet t) {
  MEDSEG_DYNAMIC_SHARED(float, shared);
  const Plane& plane = t.plane[blockIdx.y];
  if (plane.gate < 0 || blockIdx.x >= static_cast<unsigned>(plane.blocks)) return;
  const Conv<K> conv(t.taps, 2, shared);
  conv.load_taps(t, plane, false);
  Moments seen{0.0f, 0.0f, 0.0f};
  const Norm norm = t.training ? Norm{} : running_norm(t, plane.gate);
  for (int64_t item = blockIdx.x; item < t.x.n * plane.tiles; item += plane.blocks) {
    const GateTile tile(plane, item);
    __syncthreads();  // the tile before may still be read
    conv.for_halo(plane, tile, [&](int slot, bool inside, bool core, int64_t at) {
      float max = 0.0f, mean = 0.0f;
      if (inside) gather(t, plane, tile.n, at, core && t.keep, &max, &mean);
      conv.image(0)[slot] = max;
      conv.image(1)[slot] = mean;
    });
    __syncthreads();
    float u[4] = {};
    conv.apply(conv.image(0), conv.taps_of(0), u);
    conv.apply(conv.image(1), conv.taps_of(1), u);
    if (t.training) seen = join(seen, tile_moments(tile, plane, u));
#pragma unroll
    for (int o = 0; o < 4; ++o)
      if (tile.inside(plane, o))
        plane.gated[tile.at(plane, o)] = t.training ? u[o] : sigmoid(norm.value(u[o]));
  }
  if (threadIdx.x != 0) return;
  if (t.training) {
    plane.moments[blockIdx.x] = seen.count;
    plane.moments[kGateBlocks + blockIdx.x] = seen.mean;
    plane.moments[2 * kGateBlocks + blockIdx.x] = seen.squares;
  } else if (blockIdx.x == 0) {
    t.stats[plane.gate] = norm.mean;
    t.stats[t.gates + plane.gate] = load_param(t.running_var, plane.gate);
    t.stats[2 * t.gates + plane.gate] = norm.rstd;
  }
}

// The moments of all blocks of a plane, joined in a fixed tree; every thread gets them.
__device__ __forceinline__ Moments plane_moments(const Plane& plane) {
  struct Tree {
    Moments node[kGateThreads];
  };
  MEDSEG_SHARED(Tree, tree);
  static_assert(kGateBlocks <= kGateThreads, "one thread reads one block's moments");
  const int i = threadIdx.x;
  tree.node[i] = i < plane.blocks ? Moments{plane.moments[i], plane.moments[kGateBlocks + i],
                                            plane.moments[2 * kGateBlocks + i]}
                                  : Moments{0.0f, 0.0f, 0.0f};
  for (int half = kGateThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (i < half) tree.node[i] = join(tree.node[i], tree.node[i + half]);
  }
  __syncthreads();
  return tree.node[0];
}

// Training: gated = sigmoid(bn(u)) in place by the statistics of the batch, which are also written.
// Each block joins the moments of all (at most kGateBlocks) for itself: no launch for that alone.
__global__ void __launch_bounds__(kGateThreads)
    normalise_kernel(const __grid_constant__ Triplet t) {
  const Plane& plane = t.plane[blockIdx.y];
  if (plane.gate < 0) return;
  const Moments m = plane_moments(plane);
  const float variance = m.squares / m.count, rstd = 1.0f / sqrtf(variance + t.eps);
  const Norm norm = norm_of(t, plane.gate, m.mean, rstd);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGateThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kGateThreads + threadIdx.x;
#pragma unroll 4
  for (int64_t i = first; i < t.x.n * plane.size; i += step)
    plane.gated[i] = sigmoid(norm.value(plane.gated[i]));
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  t.stats[plane.gate] = m.mean;
  t.stats[t.gates + plane.gate] = m.squares / (m.count - 1.0f);
  t.stats[2 * t.gates + plane.gate] = rstd;
}

// Calls f(plane, position) for all positions of the batch; blockIdx.y is the plane.
template <class F>
__device__ __forceinline__ void for_positions(const Triplet& t, F f) {
  const Plane& plane = t.plane[blockIdx.y];
  if (plane.gate < 0) return;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGateThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kGateThreads + threadIdx.x;
  for (int64_t i = first; i < t.x.n * plane.size; i += step) f(plane, i);
}

// The pool's partials added up and kept, where no gates follow.
__global__ void __launch_bounds__(kGateThreads) planes_kernel(const __grid_constant__ Triplet t) {
  for_positions(t, [&](const Plane& plane, int64_t i) {
    float max, mean;
    gather(t, plane, i / plane.size, i % plane.size, true, &max, &mean);
  });
}

// gated = the dot's partials added up, over the number of gates: a gate's gradient.
__global__ void __launch_bounds__(kGateThreads)
    gate_sums_kernel(const __grid_constant__ Triplet t) {
  for_positions(t, [&](const Plane& plane, int64_t i) {
    const float* const parts =
        plane.part_sum + i / plane.size * plane.parts * plane.size + i % plane.size;
    const float sum = part_sum(plane.parts, [&](int64_t part) { return parts[part * plane.size]; });
    plane.gated[i] = sum * t.scale;
  });
}

}  // namespace

cudaError_t launch_planes(const Triplet& t, cudaStream_t stream) {
  return launch(planes_kernel, gate_grid(t), kGateThreads, 0, stream, t);
}

cudaError_t launch_gate_sums(const Triplet& t, cudaStream_t stream) {
  return launch(gate_sums_kernel, gate_grid(t), kGateThreads, 0, stream, t);
}

cudaError_t launch_gates(const Triplet& t, cudaStream_t stream) {
  auto* kernel = t.taps == 7 ? gate_kernel<7> : t.taps == 3 ? gate_kernel<3> : gate_kernel<0>;
  return launch(kernel, gate_grid(t), kGateThreads, conv_shared(t.taps, 2), stream, t);
}

cudaError_t launch_normalise(const Triplet& t, cudaStream_t stream) {
  return launch(normalise_kernel, gate_grid(t), kGateThreads, 0, stream, t);
}

}  // namespace medseg::cuda

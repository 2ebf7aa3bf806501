// ECA on the GPU: out = s * sigmoid(bias + conv1d over channels of mean_hw(s)), s = x or
// x + residual, and with pool = 2 the 2x2 max-pool of that (eca_windows.cuh).
//
// Forward: one launch pools x, one scales it: x is read twice and out written once (2R 1W, the
// floor of specs for maps beyond L2; the second pass walks backwards, so that what the first one
// read last is still in L2). Backward: one launch takes dg = sum grad_out * x, one writes grad_x =
// grad_out * gate + ds / hw (3R 1W); its first blocks sum the gradients of the taps, and only
// beyond kTapPlanes planes does a third launch add up their slices. How a sum is cut depends on the
// sizes alone, so the bits do not depend on the card.
#include "eca_windows.cuh"

namespace medseg::cuda {
namespace {

constexpr int64_t kTargetBlocks = 1024;  // about eight per multiprocessor of a large card
constexpr int64_t kTapPlanes = 8192;     // planes one block sums for a tap's gradient
constexpr int64_t kLargestTaps = 8191;   // their channels must fit in shared memory

// Cuts `length` positions, present in `rows` independent rows, into parts of at least `least`.
void cut(int64_t length, int64_t rows, int64_t least, int64_t most, int64_t multiple, int* parts,
         int64_t* part) {
  const int64_t wanted = std::min(ceil_div(kTargetBlocks, rows), ceil_div(length, least));
  const int64_t count = std::max<int64_t>(1, std::min(wanted, most));
  *part = ceil_div(ceil_div(length, count), multiple) * multiple;
  *parts = static_cast<int>(ceil_div(length, *part));
}

// `windows`: whether the sums too, and not only the map after them, go over windows.
EcaPlan plan_of(int dtype, const EcaShape& s, bool windows) {
  EcaPlan p{};
  p.n = s.n, p.c = s.c, p.hw = s.hw, p.h = s.hw / s.w, p.w = s.w;
  p.stride_n = s.stride_n, p.pitch = s.pitch;
  p.taps = s.taps;
  p.slab = static_cast<int>(kLanes * 16 / dtype_size(dtype));
  p.slabs = static_cast<int>(ceil_div(s.c, p.slab));
  const int64_t columns = s.channels_last ? 2 : 16 / dtype_size(dtype);  // of two rows at a time
  p.runs = ceil_div(p.h, 2) * ceil_div(p.w, columns);
  const int64_t summed = windows ? p.runs : p.hw, mapped = s.pool == 2 ? p.runs : p.hw;
  if (s.channels_last) {
    // Every block of the second pass adds up the parts of its channels: no more than 128 of them.
    cut(summed, s.n * p.slabs, windows ? 64 : 256, 128, kRows, &p.parts, &p.part);
    cut(mapped, s.n * p.slabs, 64, kTargetBlocks, kRows, &p.map_parts, &p.map_part);
  } else {
    const int64_t run = 2 * columns;
    cut(summed, s.n * s.c, windows ? 8192 / run : 8192, kTargetBlocks, windows ? kThreads : 1024,
        &p.parts, &p.part);
    cut(mapped, s.n * s.c, s.pool == 2 ? 8192 / run : 8192, kTargetBlocks, 1024, &p.map_parts,
        &p.map_part);
  }
  p.tap_slices = static_cast<int>(ceil_div(s.n * s.c, kTapPlanes));
  return p;
}

bool fits(const EcaShape& s) { return s.taps >= 1 && s.taps <= kLargestTaps; }

// Whether 16-byte accesses may be used on rows of `row` elements of such maps.
template <class T, class... P>
bool vectors(const EcaPlan& p, int64_t row, const P*... maps) {
  constexpr int64_t V = kVector<T>;
  return (aligned16(maps) && ...) && row % V == 0 && p.pitch % V == 0 && p.stride_n % V == 0;
}

// Threads on one plane: a warp for a small one, else the whole block.
bool small_planes(const EcaPlan& p, int parts) { return parts == 1 && p.hw <= 2048; }

unsigned plane_blocks(const EcaPlan& p, int parts, bool small) {
  return static_cast<unsigned>(ceil_div(p.n * p.c * parts, small ? kThreads / kWarp : 1));
}

size_t pixel_shared(const EcaPlan& p) { return (3 * p.slab + p.taps - 1) * sizeof(float); }

template <class T, Term TERM>
cudaError_t reduce(const EcaPlan& p, bool channels_last, const void* x, const void* y, void* summed,
                   float* partial, cudaStream_t stream) {
  const T* tx = static_cast<const T*>(x);
  const T* ty = static_cast<const T*>(y);
  T* sum = static_cast<T*>(summed);
  if (channels_last) {
    const bool aligned = vectors<T>(p, p.c, tx, ty, sum);
    auto* kernel = aligned ? reduce_pixels<T, TERM, true> : reduce_pixels<T, TERM, false>;
    const dim3 grid(static_cast<unsigned>(p.n * p.slabs * p.parts));
    return launch(kernel, grid, kThreads, 0, stream, p, tx, ty, sum, partial);
  }
  const bool small = small_planes(p, p.parts);
  auto* kernel = small ? reduce_planes<T, TERM, kWarp> : reduce_planes<T, TERM, kThreads>;
  const dim3 grid(plane_blocks(p, p.parts, small));
  return launch(kernel, grid, kThreads, 0, stream, p, tx, ty, sum, partial);
}

template <class T, bool BACKWARD>
cudaError_t map(const EcaPlan& p, bool channels_last, const void* x, void* out,
                const EcaGates& gates, cudaStream_t stream) {
  const T* tx = static_cast<const T*>(x);
  T* tout = static_cast<T*>(out);
  const unsigned extra = static_cast<unsigned>(gates.tap_blocks);
  if (channels_last) {
    const bool aligned = vectors<T>(p, p.c, tx, tout);
    auto* kernel = aligned ? map_pixels<T, BACKWARD, true> : map_pixels<T, BACKWARD, false>;
    const unsigned blocks = out ? static_cast<unsigned>(p.n * p.slabs * p.map_parts) : 0;
    const dim3 grid(blocks + extra);
    return launch(kernel, grid, kThreads, pixel_shared(p), stream, p, tx, tout, gates);
  }
  const bool small = small_planes(p, p.parts);
  auto* kernel = small ? map_planes<T, BACKWARD, kWarp> : map_planes<T, BACKWARD, kThreads>;
  const unsigned blocks = out ? plane_blocks(p, p.parts, small) : 0;
  return launch(kernel, dim3(blocks + extra), kThreads, 0, stream, p, tx, tout, gates);
}

// One pass over the windows; kSpread without an `out` only sums the gradients of the taps.
template <class T, Pass PASS>
cudaError_t windows(const EcaPlan& p, bool channels_last, const EcaMaps<T>& maps,
                    const EcaGates& gates, float* partial, cudaStream_t stream) {
  const bool aligned =
      vectors<T>(p, channels_last ? p.c : p.w, maps.x, maps.grad, maps.summed, maps.out) &&
      maps.summed_pitch % kVector<T> == 0 && maps.summed_n % kVector<T> == 0;
  const int parts = PASS == kSum ? p.parts : p.map_parts;
  const unsigned extra = PASS == kSpread ? static_cast<unsigned>(gates.tap_blocks) : 0;
  const bool writes = PASS == kSum || maps.out, small = small_planes(p, parts);
  if (channels_last) {
    auto* kernel = aligned ? windows_pixels<T, PASS, true> : windows_pixels<T, PASS, false>;
    const unsigned blocks = writes ? static_cast<unsigned>(p.n * p.slabs * parts) : 0;
    const dim3 grid(blocks + extra);
    return launch(kernel, grid, kThreads, pixel_shared(p), stream, p, maps, gates, partial);
  }
  const unsigned blocks = writes ? plane_blocks(p, parts, small) : 0;
  auto* kernel =
      aligned
          ? (small ? windows_planes<T, PASS, true, kWarp> : windows_planes<T, PASS, true, kThreads>)
          : (small ? windows_planes<T, PASS, false, kWarp>
                   : windows_planes<T, PASS, false, kThreads>);
  return launch(kernel, dim3(blocks + extra), kThreads, 0, stream, p, maps, gates, partial);
}

// What the second pass reads: the dense sum of the first, or x with its gaps; grad_out likewise.
EcaPlan dense(EcaPlan p, bool channels_last) {
  p.stride_n = p.c * p.hw;
  p.pitch = channels_last ? p.c : p.hw;
  return p;
}

template <class T>
cudaError_t run_forward(const EcaPlan& first, const EcaForward& a, const EcaGates& gates,
                        cudaStream_t stream) {
  const bool last = a.shape.channels_last;
  float* partial = static_cast<float*>(a.scratch);
  const cudaError_t error =
      a.residual ? reduce<T, kAdd>(first, last, a.x, a.residual, a.summed, partial, stream)
                 : reduce<T, kOne>(first, last, a.x, nullptr, nullptr, partial, stream);
  if (error != cudaSuccess) return error;
  const EcaPlan p = a.residual ? dense(first, last) : first;
  const void* x = a.residual ? a.summed : a.x;
  if (a.shape.pool != 2) return map<T, false>(p, last, x, a.out, gates, stream);
  const EcaMaps<T> maps{static_cast<const T*>(x), nullptr, nullptr, 0, 0, static_cast<T*>(a.out)};
  return windows<T, kPool>(p, last, maps, gates, nullptr, stream);
}

template <class T>
cudaError_t run_backward(const EcaPlan& p, const EcaBackward& a, const EcaGates& gates,
                         cudaStream_t stream) {
  const bool last = a.shape.channels_last;
  float* partial = static_cast<float*>(a.scratch);
  if (a.shape.pool != 2) {
    const cudaError_t error = reduce<T, kDot>(p, last, a.x, a.grad_out, nullptr, partial, stream);
    if (error != cudaSuccess) return error;
    return map<T, true>(dense(p, last), last, a.grad_out, a.grad_x, gates, stream);
  }
  const EcaMaps<T> maps{static_cast<const T*>(a.x),
                        static_cast<const T*>(a.grad_out),
                        static_cast<const T*>(a.grad_summed),
                        a.summed_n,
                        a.summed_pitch,
                        static_cast<T*>(a.grad_x)};
  const cudaError_t error = windows<T, kSum>(p, last, maps, gates, partial, stream);
  if (error != cudaSuccess) return error;
  return windows<T, kSpread>(p, last, maps, gates, nullptr, stream);
}

}  // namespace

size_t eca_scratch(int dtype, const EcaShape& shape) {
  if (shape.n * shape.c * shape.hw == 0) return 256;
  const EcaPlan p = plan_of(dtype, shape, false), q = plan_of(dtype, shape, true);
  return (p.n * p.c * std::max(p.parts, q.parts) +
          (p.taps + 1) * static_cast<int64_t>(p.tap_slices)) *
         sizeof(float);
}

cudaError_t eca_forward(int dtype, const EcaForward& a, cudaStream_t stream) {
  const EcaShape& s = a.shape;
  if (!fits(s)) return cudaErrorInvalidValue;
  if (s.n * s.c * s.hw == 0) return cudaSuccess;
  const EcaPlan p = plan_of(dtype, s, false);
  EcaGates gates{};
  gates.weight = a.weight, gates.bias = a.bias;
  gates.partial = static_cast<float*>(a.scratch);
  gates.pooled = a.saved, gates.gate = a.saved + s.n * s.c;
  return with_dtype(
      dtype, [&](auto element) { return run_forward<decltype(element)>(p, a, gates, stream); });
}

cudaError_t eca_backward(int dtype, const EcaBackward& a, cudaStream_t stream) {
  const EcaShape& s = a.shape;
  if (!fits(s)) return cudaErrorInvalidValue;
  if (s.n * s.c * s.hw == 0) {
    const cudaError_t error = set_zero(a.grad_weight, s.taps, stream);
    return error != cudaSuccess ? error : set_zero(a.grad_bias, 1, stream);
  }
  const EcaPlan p = plan_of(dtype, s, s.pool == 2);
  EcaGates gates{};
  gates.weight = a.weight;
  gates.grad_weight = a.grad_weight, gates.grad_bias = a.grad_bias;
  float* partial = static_cast<float*>(a.scratch);
  gates.partial = partial;
  gates.pooled = const_cast<float*>(a.saved);
  gates.gate = gates.pooled + s.n * s.c;
  gates.slices = partial + s.n * s.c * p.parts;
  gates.tap_blocks = (s.taps + 1) * p.tap_slices;
  const cudaError_t error = with_dtype(
      dtype, [&](auto element) { return run_backward<decltype(element)>(p, a, gates, stream); });
  if (error != cudaSuccess || p.tap_slices == 1) return error;
  return launch(add_slices, dim3(s.taps + 1), kThreads, 0, stream, p, gates);
}

}  // namespace medseg::cuda

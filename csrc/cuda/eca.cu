// ECA on the GPU: out = x * sigmoid(bias + conv1d over channels of mean_hw(x)).
//
// Forward: one launch pools x, one scales it: x is read twice and out written once (2R 1W, the
// floor of specs for maps beyond L2; the second pass walks backwards, so that what the first one
// read last is still in L2). Backward: one launch takes dg = sum grad_out * x, one writes grad_x =
// grad_out * gate + ds / hw (3R 1W); its first blocks sum the gradients of the taps, and only
// beyond kTapPlanes planes does a third launch add up their slices. How a sum is cut depends on the
// sizes alone, so the bits do not depend on the card.
#include "eca_pixels.cuh"
#include "eca_planes.cuh"

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

EcaPlan plan_of(int dtype, const EcaShape& s) {
  EcaPlan p{};
  p.n = s.n, p.c = s.c, p.hw = s.hw;
  p.stride_n = s.stride_n, p.pitch = s.pitch;
  p.taps = s.taps;
  p.slab = static_cast<int>(kLanes * 16 / dtype_size(dtype));
  p.slabs = static_cast<int>(ceil_div(s.c, p.slab));
  if (s.channels_last) {
    // Every block of the second pass adds up the parts of its channels: no more than 128 of them.
    cut(s.hw, s.n * p.slabs, 256, 128, kRows, &p.parts, &p.part);
    cut(s.hw, s.n * p.slabs, 64, kTargetBlocks, kRows, &p.map_parts, &p.map_part);
  } else {
    cut(s.hw, s.n * s.c, 8192, kTargetBlocks, 1024, &p.parts, &p.part);
    p.map_parts = p.parts, p.map_part = p.part;
  }
  p.tap_slices = static_cast<int>(ceil_div(s.n * s.c, kTapPlanes));
  return p;
}

bool fits(const EcaShape& s) { return s.taps >= 1 && s.taps <= kLargestTaps; }

// Whether 16-byte accesses may be used on rows of `dense` elements that lie `pitch` apart.
bool vectors(int dtype, const EcaShape& s, const void* x, const void* other) {
  const int64_t v = 16 / dtype_size(dtype);
  return aligned16(x) && aligned16(other) && s.c % v == 0 && s.pitch % v == 0 &&
         s.stride_n % v == 0;
}

// Threads on one plane: a warp for a small one, else the whole block.
bool small_planes(const EcaPlan& p) { return p.parts == 1 && p.hw <= 2048; }

unsigned plane_blocks(const EcaPlan& p, bool small) {
  return static_cast<unsigned>(ceil_div(p.n * p.c * p.parts, small ? kThreads / kWarp : 1));
}

template <class T, bool DOT>
cudaError_t reduce(const EcaPlan& p, bool channels_last, bool aligned, const void* x, const void* y,
                   float* partial, cudaStream_t stream) {
  const T* tx = static_cast<const T*>(x);
  const T* ty = static_cast<const T*>(y);
  if (channels_last) {
    auto* kernel = aligned ? reduce_pixels<T, DOT, true> : reduce_pixels<T, DOT, false>;
    const dim3 grid(static_cast<unsigned>(p.n * p.slabs * p.parts));
    return launch(kernel, grid, kThreads, 0, stream, p, tx, ty, partial);
  }
  const bool small = small_planes(p);
  auto* kernel = small ? reduce_planes<T, DOT, kWarp> : reduce_planes<T, DOT, kThreads>;
  return launch(kernel, dim3(plane_blocks(p, small)), kThreads, 0, stream, p, tx, ty, partial);
}

template <class T, bool BACKWARD>
cudaError_t map(const EcaPlan& p, bool channels_last, bool aligned, const void* x, void* out,
                const EcaGates& gates, cudaStream_t stream) {
  const T* tx = static_cast<const T*>(x);
  T* tout = static_cast<T*>(out);
  const unsigned extra = static_cast<unsigned>(gates.tap_blocks);
  if (channels_last) {
    auto* kernel = aligned ? map_pixels<T, BACKWARD, true> : map_pixels<T, BACKWARD, false>;
    const unsigned blocks = out ? static_cast<unsigned>(p.n * p.slabs * p.map_parts) : 0;
    const size_t shared = (3 * p.slab + p.taps - 1) * sizeof(float);
    return launch(kernel, dim3(blocks + extra), kThreads, shared, stream, p, tx, tout, gates);
  }
  const bool small = small_planes(p);
  auto* kernel = small ? map_planes<T, BACKWARD, kWarp> : map_planes<T, BACKWARD, kThreads>;
  const unsigned blocks = out ? plane_blocks(p, small) : 0;
  return launch(kernel, dim3(blocks + extra), kThreads, 0, stream, p, tx, tout, gates);
}

}  // namespace

size_t eca_scratch(int dtype, const EcaShape& shape) {
  if (shape.n * shape.c * shape.hw == 0) return 256;
  const EcaPlan p = plan_of(dtype, shape);
  return (p.n * p.c * p.parts + (p.taps + 1) * static_cast<int64_t>(p.tap_slices)) * sizeof(float);
}

cudaError_t eca_forward(int dtype, const EcaForward& a, cudaStream_t stream) {
  const EcaShape& s = a.shape;
  if (!fits(s)) return cudaErrorInvalidValue;
  if (s.n * s.c * s.hw == 0) return cudaSuccess;
  const EcaPlan p = plan_of(dtype, s);
  const bool aligned = vectors(dtype, s, a.x, a.out);
  float* partial = static_cast<float*>(a.scratch);
  EcaGates gates{};
  gates.weight = a.weight, gates.bias = a.bias;
  gates.partial = partial;
  gates.pooled = a.saved, gates.gate = a.saved + s.n * s.c;
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const cudaError_t error =
        reduce<T, false>(p, s.channels_last, aligned, a.x, nullptr, partial, stream);
    if (error != cudaSuccess) return error;
    return map<T, false>(p, s.channels_last, aligned, a.x, a.out, gates, stream);
  });
}

cudaError_t eca_backward(int dtype, const EcaBackward& a, cudaStream_t stream) {
  const EcaShape& s = a.shape;
  if (!fits(s)) return cudaErrorInvalidValue;
  if (s.n * s.c * s.hw == 0) {
    const cudaError_t error = set_zero(a.grad_weight, s.taps, stream);
    return error != cudaSuccess ? error : set_zero(a.grad_bias, 1, stream);
  }
  const EcaPlan p = plan_of(dtype, s);
  EcaGates gates{};
  gates.weight = a.weight;
  gates.grad_weight = a.grad_weight, gates.grad_bias = a.grad_bias;
  float* partial = static_cast<float*>(a.scratch);
  gates.partial = partial;
  gates.pooled = const_cast<float*>(a.saved);
  gates.gate = gates.pooled + s.n * s.c;
  gates.slices = partial + s.n * s.c * p.parts;
  gates.tap_blocks = (s.taps + 1) * p.tap_slices;
  const cudaError_t error = with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const bool aligned = vectors(dtype, s, a.x, a.grad_out);
    const cudaError_t failed =
        reduce<T, true>(p, s.channels_last, aligned, a.x, a.grad_out, partial, stream);
    if (failed != cudaSuccess) return failed;
    EcaPlan dense = p;  // from here on grad_out takes the place of x, and it has no gaps
    dense.stride_n = s.c * s.hw;
    dense.pitch = s.channels_last ? s.c : s.hw;
    const bool even = aligned16(a.grad_out) && aligned16(a.grad_x) && s.c % kVector<T> == 0;
    return map<T, true>(dense, s.channels_last, even, a.grad_out, a.grad_x, gates, stream);
  });
  if (error != cudaSuccess || p.tap_slices == 1) return error;
  return launch(add_slices, dim3(s.taps + 1), kThreads, 0, stream, p, gates);
}

}  // namespace medseg::cuda

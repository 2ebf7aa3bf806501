// Triplet attention on the GPU: y = x * mean over gates of sigmoid(bn(conv(max, mean of x))).
//
// Launches: inference 3 (pool, gates, apply), training 4 (pool, gates, normalise, apply), backward
// 4 (dot, gate gradients, plane gradients, grad_x). x is read twice and written once forward, and
// (x, grad_out, grad_out) read and grad_x written backward: the floor of specs/ops.md for maps
// beyond L2, plus the planes. How tiles are cut depends on the sizes alone, and no sum is taken in
// an order that depends on timing, so the bits are the same on every run and on every card.
#include <algorithm>

#include "triplet.cuh"

namespace medseg::cuda {
namespace {

constexpr int64_t kTargetBlocks = 512;           // four per multiprocessor of a large card
constexpr int kLeastDepth = 8, kMostDepth = 64;  // of a tile, along a0; an argmax in it is a byte

// Hands out aligned pieces of the caller's scratch; without a base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }
  void* take_bytes(int64_t bytes) {
    void* const piece = base_ ? base_ + used_ : nullptr;
    used_ += ceil_div(bytes, 256) * 256;
    return piece;
  }
  size_t used() const { return static_cast<size_t>(used_); }

 private:
  char* base_;
  int64_t used_ = 0;
};

// Tiles of 128 bytes of a2 and 16 * rows of a1; deep enough along a0 to spare partials, shallow
// enough to fill the card.
Tiling tiling_of(const Volume& v, int rows, int64_t element) {
  Tiling t{};
  t.size[1] = kTileRows * rows;
  t.size[2] = static_cast<int>(kLanes * 16 / element);
  t.count[1] = ceil_div(v.a[1], t.size[1]);
  t.count[2] = ceil_div(v.a[2], t.size[2]);
  const int64_t columns = std::max<int64_t>(1, v.n * t.count[1] * t.count[2]);
  const int64_t wanted = ceil_div(v.a[0], ceil_div(kTargetBlocks, columns));
  t.size[0] = static_cast<int>(std::clamp<int64_t>(wanted, kLeastDepth, kMostDepth));
  t.count[0] = ceil_div(v.a[0], t.size[0]);
  return t;
}

void shape_plane(Plane& plane, int m, const TripletShape& s, const Tiling& pool) {
  plane.gate = s.gate[m];
  plane.turned = s.turned[m];
  plane.rows = static_cast<int>(s.a[m == 0 ? 1 : 0]);
  plane.cols = static_cast<int>(s.a[m == 2 ? 1 : 2]);
  plane.size = static_cast<int64_t>(plane.rows) * plane.cols;
  plane.length = s.a[m];
  plane.tile = pool.size[m];
  plane.parts = pool.count[m];
  plane.tiles_across = ceil_div(plane.cols, kGateTile);
  plane.tiles = plane.tiles_across * ceil_div(plane.rows, kGateTile);
  plane.blocks = static_cast<int>(std::min<int64_t>(s.n * plane.tiles, kGateBlocks));
}

void take_scratch(Triplet& t, Plane& plane, Arena& arena, bool backward) {
  const int64_t positions = t.x.n * plane.size, partials = positions * plane.parts;
  plane.part_sum = arena.take<float>(partials);
  plane.gated = arena.take<float>(positions);
  plane.moments = arena.take<float>(3 * kGateBlocks);
  if (!backward) {
    plane.part_max = arena.take_bytes(partials * dtype_size(t.dtype));
    plane.part_arg = arena.take<uint8_t>(partials);
    return;
  }
  plane.dv = arena.take<float>(positions);
  plane.uhat = arena.take<float>(positions);
  plane.grad_max = arena.take<float>(positions);
  plane.grad_mean = arena.take<float>(positions);
  plane.tap_parts = arena.take<float>(static_cast<int64_t>(2 * t.taps * t.taps) * kGateBlocks);
}

Triplet plan_of(int dtype, const TripletShape& s, bool backward, Arena& arena) {
  Triplet t{};
  t.dtype = dtype, t.gates = s.gates, t.taps = s.taps;
  t.eps = s.eps, t.scale = 1.0f / static_cast<float>(s.gates);
  t.training = s.training;
  t.x = Volume{s.n, {s.a[0], s.a[1], s.a[2]}, s.stride_n, s.stride_0, s.stride_1};
  t.dense = t.x;
  t.dense.stride_1 = s.a[2];
  t.dense.stride_0 = s.a[1] * s.a[2];
  t.dense.stride_n = s.a[0] * s.a[1] * s.a[2];
  const int rows = static_cast<int>(dtype_size(dtype));  // 16 elements of x per thread and step
  t.pool = tiling_of(t.x, rows, dtype_size(dtype));
  t.map = tiling_of(t.x, backward ? rows / 2 : rows, dtype_size(dtype));
  for (int m = 0; m < 3; ++m) {
    shape_plane(t.plane[m], m, s, t.pool);
    if (s.gate[m] >= 0) take_scratch(t, t.plane[m], arena, backward);
  }
  return t;
}

// Positions of the planes of the batch; each has as many maxima, means and argmaxes.
int64_t positions_of(const Triplet& t) {
  int64_t positions = 0;
  for (const Plane& plane : t.plane) positions += t.x.n * plane.size;
  return positions;
}

// Where each plane's kept maxima, means and argmaxes lie; planes without a gate have room too.
void place_kept(Triplet& t, float* planes, void* index, int index_bytes) {
  t.index_bytes = index_bytes;
  const int64_t positions = positions_of(t);
  char* at = static_cast<char*>(index);
  for (Plane& plane : t.plane) {
    plane.max = planes;
    plane.mean = planes + positions;
    plane.index = at;
    planes += t.x.n * plane.size;
    at += t.x.n * plane.size * index_bytes;
  }
}

// Where the gates that were made elsewhere lie.
void place_gates(Triplet& t, float* gates) {
  for (Plane& plane : t.plane) {
    plane.gated = gates;
    gates += t.x.n * plane.size;
  }
}

bool aligned_rows(const Volume& v, int dtype, const void* p) {
  const int64_t width = 16 / dtype_size(dtype);
  return aligned16(p) && v.a[2] % width == 0 && v.stride_n % width == 0 &&
         v.stride_0 % width == 0 && v.stride_1 % width == 0;
}

bool fits(const TripletShape& s) {
  return s.taps >= 1 && s.taps <= kMaxTripletTaps && (s.gates == 2 || s.gates == 3);
}

bool empty(const TripletShape& s) { return s.n * s.a[0] * s.a[1] * s.a[2] == 0; }

cudaError_t zero_gradients(const TripletBackward& a, cudaStream_t stream) {
  const int64_t gates = a.shape.gates, taps = 2 * a.shape.taps * a.shape.taps;
  cudaError_t error = set_zero(a.grad_conv_weight, gates * taps, stream);
  if (error == cudaSuccess) error = set_zero(a.grad_bn_weight, gates, stream);
  return error != cudaSuccess ? error : set_zero(a.grad_bn_bias, gates, stream);
}

}  // namespace

size_t triplet_scratch(int dtype, const TripletShape& shape, bool backward) {
  Arena arena(nullptr);
  if (!empty(shape)) plan_of(dtype, shape, backward, arena);
  return std::max<size_t>(arena.used(), 256);
}

cudaError_t triplet_forward(int dtype, const TripletForward& a, cudaStream_t stream) {
  if (!fits(a.shape)) return cudaErrorInvalidValue;
  if (empty(a.shape)) return set_zero(a.stats, 3 * a.shape.gates, stream);
  Arena arena(a.scratch);
  Triplet t = plan_of(dtype, a.shape, false, arena);
  t.conv_weight = a.conv_weight, t.bn_weight = a.bn_weight, t.bn_bias = a.bn_bias;
  t.running_mean = a.running_mean, t.running_var = a.running_var;
  t.stats = a.stats;
  t.keep = a.planes != nullptr;
  place_kept(t, a.planes, a.index, a.index_bytes);
  const bool aligned = aligned_rows(t.x, dtype, a.x);
  cudaError_t error = launch_pool(t, aligned, a.x, stream);
  if (error == cudaSuccess) error = launch_gates(t, stream);
  if (error == cudaSuccess && t.training) error = launch_normalise(t, stream);
  if (error != cudaSuccess) return error;
  return launch_apply(t, aligned && aligned16(a.out), a.x, a.out, stream);
}

cudaError_t triplet_backward(int dtype, const TripletBackward& a, cudaStream_t stream) {
  if (!fits(a.shape)) return cudaErrorInvalidValue;
  if (empty(a.shape)) return zero_gradients(a, stream);
  Arena arena(a.scratch);
  Triplet t = plan_of(dtype, a.shape, true, arena);
  t.conv_weight = a.conv_weight, t.bn_weight = a.bn_weight, t.bn_bias = a.bn_bias;
  t.stats = const_cast<float*>(a.stats);
  t.grad_conv_weight = a.grad_conv_weight;
  t.grad_bn_weight = a.grad_bn_weight, t.grad_bn_bias = a.grad_bn_bias;
  place_kept(t, const_cast<float*>(a.planes), const_cast<void*>(a.index), a.index_bytes);
  const bool even = aligned_rows(t.dense, dtype, a.grad_out);
  cudaError_t error = launch_dot(t, even && aligned_rows(t.x, dtype, a.x), a.x, a.grad_out, stream);
  if (error == cudaSuccess) error = launch_gate_gradients(t, stream);
  if (error == cudaSuccess) error = launch_plane_gradients(t, stream);
  if (error != cudaSuccess) return error;
  const bool vectors = even && aligned16(a.grad_x) && aligned16(a.index);
  return launch_grad_x(t, vectors, a.grad_out, a.grad_x, stream);
}

cudaError_t triplet_pool(int dtype, const TripletPart& a, cudaStream_t stream) {
  Arena arena(a.scratch);
  Triplet t = plan_of(dtype, a.shape, false, arena);
  t.keep = true;
  place_kept(t, a.planes, a.index, a.index_bytes);
  const cudaError_t error = launch_pool(t, aligned_rows(t.x, dtype, a.x), a.x, stream);
  return error != cudaSuccess ? error : launch_planes(t, stream);
}

cudaError_t triplet_pool_backward(int dtype, const TripletPart& a, cudaStream_t stream) {
  Arena arena(nullptr);
  Triplet t = plan_of(dtype, a.shape, true, arena);
  place_kept(t, a.planes, a.index, a.index_bytes);
  for (Plane& plane : t.plane) plane.grad_max = plane.max, plane.grad_mean = plane.mean;
  const bool even = aligned_rows(t.dense, dtype, a.mapped) && positions_of(t) % 4 == 0;
  const bool aligned = even && aligned16(a.planes) && aligned16(a.index);
  return launch_grad_x(t, aligned, nullptr, a.mapped, stream);
}

cudaError_t triplet_apply(int dtype, const TripletPart& a, cudaStream_t stream) {
  Arena arena(nullptr);
  Triplet t = plan_of(dtype, a.shape, false, arena);
  place_gates(t, const_cast<float*>(a.gates));
  const bool aligned = aligned_rows(t.x, dtype, a.x) && aligned16(a.mapped) && aligned16(a.gates);
  return launch_apply(t, aligned, a.x, a.mapped, stream);
}

cudaError_t triplet_apply_backward(int dtype, const TripletPart& a, cudaStream_t stream) {
  Arena arena(a.scratch);
  Triplet t = plan_of(dtype, a.shape, false, arena);
  const bool even = aligned_rows(t.dense, dtype, a.grad_out);
  cudaError_t error = launch_dot(t, even && aligned_rows(t.x, dtype, a.x), a.x, a.grad_out, stream);
  if (error != cudaSuccess) return error;
  place_gates(t, a.grad_gates);
  error = launch_gate_sums(t, stream);
  if (error != cudaSuccess) return error;
  place_gates(t, const_cast<float*>(a.gates));
  t.x = t.dense;
  const bool aligned = even && aligned16(a.mapped) && aligned16(a.gates);
  return launch_apply(t, aligned, a.grad_out, a.mapped, stream);
}

}  // namespace medseg::cuda

// Split attention on the GPU: out = sum_r a_r * u_r over the R splits of x, a = softmax over r of
// fc2(relu(bn(fc1(mean_hw(sum_r u_r))))), u = x or relu(x * scale + shift).
//
// Forward, four launches: pool, two on vectors, combine: x is read twice, out written once, the
// floor of specs for maps beyond L2; combine walks backwards, so that what the pool read last is
// still in L2. Backward, five: the dots grad_out * x, three on vectors, grad_x: x is read once,
// grad_out twice, grad_x written once. How a sum is cut depends on the sizes alone, so the bits do
// not depend on the card.
#include "split.cuh"

namespace medseg::cuda {
namespace {

constexpr int64_t kTargetBlocks = 1024;  // about eight per multiprocessor of a large card
constexpr int64_t kMostParts = 64;       // every block of fc1 adds up the parts of its channels

// Cuts `length` positions, present in `rows` independent rows, into parts of at least `least`.
void cut(int64_t length, int64_t rows, int64_t least, int64_t most, int64_t multiple, int* parts,
         int64_t* part) {
  const int64_t wanted = std::min(ceil_div(kTargetBlocks, rows), ceil_div(length, least));
  const int64_t count = std::max<int64_t>(1, std::min(wanted, most));
  *part = ceil_div(ceil_div(length, count), multiple) * multiple;
  *parts = static_cast<int>(ceil_div(length, *part));
}

bool fits(const SplitShape& s) {
  return s.radix >= 1 && s.radix <= kMaxRadix && s.cardinality >= 1 && s.inner >= 1 &&
         s.c % s.cardinality == 0 && s.inner % s.cardinality == 0;
}

bool empty(const SplitShape& s) { return s.n * s.c * s.hw == 0; }

Split plan_of(int dtype, const SplitShape& s) {
  Split t{};
  t.n = s.n, t.c = s.c, t.hw = s.hw, t.stride_n = s.stride_n, t.pitch = s.pitch;
  t.radix = s.radix, t.groups = s.cardinality, t.inner = s.inner;
  t.per_c = s.c / s.cardinality, t.per_i = s.inner / s.cardinality;
  t.channels_last = s.channels_last, t.training = s.training, t.eps = s.eps;
  t.slab = static_cast<int>(kLanes * 16 / dtype_size(dtype));
  t.slabs = static_cast<int>(ceil_div(s.c, t.slab));
  if (s.channels_last) {
    cut(s.hw, s.n * t.slabs, 128, kMostParts, kRows, &t.parts, &t.part);
    cut(s.hw, s.n * t.slabs, 64, kTargetBlocks, kRows, &t.map_parts, &t.map_part);
  } else {
    cut(s.hw, s.n * s.c, 4096, kMostParts, 1024, &t.parts, &t.part);
    t.map_parts = t.parts, t.map_part = t.part;
  }
  return t;
}

// Whether 16-byte accesses may be used on pixels of x and of the dense maps beside it.
bool vectors(int dtype, const SplitShape& s, const void* x, const void* a, const void* b) {
  const int64_t v = 16 / dtype_size(dtype);
  return aligned16(x) && aligned16(a) && aligned16(b) && s.c % v == 0 && s.pitch % v == 0 &&
         s.stride_n % v == 0;
}

// Hands out `scratch` to the buffers of a call; returns the floats in use. Null: counts only.
int64_t carve(Split* t, float* scratch, bool backward) {
  int64_t used = 0;
  const auto take = [&](int64_t count) {
    float* const at = scratch ? scratch + used : nullptr;
    used += count;
    return at;
  };
  t->sums = take(t->n * (backward ? t->radix : 1) * t->c * t->parts);
  t->hidden = take(t->inner * t->n);
  if (!backward) return used;
  t->dz = take(t->n * t->radix * t->c);
  t->dv = take(t->inner * t->n);
  t->dh = take(t->inner * t->n);
  t->ds = take(t->n * t->c);
  return used;
}

cudaError_t zero_gradients(const SplitShape& s, const SplitBackward& a, cudaStream_t stream) {
  const int64_t width = s.radix * s.c;
  const struct {
    float* data;
    int64_t count;
  } all[] = {{a.grad_fc1_weight, s.inner * (s.c / s.cardinality)},
             {a.grad_fc1_bias, s.inner},
             {a.grad_bn_weight, s.inner},
             {a.grad_bn_bias, s.inner},
             {a.grad_fc2_weight, width * (s.inner / s.cardinality)},
             {a.grad_fc2_bias, width}};
  for (const auto& one : all) {
    const cudaError_t error = set_zero(one.data, one.count, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

size_t split_scratch(int dtype, const SplitShape& shape, bool backward) {
  if (!fits(shape) || empty(shape)) return 256;
  Split t = plan_of(dtype, shape);
  return static_cast<size_t>(carve(&t, nullptr, backward)) * sizeof(float);
}

cudaError_t split_forward(int dtype, const SplitForward& a, cudaStream_t stream) {
  const SplitShape& s = a.shape;
  if (!fits(s)) return cudaErrorInvalidValue;
  if (empty(s)) return set_zero(a.stats, 3 * static_cast<int64_t>(s.inner), stream);
  Split t = plan_of(dtype, s);
  carve(&t, static_cast<float*>(a.scratch), false);
  t.x = a.x, t.mapped = a.out, t.stats = a.stats, t.saved = a.saved;
  t.aligned = vectors(dtype, s, a.x, a.out, a.out);
  t.scale = a.scale, t.shift = a.shift;
  t.fc1_weight = a.fc1_weight, t.fc1_bias = a.fc1_bias;
  t.bn_weight = a.bn_weight, t.bn_bias = a.bn_bias, t.mean = a.running_mean, t.var = a.running_var;
  t.fc2_weight = a.fc2_weight, t.fc2_bias = a.fc2_bias;
  cudaError_t error =
      (s.channels_last ? split_sum_pixels : split_sum_planes)(dtype, t, false, stream);
  if (error == cudaSuccess) error = split_attention_vectors(t, stream);
  if (error != cudaSuccess) return error;
  return (s.channels_last ? split_map_pixels : split_map_planes)(dtype, t, false, stream);
}

cudaError_t split_backward(int dtype, const SplitBackward& a, cudaStream_t stream) {
  const SplitShape& s = a.shape;
  if (!fits(s)) return cudaErrorInvalidValue;
  if (empty(s)) return zero_gradients(s, a, stream);
  Split t = plan_of(dtype, s);
  carve(&t, static_cast<float*>(a.scratch), true);
  t.x = a.x, t.grad = a.grad_out, t.mapped = a.grad_x;
  t.stats = const_cast<float*>(a.stats), t.saved = const_cast<float*>(a.saved);
  t.aligned = vectors(dtype, s, a.x, a.grad_out, a.grad_x);
  t.fc1_weight = a.fc1_weight, t.fc1_bias = a.fc1_bias;
  t.bn_weight = a.bn_weight, t.bn_bias = a.bn_bias, t.fc2_weight = a.fc2_weight;
  t.grad_fc1 = a.grad_fc1_weight, t.grad_fc1_bias = a.grad_fc1_bias;
  t.grad_gamma = a.grad_bn_weight, t.grad_beta = a.grad_bn_bias;
  t.grad_fc2 = a.grad_fc2_weight, t.grad_fc2_bias = a.grad_fc2_bias;
  cudaError_t error =
      (s.channels_last ? split_sum_pixels : split_sum_planes)(dtype, t, true, stream);
  if (error == cudaSuccess) error = split_gradient_vectors(t, stream);
  if (error != cudaSuccess || !a.grad_x) return error;
  return (s.channels_last ? split_map_pixels : split_map_planes)(dtype, t, true, stream);
}

int split_parts(int dtype, const SplitShape& shape) {
  return fits(shape) ? plan_of(dtype, shape).parts : 0;
}

cudaError_t split_pool(int dtype, const SplitShape& s, const void* x, float* sums,
                       cudaStream_t stream) {
  if (!fits(s)) return cudaErrorInvalidValue;
  Split t = plan_of(dtype, s);
  t.x = x, t.sums = sums;
  t.aligned = vectors(dtype, s, x, x, x);
  return (s.channels_last ? split_sum_pixels : split_sum_planes)(dtype, t, false, stream);
}

cudaError_t split_apply(int dtype, const SplitShape& s, const void* x, const float* saved,
                        void* out, cudaStream_t stream) {
  if (!fits(s)) return cudaErrorInvalidValue;
  Split t = plan_of(dtype, s);
  t.x = x, t.saved = const_cast<float*>(saved), t.mapped = out;
  t.aligned = vectors(dtype, s, x, out, out);
  return (s.channels_last ? split_map_pixels : split_map_planes)(dtype, t, false, stream);
}

cudaError_t split_apply_backward(int dtype, const SplitApplyBackward& a, cudaStream_t stream) {
  const SplitShape& s = a.shape;
  if (!fits(s)) return cudaErrorInvalidValue;
  Split t = plan_of(dtype, s);
  t.x = a.x, t.grad = a.grad_out, t.mapped = a.grad_x, t.sums = a.sums;
  t.saved = const_cast<float*>(a.saved), t.ds = const_cast<float*>(a.means);
  t.aligned = vectors(dtype, s, a.x, a.grad_out, a.grad_x);
  const cudaError_t error =
      (s.channels_last ? split_sum_pixels : split_sum_planes)(dtype, t, true, stream);
  if (error != cudaSuccess || !a.grad_x) return error;
  return (s.channels_last ? split_map_pixels : split_map_planes)(dtype, t, true, stream);
}

}  // namespace medseg::cuda

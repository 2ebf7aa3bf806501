// What the CUDA objects offer: argument blocks on bare pointers, and one launcher per function.
//
// A launcher takes a stream, allocates nothing and returns the launch error. Scratch is given by
// the caller: `*_scratch` says how many bytes, the pointer must be aligned to 16.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace medseg::cuda {

// Numbered as in csrc/cpu; float64 is left to the reference.
enum Dtype : int { kFloat32 = 0, kBFloat16 = 2, kFloat16 = 3 };

// A small parameter in its own dtype, read where it is used: a cast would be one more launch.
struct Param {
  const void* data;  // null: absent
  int dtype;
};

// x is (n, c, hw), rows of w: planes of hw dense elements, or, with channels_last, pixels of c
// dense ones. With pool = 2, out and grad_out are a quarter of it: (n, c, hw / w / 2, w / 2).
struct EcaShape {
  int64_t n, c, hw, w;
  int64_t stride_n, pitch;  // of x: between images; between planes (channels_last: pixels)
  bool channels_last;
  int taps, pool;
};

// All but x and grad_summed is dense, in the memory order of x.
struct EcaForward {
  EcaShape shape;
  const void* x;
  const void* residual;  // null, or added to x first
  Param weight, bias;    // (taps), (1) or absent
  void* out;
  void* summed;  // x + residual, null without
  float* saved;  // (2, n, c): mean, gate
  void* scratch;
};

struct EcaBackward {
  EcaShape shape;
  const void* x;  // what was gated: the sum where there was a residual
  const void* grad_out;
  const void* grad_summed;         // with pool = 2: null, or added to grad_x
  int64_t summed_n, summed_pitch;  // its strides, as those of x
  Param weight;
  const float* saved;
  void* grad_x;        // null: not wanted
  float* grad_weight;  // (taps)
  float* grad_bias;    // (1)
  void* scratch;
};

size_t eca_scratch(int dtype, const EcaShape& shape);
cudaError_t eca_forward(int dtype, const EcaForward& args, cudaStream_t stream);
cudaError_t eca_backward(int dtype, const EcaBackward& args, cudaStream_t stream);

// The largest triplet kernel: three haloed tiles of its backward must fit in shared memory.
constexpr int kMaxTripletTaps = 25;

// x per image is a 3-D array (a[0], a[1], a[2]) in memory order, a[2] dense. Plane m pools over
// memory axis m and spans the two others in memory order; gate[m] names the gate it feeds (-1:
// none), turned[m] says that the gate sees this plane transposed: its taps are transposed instead.
struct TripletShape {
  int64_t n, a[3];
  int64_t stride_n, stride_0, stride_1;  // of x; out, grad_out and grad_x are dense
  int gate[3];
  bool turned[3];
  int gates, taps;
  bool training;
  float eps;
};

// planes (2, positions): maxima, then means, the positions of a batch being n planes 0, n planes 1,
// n planes 2; index (positions): where along axis m the first maximum lies. Planes without a gate
// have room there, and are left as they are.
struct TripletForward {
  TripletShape shape;
  const void* x;
  Param conv_weight, bn_weight, bn_bias, running_mean, running_var;
  void* out;
  float* stats;     // (3, gates): mean, unbiased variance, 1 / sqrt(variance + eps)
  float* planes;    // null: nothing is kept
  void* index;      // null with planes
  int index_bytes;  // 2 or 4
  void* scratch;
};

struct TripletBackward {
  TripletShape shape;
  const void* x;
  const void* grad_out;
  Param conv_weight, bn_weight, bn_bias;
  const float* stats;
  const float* planes;
  const void* index;
  int index_bytes;
  void* grad_x;
  float* grad_conv_weight;  // (gates, 2, taps, taps)
  float* grad_bn_weight;    // (gates)
  float* grad_bn_bias;      // (gates)
  void* scratch;
};

size_t triplet_scratch(int dtype, const TripletShape& shape, bool backward);
cudaError_t triplet_forward(int dtype, const TripletForward& args, cudaStream_t stream);
cudaError_t triplet_backward(int dtype, const TripletBackward& args, cudaStream_t stream);

// The parts of it, for gates that are made elsewhere: of the shape taps, training and eps take no
// part. Scratch as for the forward; nothing may be empty.
struct TripletPart {
  TripletShape shape;
  const void* x;         // pool, apply, apply_backward
  const void* grad_out;  // apply_backward
  const float* gates;    // (positions); apply, apply_backward
  float* planes;         // pool: as above; pool_backward: their gradients
  void* index;
  int index_bytes;
  void* mapped;       // apply: out; backward of either: grad_x
  float* grad_gates;  // (positions)
  void* scratch;
};

cudaError_t triplet_pool(int dtype, const TripletPart& args, cudaStream_t stream);
cudaError_t triplet_pool_backward(int dtype, const TripletPart& args, cudaStream_t stream);
cudaError_t triplet_apply(int dtype, const TripletPart& args, cudaStream_t stream);
cudaError_t triplet_apply_backward(int dtype, const TripletPart& args, cudaStream_t stream);

// x is (n, radix * c, hw): splits of c channels each, one after the other; see EcaShape for the
// rest.
struct SplitShape {
  int64_t n, c, hw;
  int64_t stride_n, pitch;
  bool channels_last;
  int radix, cardinality, inner;
  bool training;
  float eps;
};

// out (n, c, hw), grad_out and grad_x are dense in the memory order of x. fc1 is (inner, c /
// cardinality), fc2 (radix * c, inner / cardinality), its rows in the order (group, split,
// channel).
struct SplitForward {
  SplitShape shape;
  const void* x;
  Param scale, shift;  // (radix * c) or absent: relu(x * scale + shift) stands for x
  Param fc1_weight, fc1_bias, bn_weight, bn_bias, running_mean, running_var, fc2_weight, fc2_bias;
  void* out;
  float* stats;  // (3, inner): mean, unbiased variance, 1 / sqrt(variance + eps)
  float* saved;  // (n, (1 + radix) * c): pooled means, then the attention in the order of x
  void* scratch;
};

struct SplitBackward {
  SplitShape shape;
  const void* x;
  const void* grad_out;
  Param fc1_weight, fc1_bias, bn_weight, bn_bias, fc2_weight;
  const float* stats;
  const float* saved;
  void* grad_x;  // null: not wanted
  float *grad_fc1_weight, *grad_fc1_bias, *grad_bn_weight, *grad_bn_bias;
  float *grad_fc2_weight, *grad_fc2_bias;
  void* scratch;
};

size_t split_scratch(int dtype, const SplitShape& shape, bool backward);
cudaError_t split_forward(int dtype, const SplitForward& args, cudaStream_t stream);
cudaError_t split_backward(int dtype, const SplitBackward& args, cudaStream_t stream);

// The parts of it that move maps, for gates made elsewhere; of the shape, cardinality, inner,
// training and eps take no part, and nothing may be empty. saved as above; sums (n, rows,
// split_parts), c rows an image or in backward radix * c: to be added up over the parts.
int split_parts(int dtype, const SplitShape& shape);
cudaError_t split_pool(int dtype, const SplitShape& shape, const void* x, float* sums,
                       cudaStream_t stream);
cudaError_t split_apply(int dtype, const SplitShape& shape, const void* x, const float* saved,
                        void* out, cudaStream_t stream);

struct SplitApplyBackward {
  SplitShape shape;
  const void* x;
  const void* grad_out;
  const float* saved;
  const float* means;  // (n, c), zeros
  float* sums;         // of grad_out * x
  void* grad_x;        // null: not wanted
};

cudaError_t split_apply_backward(int dtype, const SplitApplyBackward& args, cudaStream_t stream);

// The largest radius of a mask of the MDE filter: scales up to 7.
constexpr int kMaxMdeRadius = 3;

// A map (n, c, h, w) by its strides.
struct MdeMap {
  void* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

// The mask of radius r is norm[r - 1] * row x row, row being row[4 * r - 4 ...] from the centre,
// its outermost value 1; gain[r - 1] is its place among the scales, from 1, or 0 where it is none
// of them. `cross`: five cells, norm each.
struct MdeBank {
  int scales, gain[kMaxMdeRadius];
  float norm[kMaxMdeRadius], row[4 * kMaxMdeRadius];
  bool cross;
};

// vec values along the row (channels_last: channels) lie side by side and aligned in every map:
// 16 bytes or 4 values (with products, and channels_last: 4 values), or 1.
struct MdeShape {
  int64_t n, c;
  int h, w;
  bool last, reflect;
  int vec;
  MdeBank bank;
};

struct MdeForward {
  MdeShape shape;
  MdeMap x, out;
  const float* gains;   // (c or 1, scales + 1)
  int64_t stride_gain;  // between channels; 0 for shared gains
};

struct MdeBackward {
  MdeShape shape;
  MdeMap grad_out, x, grad_x;  // x and grad_x may be null
  const float* gains;
  int64_t stride_gain;
  float* grad_gains;  // like gains; needs x
  void* scratch;
};

size_t mde_scratch(const MdeShape& shape);
cudaError_t mde_forward(int dtype, const MdeForward& args, cudaStream_t stream);
cudaError_t mde_backward(int dtype, const MdeBackward& args, cudaStream_t stream);

// Maps of `count` elements in one dense layout.
struct GateForward {
  int64_t count;
  const void *a, *b, *c;
  void *total, *product;
};

struct GateBackward {
  int64_t count;
  const void *grad_total, *grad_product;  // null: zero
  const void *a, *b, *c;
  void *grad_a, *grad_b, *grad_c;
};

cudaError_t gate_forward(int dtype, const GateForward& args, cudaStream_t stream);
cudaError_t gate_backward(int dtype, const GateBackward& args, cudaStream_t stream);

}  // namespace medseg::cuda

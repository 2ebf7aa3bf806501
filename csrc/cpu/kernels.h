// What the CPU objects offer: the argument blocks and one table of functions per instruction set.
#pragma once
#include <cstdint>

namespace medseg {

enum Dtype : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

// "acc" below is float, or double for float64 data: parameters, gates and saved values use it.

// x is (n, c, hw), rows of w. Planes of hw dense elements, or, with channels_last, pixels of c
// dense ones. With pool = 2, out and grad_out are a quarter of it: (n, c, hw / w / 2, w / 2).
struct EcaShape {
  int64_t n, c, hw, w;
  int64_t stride_n, stride_c;  // of x, in elements; all else is dense
  bool channels_last;
  int taps, threads, pool;
};

struct EcaForward {
  EcaShape shape;
  const void* x;
  const void* residual;  // null, or added to x first
  const void* weight;    // acc (taps)
  const void* bias;      // acc (1) or null
  void* out;
  void* summed;   // x + residual, null without
  void* pooled;   // acc (n, c)
  void* gate;     // acc (n, c)
  void* scratch;  // eca_scratch(dtype, shape) bytes, aligned to 64
};

struct EcaBackward {
  EcaShape shape;
  const void* x;  // what was gated: the sum where there was a residual
  const void* grad_out;
  const void* grad_summed;     // with pool = 2: null, or added to grad_x
  int64_t summed_n, summed_c;  // its strides between images and planes (channels_last: pixels)
  const void* weight;
  const void* pooled;
  const void* gate;
  void* grad_x;       // null: not wanted
  void* grad_weight;  // acc (taps)
  void* grad_bias;    // acc (1)
  void* scratch;      // as in forward
};

// x per image is a 3-D array (a[0], a[1], a[2]) in memory order, a[2] dense. Plane m pools over
// memory axis m, and the positions of a batch are n planes 0, n planes 1, n planes 2, each dense;
// `gate[m]` names the gate it feeds (-1: none) and `turned[m]` says that the plane
// lies transposed in memory, so that its convolution uses the transposed taps.
struct TripletShape {
  int64_t n, a[3];
  int64_t stride_n, stride_0, stride_1;  // of x; out, grad_out and grad_x are dense
  int gate[3];
  bool turned[3];
  int gates, taps, threads;
  bool training;
  double eps;
};

struct TripletForward {
  TripletShape shape;
  const void* x;
  const void* conv_weight;  // acc (gates, 2, taps, taps)
  const void* bn_weight;    // acc (gates), like the three below
  const void* bn_bias;
  const void* running_mean;
  const void* running_var;
  void* out;
  void* stats;      // acc (3, gates): mean, unbiased variance, 1 / sqrt(variance + eps)
  void* planes;     // acc (2, positions): maxima, means; null: nothing is kept
  void* index;      // int16 or int32 (positions): argmaxima; null with planes
  int index_bytes;  // 2 or 4
  void* scratch;    // bytes, triplet_scratch(dtype, shape, false), aligned to 64
};

struct TripletBackward {
  TripletShape shape;
  const void* x;
  const void* grad_out;
  const void* conv_weight;
  const void* bn_weight;
  const void* bn_bias;
  const void* stats;
  const void* planes;
  const void* index;
  int index_bytes;
  void* grad_x;
  void* grad_conv_weight;  // acc (gates, 2, taps, taps)
  void* grad_bn_weight;    // acc (gates)
  void* grad_bn_bias;      // acc (gates)
  void* scratch;           // bytes, triplet_scratch(dtype, shape, true), aligned to 64
};

// One part of triplet attention, for gates that are made elsewhere: of the shape taps, training and
// eps take no part. Planes and gates without a gate in the shape are not read.
struct TripletPart {
  TripletShape shape;
  const void* x;         // pool, apply, apply_backward
  const void* grad_out;  // apply_backward
  void* gates;           // acc (positions); apply, apply_backward
  void* planes;          // acc (2, positions): maxima and means, or in backward their gradients
  void* index;           // int16 or int32 (positions): argmaxima
  int index_bytes;       // 2 or 4
  void* mapped;          // apply: out; backward of either: grad_x
  void* grad_gates;      // acc (positions)
  void* scratch;         // bytes, triplet_part_scratch(dtype, shape), aligned to 64
};

struct MdeStrides {
  int64_t n, c, h, w;  // in elements
};

// A stencil of (2 radius + 1)^2 weights on every channel of (n, c, h, w). A row lies dense in
// memory where w has stride 1; with channels_last the channels of a pixel do.
struct MdeShape {
  int64_t n, c, h, w;
  int radius, masks;  // radius 1 to 3; masks: the impulse and one a scale
  bool shared;        // one row of gains serves all channels
  bool reflect, channels_last;
  int threads;
};

// Forward: source is x. Adjoint: source is a slice of grad_out, out is grad_x, and with x given
// the gradient of the gains is found too.
struct MdeCall {
  MdeShape shape;
  bool adjoint;
  const void* source;
  MdeStrides source_strides;
  const void* gains;        // acc (c or 1, masks)
  const double* quadrants;  // (masks, radius + 1, radius + 1)
  void* out;                // null: not wanted
  MdeStrides out_strides;
  const void* up;  // forward: up_c channels to copy to `up_out`, or null
  MdeStrides up_strides;
  int64_t up_c;
  void* up_out;   // of the same strides as out
  const void* x;  // adjoint: null where grad_gains is not wanted
  MdeStrides x_strides;
  void* grad_gains;  // acc, like gains
  void* scratch;     // mde_scratch(dtype, shape) bytes, aligned to 64
};

// x holds radix splits of c channels, (n, radix * c, hw), in planes or pixels as for ECA.
struct SplitShape {
  int64_t n, c, hw, inner;     // inner: values between the two layers
  int64_t stride_n, stride_c;  // of x, in elements; out, grad_out and grad_x are dense
  bool channels_last;
  int radix, cardinality, threads;
  bool training;
  double eps;
};

struct SplitForward {
  SplitShape shape;
  const void* x;
  const void* scale;       // acc (radix * c), or null: relu(x * scale + shift) stands for x
  const void* shift;       // acc (radix * c), null with scale
  const void* fc1_weight;  // acc (inner, c / cardinality)
  const void* fc1_bias;    // acc (inner) or null
  const void* bn_weight;   // acc (inner), like the three below
  const void* bn_bias;
  const void* running_mean;
  const void* running_var;
  const void* fc2_weight;  // acc (radix * c, inner / cardinality)
  const void* fc2_bias;    // acc (radix * c) or null
  void* out;
  void* stats;    // acc (3, inner): mean, unbiased variance, 1 / sqrt(variance + eps)
  void* saved;    // acc (n, (1 + radix) * c): the pooled sum, then the gates as x's channels lie
  void* scratch;  // bytes, split_scratch(dtype, shape, false), aligned to 64
};

struct SplitBackward {
  SplitShape shape;
  const void* x;
  const void* grad_out;
  const void* fc1_weight;
  const void* fc1_bias;  // null: there was none
  const void* bn_weight;
  const void* bn_bias;
  const void* fc2_weight;
  const void* stats;
  const void* saved;
  void* grad_x;   // null: not wanted
  void* grads;    // acc: of fc1 weight and bias, bn weight and bias, fc2 weight and bias, in a row
  void* scratch;  // bytes, split_scratch(dtype, shape, true), aligned to 64
};

// One part of split attention, for gates that are made elsewhere: of the shape inner, cardinality,
// training and eps take no part.
struct SplitPart {
  SplitShape shape;
  const void* x;
  const void* grad_out;
  const void* gates;  // acc (n, radix * c), as x's channels lie
  void* mapped;       // apply: out; apply_backward: grad_x, or null: not wanted
  void* sums;         // acc; pool: means (n, c) of the splits' sum; apply_backward: grad_gates
  void* scratch;      // bytes, split_part_scratch(dtype, shape), aligned to 64
};

// Maps of `count` elements in one dense layout.
struct GateForward {
  int64_t count;
  int threads;
  const void* a;
  const void* b;
  const void* c;
  void* total;
  void* product;
};

struct GateBackward {
  int64_t count;
  int threads;
  const void* grad_total;    // null: zero
  const void* grad_product;  // null: zero
  const void* a;
  const void* b;
  const void* c;
  void* grad_a;
  void* grad_b;
  void* grad_c;
};

struct Kernels {
  const char* isa;
  void (*eca_forward)(int dtype, const EcaForward&);
  void (*eca_backward)(int dtype, const EcaBackward&);
  int64_t (*eca_scratch)(int dtype, const EcaShape&);  // bytes
  void (*gate_forward)(int dtype, const GateForward&);
  void (*gate_backward)(int dtype, const GateBackward&);
  void (*triplet_forward)(int dtype, const TripletForward&);
  void (*triplet_backward)(int dtype, const TripletBackward&);
  int64_t (*triplet_scratch)(int dtype, const TripletShape&, bool backward);
  void (*triplet_pool)(int dtype, const TripletPart&);
  void (*triplet_pool_backward)(int dtype, const TripletPart&);
  void (*triplet_apply)(int dtype, const TripletPart&);
  void (*triplet_apply_backward)(int dtype, const TripletPart&);
  int64_t (*triplet_part_scratch)(int dtype, const TripletShape&);
  void (*mde)(int dtype, const MdeCall&);
  int64_t (*mde_scratch)(int dtype, const MdeShape&);
  void (*split_forward)(int dtype, const SplitForward&);
  void (*split_backward)(int dtype, const SplitBackward&);
  int64_t (*split_scratch)(int dtype, const SplitShape&, bool backward);
  void (*split_pool)(int dtype, const SplitPart&);
  void (*split_apply)(int dtype, const SplitPart&);
  void (*split_apply_backward)(int dtype, const SplitPart&);
  int64_t (*split_part_scratch)(int dtype, const SplitShape&);
};

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace medseg

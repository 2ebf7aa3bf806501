// The MDE filter under the sanitizers: every radius, both paddings, slices of a concatenation.
#include "driver.h"

using medseg::MdeStrides;
using std::vector;

namespace {

// An axis of length 1 may have any stride and still count as dense.
MdeStrides dense(const Sizes& z, bool last, int64_t c) {
  const int64_t hw = z.h * z.w, odd = 3 * c * hw;
  MdeStrides t = last ? MdeStrides{c * hw, 1, z.w * c, c} : MdeStrides{c * hw, hw, z.w, 1};
  if (z.h == 1) t.h = odd;
  if (z.w == 1) t.w = odd;
  return t;
}

// As many masks as the radius has scales, symmetric ones.
void draw_masks(Buffer& quadrants, int masks, int side, uint32_t seed) {
  fill(quadrants, medseg::kFloat64, seed);
  for (int j = 0; j < masks; ++j) {
    double* mask = static_cast<double*>(quadrants.data) + j * side * side;
    for (int i = 0; i < side * side; ++i) mask[i] = mask[i % side * side + i / side];
  }
}

// The filter into the tail of a concatenation, then the gradients out of a slice of one.
vector<double> run_mde(const Case& at, int radius, bool reflect, int threads) {
  const int dtype = at.dtype, side = radius + 1, masks = radius + 1;
  const Sizes z = at.size;
  const bool last = at.channels_last, shared = radius == 2;
  const int64_t before = 3, all = z.c + before, hw = z.h * z.w, gap = at.layout == kGaps ? 2 : 0;
  const int64_t row = z.w + gap, image = last ? hw * z.c : z.c * z.h * row;
  const int64_t stride = at.layout == kExpanded ? 0 : image + gap, spare = last ? 0 : gap;
  const MdeStrides in =
      last ? MdeStrides{stride, 1, z.w * z.c, z.c} : MdeStrides{stride, z.h * row, row, 1};
  const MdeStrides cat = dense(z, last, all);
  const medseg::MdeShape shape{z.n, z.c, z.h, z.w, radius, masks, shared, reflect, last, threads};
  const size_t size = size_of(dtype), offset = before * (last ? 1 : hw) * size;
  Buffer x(((z.n - 1) * stride + image - spare) * size), above(z.n * before * hw * size);
  Buffer out(z.n * all * hw * size), grad_out(out.bytes), grad_x(z.n * z.c * hw * size);
  Buffer gains((shared ? 1 : z.c) * masks * acc_size(dtype)), grad_gains(gains.bytes);
  Buffer quadrants(masks * side * side * 8);
  uint32_t seed = 1;
  for (Buffer* b : {&x, &above, &grad_out}) fill(*b, dtype, seed++);
  fill(gains, acc_of(dtype), seed++);
  draw_masks(quadrants, masks, side, seed);
  medseg::MdeCall call{};
  call.shape = shape, call.gains = gains.data, call.grad_gains = grad_gains.data;
  call.quadrants = static_cast<const double*>(quadrants.data);
  const auto run = [&](void* source, MdeStrides from, void* to, MdeStrides strides) {
    Buffer scratch(kernels->mde_scratch(dtype, shape));
    call.source = source, call.source_strides = from, call.out = to, call.out_strides = strides;
    call.scratch = scratch.data;
    kernels->mde(dtype, call);
  };
  call.up = above.data, call.up_strides = dense(z, last, before), call.up_c = before;
  call.up_out = out.data;
  run(x.data, in, static_cast<char*>(out.data) + offset, cat);
  call.up = nullptr, call.adjoint = true;
  void* gradient = static_cast<char*>(grad_out.data) + offset;
  run(gradient, cat, grad_x.data, dense(z, last, z.c));
  call.x = x.data, call.x_strides = in;
  run(gradient, cat, shared ? nullptr : grad_x.data, dense(z, last, z.c));
  vector<double> found;
  append(found, out, dtype);
  append(found, grad_x, dtype);
  append(found, grad_gains, acc_of(dtype));
  return found;
}

}  // namespace

void mde_cases(const Case& at) {
  for (int radius : {1, 2, 3})
    for (bool reflect : {false, true}) {
      if (reflect && (at.size.h <= radius || at.size.w <= radius)) continue;
      agree(at, reflect ? "reflecting mde" : "mde", radius,
            [&](int threads) { return run_mde(at, radius, reflect, threads); });
    }
}

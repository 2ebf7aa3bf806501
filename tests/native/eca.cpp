// ECA under the sanitizers: taps, a residual, the max-pool, gradients that are not wanted.
#include "driver.h"

using std::vector;

namespace {

// taps 1: no bias, 3: a residual, 5: no grad_x; pool 2: with and without a gradient of the sum.
vector<double> run_eca(const Case& at, int taps, int pool, int threads) {
  const auto [dtype, z, last, layout] = at;
  const int64_t hw = z.h * z.w, plane = last ? 1 : hw + (layout == kGaps ? 3 : 0);
  const int64_t image = last ? z.c * hw : (z.c - 1) * plane + hw;
  const int64_t stride = layout == kExpanded ? 0 : image + (layout == kGaps ? 5 : 0);
  const medseg::EcaShape shape{z.n, z.c, hw, z.w, stride, plane, last, taps, threads, pool};
  const bool adds = taps == 3, sums = pool == 2 && taps != 1;
  medseg::EcaShape gated = shape;  // the sum, which is dense, or x
  if (adds) gated.stride_n = z.c * hw, gated.stride_c = last ? 1 : hw;
  const int64_t pitch = last ? z.c + 2 : hw + 2, step = (last ? hw : z.c) * pitch;
  const size_t acc = acc_size(dtype), volume = z.n * z.c * hw * size_of(dtype);
  const size_t pooled_volume = z.n * z.c * (z.h / pool) * (z.w / pool) * size_of(dtype);
  Buffer x(((z.n - 1) * stride + image) * size_of(dtype)), grad_out(pooled_volume);
  Buffer weight(taps * acc), bias(acc), out(pooled_volume), pooled(z.n * z.c * acc);
  Buffer gate(z.n * z.c * acc), grad_x(volume), residual(volume), summed(volume);
  Buffer grad_summed(sums ? (z.n * step - 2) * size_of(dtype) : 0);
  Buffer grad_weight(taps * acc), grad_bias(acc), scratch(kernels->eca_scratch(dtype, shape));
  uint32_t seed = 1;
  for (Buffer* b : {&x, &grad_out, &residual, &grad_summed}) fill(*b, dtype, seed++);
  for (Buffer* b : {&weight, &bias}) fill(*b, acc_of(dtype), seed++);
  kernels->eca_forward(dtype, {shape, x.data, adds ? residual.data : nullptr, weight.data,
                               taps == 1 ? nullptr : bias.data, out.data,
                               adds ? summed.data : nullptr, pooled.data, gate.data, scratch.data});
  std::memset(scratch.data, 0xff, scratch.bytes);
  kernels->eca_backward(
      dtype, {gated, adds ? summed.data : x.data, grad_out.data, sums ? grad_summed.data : nullptr,
              step, pitch, weight.data, pooled.data, gate.data, taps == 5 ? nullptr : grad_x.data,
              grad_weight.data, grad_bias.data, scratch.data});
  vector<double> found;
  append(found, out, dtype);
  if (adds) append(found, summed, dtype);
  if (taps != 5) append(found, grad_x, dtype);
  for (const Buffer* b : {&pooled, &gate, &grad_weight, &grad_bias})
    append(found, *b, acc_of(dtype));
  return found;
}

}  // namespace

void eca_cases(const Case& at) {
  for (int pool : {1, 2}) {
    if (pool == 2 && (at.size.h == 1 || at.size.w == 1)) continue;
    for (int taps : {1, 3, 5, 21})
      agree(at, pool == 2 ? "pooled eca" : "eca", taps,
            [&](int threads) { return run_eca(at, taps, pool, threads); });
  }
}

// Split attention of every radix, with and without groups, biases and a batch norm in front.
#include "driver.h"

using std::vector;

namespace {

vector<double> run_split(const Case& at, int radix, bool training, int threads) {
  const Sizes& z = at.size;
  const int dtype = at.dtype;
  const bool last = at.channels_last;
  const int groups = radix == 2 ? 3 : 1;
  const bool biased = radix != 3, front = radix % 2 == 0;
  const int64_t hw = z.h * z.w, c = z.c * groups, width = radix * c, inner = 5 * groups;
  const int64_t plane = last ? 1 : hw + (at.layout == kGaps ? 3 : 0);
  const int64_t image = last ? width * hw : (width - 1) * plane + hw;
  const int64_t stride = at.layout == kExpanded ? 0 : image + (!last && at.layout == kGaps ? 5 : 0);
  const medseg::SplitShape shape{z.n,  c,     hw,     inner,   stride,   plane,
                                 last, radix, groups, threads, training, 1e-5};
  const size_t acc = acc_size(dtype), volume = z.n * c * hw * size_of(dtype);
  const size_t fc1_size = inner * z.c, fc2_size = width * inner / groups;
  Buffer x(((z.n - 1) * stride + image) * size_of(dtype)), grad_out(volume), out(volume);
  Buffer scale(width * acc), shift(width * acc), fc1(fc1_size * acc), fc1_bias(inner * acc);
  Buffer gamma(inner * acc), beta(inner * acc), mean(inner * acc), var(inner * acc);
  Buffer fc2(fc2_size * acc), fc2_bias(width * acc), stats(3 * inner * acc);
  Buffer saved(z.n * (c + width) * acc), grad_x(radix * volume), activated(volume);
  Buffer grads((fc1_size + 3 * inner + fc2_size + width) * acc);
  Buffer forward(kernels->split_scratch(dtype, shape, false));
  Buffer backward(kernels->split_scratch(dtype, shape, true));
  uint32_t seed = 1;
  for (Buffer* b : {&x, &grad_out}) fill(*b, dtype, seed++);
  for (Buffer* b : {&scale, &shift, &fc1, &fc1_bias, &gamma, &beta, &mean, &fc2, &fc2_bias})
    fill(*b, acc_of(dtype), seed++);
  for (int64_t i = 0; i < inner; ++i) store(var.data, acc_of(dtype), i, 0.75f);
  const void* bias1 = biased ? fc1_bias.data : nullptr;
  const void* bias2 = biased ? fc2_bias.data : nullptr;
  vector<double> found;
  if (front) {
    kernels->split_forward(dtype, {shape, x.data, scale.data, shift.data, fc1.data, bias1,
                                   gamma.data, beta.data, mean.data, var.data, fc2.data, bias2,
                                   activated.data, stats.data, saved.data, forward.data});
    append(found, activated, dtype);
    std::memset(forward.data, 0xff, forward.bytes);
  }
  kernels->split_forward(
      dtype, {shape, x.data, nullptr, nullptr, fc1.data, bias1, gamma.data, beta.data, mean.data,
              var.data, fc2.data, bias2, out.data, stats.data, saved.data, forward.data});
  kernels->split_backward(dtype, {shape, x.data, grad_out.data, fc1.data, bias1, gamma.data,
                                  beta.data, fc2.data, stats.data, saved.data,
                                  radix == 3 ? nullptr : grad_x.data, grads.data, backward.data});
  append(found, out, dtype);
  if (radix != 3) append(found, grad_x, dtype);
  for (const Buffer* b : {&stats, &saved, &grads}) append(found, *b, acc_of(dtype));
  return found;
}

// The pool, and the application of gates made elsewhere with its gradients.
vector<double> run_parts(const Case& at, int radix, int threads) {
  const Sizes& z = at.size;
  const int dtype = at.dtype;
  const bool last = at.channels_last;
  const int64_t hw = z.h * z.w, c = z.c, width = radix * c;
  const int64_t plane = last ? 1 : hw + (at.layout == kGaps ? 3 : 0);
  const int64_t image = last ? width * hw : (width - 1) * plane + hw;
  const int64_t stride = at.layout == kExpanded ? 0 : image + (!last && at.layout == kGaps ? 5 : 0);
  const medseg::SplitShape shape{z.n, c, hw, 0, stride, plane, last, radix, 1, threads, false, 0};
  const size_t acc = acc_size(dtype), volume = z.n * c * hw * size_of(dtype);
  Buffer x(((z.n - 1) * stride + image) * size_of(dtype)), grad_out(volume), out(volume);
  Buffer gates(z.n * width * acc), pooled(z.n * c * acc), grad_gates(gates.bytes);
  Buffer again(gates.bytes), grad_x(radix * volume);
  Buffer scratch(kernels->split_part_scratch(dtype, shape));
  uint32_t seed = 1;
  for (Buffer* b : {&x, &grad_out}) fill(*b, dtype, seed++);
  fill(gates, acc_of(dtype), seed);
  const auto call = [&](void (*part)(int, const medseg::SplitPart&), void* mapped, void* sums) {
    std::memset(scratch.data, 0xff, scratch.bytes);
    part(dtype, {shape, x.data, grad_out.data, gates.data, mapped, sums, scratch.data});
  };
  call(kernels->split_pool, nullptr, pooled.data);
  call(kernels->split_apply, out.data, nullptr);
  call(kernels->split_apply_backward, nullptr, again.data);
  call(kernels->split_apply_backward, grad_x.data, grad_gates.data);
  vector<double> found;
  for (const Buffer* b : {&out, &grad_x}) append(found, *b, dtype);
  for (const Buffer* b : {&pooled, &again, &grad_gates}) append(found, *b, acc_of(dtype));
  return found;
}

}  // namespace

void split_cases(const Case& at) {
  for (int radix : {1, 2, 3, 4}) {
    agree(at, "parts of split", radix, [&](int threads) { return run_parts(at, radix, threads); });
    for (bool training : {false, true}) {
      if (training && at.size.n < 3) continue;  // one or two images have no variance worth a name
      agree(at, training ? "training split" : "split", radix,
            [&](int threads) { return run_split(at, radix, training, threads); });
    }
  }
}

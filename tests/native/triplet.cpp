// Triplet attention under the sanitizers: kernel sizes, gates, training and both index widths.
#include "driver.h"

using std::vector;

namespace {

struct Map {
  medseg::TripletShape shape;
  int64_t elements;  // from the first of x to behind its last
};

Map map_of(const Case& at, int k, int gates, bool training, int threads) {
  const auto [dtype, z, last, layout] = at;
  const int64_t a[3] = {last ? z.h : z.c, last ? z.w : z.h, last ? z.c : z.w};
  const int64_t row = a[2] + (layout == kGaps ? 3 : 0), slab = a[1] * row;
  const int64_t image = (a[0] - 1) * slab + (a[1] - 1) * row + a[2];
  const int64_t stride = layout == kExpanded ? 0 : image + (layout == kGaps ? 5 : 0);
  medseg::TripletShape shape{
      z.n,     {a[0], a[1], a[2]}, stride, slab, row, {2, 0, 1}, {false, false, true}, gates, k,
      threads, training,           1e-5};
  if (last)
    shape = {
        z.n,     {a[0], a[1], a[2]}, stride, slab, row, {0, 1, 2}, {true, false, false}, gates, k,
        threads, training,           1e-5};
  for (int& gate : shape.gate) gate = gate < gates ? gate : -1;
  return {shape, (z.n - 1) * stride + image};
}

vector<double> run_triplet(const Case& at, int k, int gates, bool training, int index_bytes,
                           int threads) {
  const int dtype = at.dtype;
  const Sizes& z = at.size;
  const Map map = map_of(at, k, gates, training, threads);
  const medseg::TripletShape& shape = map.shape;
  const int64_t (&a)[3] = shape.a;
  const size_t acc = acc_size(dtype), volume = z.n * a[0] * a[1] * a[2] * size_of(dtype);
  const size_t positions = z.n * (a[1] * a[2] + a[0] * a[2] + a[0] * a[1]);
  Buffer x(map.elements * size_of(dtype)), grad_out(volume), out(volume);
  Buffer taps(gates * 2 * k * k * acc), gamma(gates * acc), beta(gates * acc), mean(gates * acc);
  Buffer var(gates * acc), stats(3 * gates * acc), planes(2 * positions * acc);
  Buffer index(positions * index_bytes), grad_x(volume), grad_taps(taps.bytes);
  Buffer grad_gamma(gamma.bytes), grad_beta(beta.bytes), plain(volume);
  Buffer forward(kernels->triplet_scratch(dtype, shape, false));
  Buffer backward(kernels->triplet_scratch(dtype, shape, true));
  uint32_t seed = 1;
  for (Buffer* b : {&x, &grad_out}) fill(*b, dtype, seed++);
  for (Buffer* b : {&taps, &gamma, &beta, &mean}) fill(*b, acc_of(dtype), seed++);
  for (int g = 0; g < gates; ++g) store(var.data, acc_of(dtype), g, 0.75f);
  for (bool keep : {false, true}) {
    std::memset(forward.data, 0xff, forward.bytes);
    kernels->triplet_forward(
        dtype, {shape, x.data, taps.data, gamma.data, beta.data, mean.data, var.data,
                keep ? out.data : plain.data, stats.data, keep ? planes.data : nullptr,
                keep ? index.data : nullptr, index_bytes, forward.data});
  }
  kernels->triplet_backward(
      dtype, {shape, x.data, grad_out.data, taps.data, gamma.data, beta.data, stats.data,
              planes.data, index.data, index_bytes, grad_x.data, grad_taps.data, grad_gamma.data,
              grad_beta.data, backward.data});
  vector<double> found, other;
  append(found, out, dtype);
  append(other, plain, dtype);
  compare("triplet with and without kept planes", found, other, dtype);
  append(found, grad_x, dtype);
  for (const Buffer* b : {&stats, &planes, &grad_taps, &grad_gamma, &grad_beta})
    append(found, *b, acc_of(dtype));
  return found;
}

// The pools and the application of gates made elsewhere, with the gradients of both.
vector<double> run_parts(const Case& at, int gates, int index_bytes, int threads) {
  const int dtype = at.dtype;
  const Map map = map_of(at, 1, gates, false, threads);
  const medseg::TripletShape& shape = map.shape;
  const int64_t (&a)[3] = shape.a;
  const size_t acc = acc_size(dtype), volume = shape.n * a[0] * a[1] * a[2] * size_of(dtype);
  const size_t positions = shape.n * (a[1] * a[2] + a[0] * a[2] + a[0] * a[1]);
  Buffer x(map.elements * size_of(dtype)), grad_out(volume), out(volume), grad_x(volume);
  Buffer gate(positions * acc), planes(2 * positions * acc), grad_planes(planes.bytes);
  Buffer index(positions * index_bytes), grad_gate(gate.bytes), grad_pooled(volume);
  Buffer scratch(kernels->triplet_part_scratch(dtype, shape));
  uint32_t seed = 1;
  for (Buffer* b : {&x, &grad_out}) fill(*b, dtype, seed++);
  for (Buffer* b : {&gate, &grad_planes}) fill(*b, acc_of(dtype), seed++);
  const auto call = [&](void (*part)(int, const medseg::TripletPart&), void* given, void* mapped) {
    std::memset(scratch.data, 0xff, scratch.bytes);
    part(dtype, {shape, x.data, grad_out.data, gate.data, given, index.data, index_bytes, mapped,
                 grad_gate.data, scratch.data});
  };
  call(kernels->triplet_pool, planes.data, nullptr);
  call(kernels->triplet_pool_backward, grad_planes.data, grad_pooled.data);
  call(kernels->triplet_apply, nullptr, out.data);
  call(kernels->triplet_apply_backward, nullptr, grad_x.data);
  vector<double> found;
  for (const Buffer* b : {&out, &grad_x, &grad_pooled}) append(found, *b, dtype);
  for (const Buffer* b : {&planes, &grad_gate}) append(found, *b, acc_of(dtype));
  return found;
}

}  // namespace

void triplet_cases(const Case& at) {
  const Sizes& z = at.size;
  for (int gates : {2, 3})
    agree(at, "parts of triplet", gates,
          [&](int threads) { return run_parts(at, gates, 2 * gates - 2, threads); });
  for (int k : {1, 3, 5, 7, 41}) {
    if (k == 41 && (at.dtype != medseg::kFloat32 || at.layout != kDense || z.n > 1)) continue;
    const int gates = k % 4 == 1 ? 2 : 3, index_bytes = k == 3 ? 4 : 2;
    const bool training = z.n * z.h * z.w * z.c > 40 && k != 5;
    agree(at, "triplet", k,
          [&](int threads) { return run_triplet(at, k, gates, training, index_bytes, threads); });
  }
}

// Runs every CUDA launcher on buffers of exactly the right size, for the sanitizers to watch: one
// access beyond a tensor, its scratch or shared memory, and this program ends with their report.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/launchers.h"

using namespace medseg::cuda;

namespace {

constexpr float kEps = 1e-5f;

// `bytes` of heap memory, full of a small pattern that is a finite number in every dtype.
struct Buffer {
  std::unique_ptr<char[]> data;
  explicit Buffer(size_t bytes, int fill = 0x3a) : data(new char[bytes]) {
    std::memset(data.get(), fill, bytes);
  }
  void* get() const { return data.get(); }
  float* floats() const { return reinterpret_cast<float*>(data.get()); }
};

void expect(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

size_t width(int dtype) { return dtype == kFloat32 ? 4 : 2; }

// With pool 2 there is a residual and a gradient of the sum too.
void run_eca(int dtype, int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last, int taps,
             int pool) {
  const int64_t hw = h * w, pitch = channels_last ? c : hw;
  const EcaShape shape{n, c, hw, w, c * hw, pitch, channels_last, taps, pool};
  const size_t bytes = static_cast<size_t>(n * c * hw) * width(dtype);
  const size_t pooled = static_cast<size_t>(n * c * (h / pool) * (w / pool)) * width(dtype);
  const Buffer x(bytes), out(pooled), grad(bytes), weight(taps * 4), bias(4), grads(taps * 4);
  const Buffer saved(static_cast<size_t>(2 * n * c) * 4), grad_bias(4), residual(bytes);
  const Buffer summed(bytes), grad_summed(bytes);
  const bool adds = pool == 2;
  const Param wp{weight.get(), kFloat32}, b{bias.get(), kFloat32};
  const Buffer forward(eca_scratch(dtype, shape), 0xff);
  const EcaForward first{shape,
                         x.get(),
                         adds ? residual.get() : nullptr,
                         wp,
                         b,
                         out.get(),
                         adds ? summed.get() : nullptr,
                         saved.floats(),
                         forward.get()};
  expect(eca_forward(dtype, first, {}), "eca_forward");
  const Buffer backward(eca_scratch(dtype, shape), 0xff);
  const EcaBackward second{shape,
                           adds ? summed.get() : x.get(),
                           out.get(),
                           adds ? grad_summed.get() : nullptr,
                           c * hw,
                           pitch,
                           wp,
                           saved.floats(),
                           grad.get(),
                           grads.floats(),
                           grad_bias.floats(),
                           backward.get()};
  expect(eca_backward(dtype, second, {}), "eca_backward");
}

void run_triplet(int dtype, int64_t n, int64_t a0, int64_t a1, int64_t a2, int gates, int taps,
                 bool training) {
  const TripletShape shape{n,
                           {a0, a1, a2},
                           a0 * a1 * a2,
                           a1 * a2,
                           a2,
                           {gates == 3 ? 2 : -1, 0, 1},
                           {false, false, true},
                           gates,
                           taps,
                           training,
                           kEps};
  const size_t bytes = static_cast<size_t>(n * a0 * a1 * a2) * width(dtype);
  const size_t positions = static_cast<size_t>(n * (a1 * a2 + a0 * a2 + a0 * a1));
  const size_t conv = static_cast<size_t>(gates * 2 * taps * taps) * 4, vector = gates * 4;
  const Buffer x(bytes), out(bytes), grad(bytes), w(conv), grad_w(conv), v(vector);
  const Buffer stats(3 * vector), planes(2 * positions * 4), index(positions * 2);
  const Buffer grad_gamma(vector), grad_beta(vector);
  const Param weight{w.get(), kFloat32}, p{v.get(), kFloat32};
  for (const bool keep : {false, true}) {
    const Buffer scratch(triplet_scratch(dtype, shape, false), 0xff);
    const TripletForward args{shape,
                              x.get(),
                              weight,
                              p,
                              p,
                              p,
                              p,
                              out.get(),
                              stats.floats(),
                              keep ? planes.floats() : nullptr,
                              keep ? index.get() : nullptr,
                              2,
                              scratch.get()};
    expect(triplet_forward(dtype, args, {}), "triplet_forward");
  }
  const Buffer scratch(triplet_scratch(dtype, shape, true), 0xff);
  const TripletBackward args{shape,
                             x.get(),
                             out.get(),
                             weight,
                             p,
                             p,
                             stats.floats(),
                             planes.floats(),
                             index.get(),
                             2,
                             grad.get(),
                             grad_w.floats(),
                             grad_gamma.floats(),
                             grad_beta.floats(),
                             scratch.get()};
  expect(triplet_backward(dtype, args, {}), "triplet_backward");
}

void run_split(int dtype, int64_t n, int64_t c, int64_t hw, bool channels_last, int radix,
               int cardinality, int inner, bool training) {
  const int64_t width = radix * c, pitch = channels_last ? width : hw;
  const SplitShape shape{n,     c,           hw,    width * hw, pitch, channels_last,
                         radix, cardinality, inner, training,   kEps};
  const size_t bytes = static_cast<size_t>(n * c * hw) * ::width(dtype);
  const size_t rows = static_cast<size_t>(inner) * 4, wide = static_cast<size_t>(width) * 4;
  const size_t fc1 = rows * static_cast<size_t>(c / cardinality);
  const size_t fc2 = wide * static_cast<size_t>(inner / cardinality);
  const Buffer x(bytes * radix), out(bytes), grad(bytes * radix), w1(fc1), w2(fc2), v(rows),
      z(wide);
  const Buffer stats(3 * rows), saved(static_cast<size_t>(n * (c + width)) * 4);
  const Param p1{w1.get(), kFloat32}, p2{w2.get(), kFloat32}, p{v.get(), kFloat32};
  const Param pz{z.get(), kFloat32}, none{nullptr, kFloat32};
  for (const Param& scale : {none, pz}) {
    const Buffer scratch(split_scratch(dtype, shape, false), 0xff);
    const SplitForward args{
        shape, x.get(),   scale,          scale,          p1,           p, p, p, p, p, p2,
        pz,    out.get(), stats.floats(), saved.floats(), scratch.get()};
    expect(split_forward(dtype, args, {}), "split_forward");
  }
  const Buffer g1(fc1), g2(fc2), gb(rows), gamma(rows), beta(rows), gz(wide);
  for (void* const wanted : {grad.get(), static_cast<void*>(nullptr)}) {
    const Buffer scratch(split_scratch(dtype, shape, true), 0xff);
    const SplitBackward args{shape,
                             x.get(),
                             out.get(),
                             p1,
                             none,
                             p,
                             p,
                             p2,
                             stats.floats(),
                             saved.floats(),
                             wanted,
                             g1.floats(),
                             gb.floats(),
                             gamma.floats(),
                             beta.floats(),
                             g2.floats(),
                             gz.floats(),
                             scratch.get()};
    expect(split_backward(dtype, args, {}), "split_backward");
  }
}

MdeMap mde_map(const Buffer& b, int64_t c, int64_t h, int64_t w, bool last) {
  return last ? MdeMap{b.get(), c * h * w, 1, w * c, c} : MdeMap{b.get(), c * h * w, h * w, w, 1};
}

void run_mde(int dtype, int64_t n, int64_t c, int h, int w, bool last, int radius, bool reflect) {
  MdeBank bank{1, {}, {0.1f, 0.1f, 0.1f}, {}, false};
  bank.gain[radius - 1] = 1;
  for (float& value : bank.row) value = 1.0f;
  const int wide = last ? 4 : 16 / static_cast<int>(width(dtype));
  const size_t count = static_cast<size_t>(n * c * h * w), bytes = count * width(dtype);
  const Buffer x(bytes), out(bytes), grad(bytes), gains(c * 8), grad_gains(c * 8);
  const MdeMap in = mde_map(x, c, h, w, last), to = mde_map(out, c, h, w, last);
  const MdeMap back = mde_map(grad, c, h, w, last);
  for (const bool shared : {false, true}) {
    MdeShape shape{n, c, h, w, last, reflect, (last ? c : w) % wide == 0 ? wide : 1, bank};
    const int64_t stride = shared ? 0 : 2;
    expect(mde_forward(dtype, {shape, in, to, gains.floats(), stride}, {}), "mde_forward");
    MdeBackward args{shape, to, {}, back, gains.floats(), stride, nullptr, nullptr};
    expect(mde_backward(dtype, args, {}), "mde_backward");
    args.shape.vec = (last ? c : w) % 4 == 0 ? 4 : 1;
    const Buffer scratch(mde_scratch(args.shape), 0xff);
    args.x = in, args.grad_gains = grad_gains.floats(), args.scratch = scratch.get();
    expect(mde_backward(dtype, args, {}), "mde_backward of the gains");
  }
}

}  // namespace

int main() {
  for (const int dtype : {kFloat32, kBFloat16, kFloat16}) {
    for (const bool channels_last : {false, true}) {
      for (const int pool : {1, 2}) {
        run_eca(dtype, 2, 7, 17, 19, channels_last, 3, pool);
        run_eca(dtype, 1, 72, 15, 24, channels_last, 5, pool);
        run_eca(dtype, 2, 1, pool, pool, channels_last, 9, pool);
      }
      run_split(dtype, 2, 7, 17 * 19, channels_last, 2, 1, 5, true);
      run_split(dtype, 1, 72, 130, channels_last, 4, 2, 6, false);
      run_split(dtype, 9, 3, 1, channels_last, 3, 3, 36, true);
    }
    run_triplet(dtype, 2, 7, 17, 19, 3, 7, true);
    run_triplet(dtype, 1, 9, 65, 72, 3, 7, false);
    run_triplet(dtype, 1, 8, 64, 64, 2, 3, true);
    run_triplet(dtype, 2, 1, 1, 2, 3, 5, true);
  }
  run_eca(kFloat32, 1, 3, 1, 9001, false, 3, 1);
  run_eca(kFloat32, 1, 3, 90, 204, false, 3, 2);
  run_eca(kFloat32, 2, 5000, 1, 3, true, 3, 1);
  for (const int dtype : {kFloat32, kBFloat16, kFloat16})
    for (const bool last : {false, true}) {
      run_mde(dtype, 1, 8, 5, 16, last, 3, false);
      run_mde(dtype, 2, 3, 7, 9, last, 2, true);
      run_mde(dtype, 1, 4, 2, 8, last, 1, true);
      run_mde(dtype, 1, 5, 1, 1, last, 3, false);
    }
  run_mde(kFloat32, 1, 4, 70, 20, false, 3, true);
  run_split(kFloat32, 1, 1, 5001, false, 1, 1, 2, false);
  run_triplet(kFloat32, 1, 3, 40, 5, 3, 25, true);
  std::puts("done");
}

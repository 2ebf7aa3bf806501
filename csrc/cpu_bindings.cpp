// medseg.kernels._cpu: addresses and sizes in, nothing checked twice, the GIL released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace py = pybind11;
using medseg::Kernels;

namespace {

void* address(uintptr_t p) { return reinterpret_cast<void*>(p); }

// Fastest first.
std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(&medseg::avx512::kernels);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    found.push_back(&medseg::avx2::kernels);
#endif
  found.push_back(&medseg::baseline::kernels);
  return found;
}

const Kernels* active = supported().front();

void set_isa(const std::string& name) {
  for (const Kernels* k : supported()) {
    if (name == k->isa) {
      active = k;
      return;
    }
  }
  throw std::invalid_argument("this processor cannot run the '" + name + "' kernels");
}

using Strides = std::array<int64_t, 2>;

medseg::EcaShape eca_shape(std::array<int64_t, 4> sizes, Strides strides, bool channels_last,
                           int taps, int threads, int pool) {
  return {sizes[0],   sizes[1],   sizes[2] * sizes[3], sizes[3],
          strides[0], strides[1], channels_last,       taps,
          threads,    pool};
}

void eca_forward(int dtype, const medseg::EcaShape& shape, uintptr_t x, uintptr_t residual,
                 uintptr_t weight, uintptr_t bias, uintptr_t out, uintptr_t summed,
                 uintptr_t pooled, uintptr_t gate, uintptr_t scratch) {
  py::gil_scoped_release release;
  active->eca_forward(
      dtype, {shape, address(x), address(residual), address(weight), address(bias), address(out),
              address(summed), address(pooled), address(gate), address(scratch)});
}

void eca_backward(int dtype, const medseg::EcaShape& shape, uintptr_t x, uintptr_t grad_out,
                  uintptr_t grad_summed, Strides strides, uintptr_t weight, uintptr_t pooled,
                  uintptr_t gate, uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias,
                  uintptr_t scratch) {
  py::gil_scoped_release release;
  active->eca_backward(
      dtype, {shape, address(x), address(grad_out), address(grad_summed), strides[0], strides[1],
              address(weight), address(pooled), address(gate), address(grad_x),
              address(grad_weight), address(grad_bias), address(scratch)});
}

void gate_forward(int dtype, int64_t count, int threads, uintptr_t a, uintptr_t b, uintptr_t c,
                  uintptr_t total, uintptr_t product) {
  py::gil_scoped_release release;
  active->gate_forward(dtype, {count, threads, address(a), address(b), address(c), address(total),
                               address(product)});
}

void gate_backward(int dtype, int64_t count, int threads, uintptr_t grad_total,
                   uintptr_t grad_product, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t grad_a,
                   uintptr_t grad_b, uintptr_t grad_c) {
  py::gil_scoped_release release;
  active->gate_backward(
      dtype, {count, threads, address(grad_total), address(grad_product), address(a), address(b),
              address(c), address(grad_a), address(grad_b), address(grad_c)});
}

medseg::TripletShape triplet_shape(int64_t n, std::array<int64_t, 3> sizes,
                                   std::array<int64_t, 3> strides, std::array<int, 3> gate,
                                   std::array<bool, 3> turned, int gates, int taps, int threads,
                                   bool training, double eps) {
  return {n,
          {sizes[0], sizes[1], sizes[2]},
          strides[0],
          strides[1],
          strides[2],
          {gate[0], gate[1], gate[2]},
          {turned[0], turned[1], turned[2]},
          gates,
          taps,
          threads,
          training,
          eps};
}

void triplet_forward(int dtype, const medseg::TripletShape& shape, uintptr_t x,
                     uintptr_t conv_weight, uintptr_t bn_weight, uintptr_t bn_bias,
                     uintptr_t running_mean, uintptr_t running_var, uintptr_t out, uintptr_t stats,
                     uintptr_t planes, uintptr_t index, int index_bytes, uintptr_t scratch) {
  py::gil_scoped_release release;
  active->triplet_forward(
      dtype, {shape, address(x), address(conv_weight), address(bn_weight), address(bn_bias),
              address(running_mean), address(running_var), address(out), address(stats),
              address(planes), address(index), index_bytes, address(scratch)});
}

void triplet_backward(int dtype, const medseg::TripletShape& shape, uintptr_t x, uintptr_t grad_out,
                      uintptr_t conv_weight, uintptr_t bn_weight, uintptr_t bn_bias,
                      uintptr_t stats, uintptr_t planes, uintptr_t index, int index_bytes,
                      uintptr_t grad_x, uintptr_t grad_conv_weight, uintptr_t grad_bn_weight,
                      uintptr_t grad_bn_bias, uintptr_t scratch) {
  py::gil_scoped_release release;
  active->triplet_backward(
      dtype, {shape, address(x), address(grad_out), address(conv_weight), address(bn_weight),
              address(bn_bias), address(stats), address(planes), address(index), index_bytes,
              address(grad_x), address(grad_conv_weight), address(grad_bn_weight),
              address(grad_bn_bias), address(scratch)});
}

medseg::MdeShape mde_shape(std::array<int64_t, 4> sizes, int radius, int masks, bool shared,
                           bool reflect, bool channels_last, int threads) {
  return {sizes[0], sizes[1], sizes[2], sizes[3],      radius,
          masks,    shared,   reflect,  channels_last, threads};
}

using Strides4 = std::array<int64_t, 4>;

medseg::MdeStrides mde_strides(const Strides4& s) { return {s[0], s[1], s[2], s[3]}; }

void mde_forward(int dtype, const medseg::MdeShape& shape, uintptr_t x, Strides4 x_strides,
                 uintptr_t gains, uintptr_t quadrants, uintptr_t out, Strides4 out_strides,
                 uintptr_t up, Strides4 up_strides, int64_t up_c, uintptr_t up_out,
                 uintptr_t scratch) {
  py::gil_scoped_release release;
  medseg::MdeCall call{};
  call.shape = shape;
  call.source = address(x);
  call.source_strides = mde_strides(x_strides);
  call.gains = address(gains);
  call.quadrants = static_cast<const double*>(address(quadrants));
  call.out = address(out);
  call.out_strides = mde_strides(out_strides);
  call.up = address(up);
  call.up_strides = mde_strides(up_strides);
  call.up_c = up_c;
  call.up_out = address(up_out);
  call.scratch = address(scratch);
  active->mde(dtype, call);
}

void mde_backward(int dtype, const medseg::MdeShape& shape, uintptr_t grad_out,
                  Strides4 grad_strides, uintptr_t gains, uintptr_t quadrants, uintptr_t grad_x,
                  Strides4 out_strides, uintptr_t x, Strides4 x_strides, uintptr_t grad_gains,
                  uintptr_t scratch) {
  py::gil_scoped_release release;
  medseg::MdeCall call{};
  call.shape = shape;
  call.adjoint = true;
  call.source = address(grad_out);
  call.source_strides = mde_strides(grad_strides);
  call.gains = address(gains);
  call.quadrants = static_cast<const double*>(address(quadrants));
  call.out = address(grad_x);
  call.out_strides = mde_strides(out_strides);
  call.x = address(x);
  call.x_strides = mde_strides(x_strides);
  call.grad_gains = address(grad_gains);
  call.scratch = address(scratch);
  active->mde(dtype, call);
}

medseg::SplitShape split_shape(std::array<int64_t, 4> sizes, Strides strides, bool channels_last,
                               int radix, int cardinality, int threads, bool training, double eps) {
  return {sizes[0],      sizes[1], sizes[2],    sizes[3], strides[0], strides[1],
          channels_last, radix,    cardinality, threads,  training,   eps};
}

// The addresses in the order of SplitForward.
void split_forward(int dtype, const medseg::SplitShape& shape,
                   const std::array<uintptr_t, 15>& addresses) {
  py::gil_scoped_release release;
  const auto at = [&](int i) { return address(addresses[i]); };
  active->split_forward(dtype, {shape, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7),
                                at(8), at(9), at(10), at(11), at(12), at(13), at(14)});
}

// The addresses in the order of SplitBackward.
void split_backward(int dtype, const medseg::SplitShape& shape,
                    const std::array<uintptr_t, 12>& addresses) {
  py::gil_scoped_release release;
  const auto at = [&](int i) { return address(addresses[i]); };
  active->split_backward(dtype, {shape, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7),
                                 at(8), at(9), at(10), at(11)});
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Compiled CPU kernels of medseg; called through medseg.kernels.<op>.native.";
  m.def("isa", [] { return std::string(active->isa); }, "The instruction set in use.");
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const Kernels* k : supported()) names.emplace_back(k->isa);
        return names;
      },
      "What this processor can run, fastest first.");
  m.def("set_isa", set_isa, "Uses another of isas(); for tests and measurements.");

  py::class_<medseg::EcaShape>(m, "EcaShape").def(py::init(&eca_shape));
  py::class_<medseg::TripletShape>(m, "TripletShape").def(py::init(&triplet_shape));
  m.def("eca_scratch",
        [](int dtype, const medseg::EcaShape& s) { return active->eca_scratch(dtype, s); });
  m.def("eca_forward", eca_forward);
  m.def("eca_backward", eca_backward);
  m.def("gate_forward", gate_forward);
  m.def("gate_backward", gate_backward);
  m.def("triplet_scratch", [](int dtype, const medseg::TripletShape& s, bool backward) {
    return active->triplet_scratch(dtype, s, backward);
  });
  m.def("triplet_forward", triplet_forward);
  m.def("triplet_backward", triplet_backward);
  py::class_<medseg::MdeShape>(m, "MdeShape").def(py::init(&mde_shape));
  m.def("mde_scratch",
        [](int dtype, const medseg::MdeShape& s) { return active->mde_scratch(dtype, s); });
  m.def("mde_forward", mde_forward);
  m.def("mde_backward", mde_backward);
  py::class_<medseg::SplitShape>(m, "SplitShape").def(py::init(&split_shape));
  m.def("split_scratch", [](int dtype, const medseg::SplitShape& s, bool backward) {
    return active->split_scratch(dtype, s, backward);
  });
  m.def("split_forward", split_forward);
  m.def("split_backward", split_backward);
}

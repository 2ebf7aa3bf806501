// medseg.kernels._cpu: addresses and sizes in, nothing checked twice, the GIL released. Addresses
// come in the order of the argument blocks of cpu/kernels.h; the scratch is found here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "dlpack.h"
#include "pages.h"
#include "scratch.h"
#include "triplet_axes.h"

namespace py = pybind11;
using medseg::Kernels;
using medseg::Scratch;

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

template <size_t N>
using Sizes = std::array<int64_t, N>;
template <size_t N>
using Addresses = std::array<uintptr_t, N>;

py::object empty_map(int dtype, const Sizes<4>& sizes, bool channels_last) {
  PyObject* capsule = medseg::map_capsule(dtype, sizes, channels_last);
  if (!capsule && !PyErr_Occurred()) return py::none();
  if (!capsule) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(capsule);
}

medseg::EcaShape eca_shape(const Sizes<4>& sizes, const Sizes<2>& strides, bool channels_last,
                           int taps, int threads, int pool) {
  return {sizes[0],   sizes[1],   sizes[2] * sizes[3], sizes[3],
          strides[0], strides[1], channels_last,       taps,
          threads,    pool};
}

void eca_forward(int dtype, const Sizes<4>& sizes, const Sizes<2>& strides, bool channels_last,
                 int taps, int threads, int pool, const Addresses<8>& given) {
  py::gil_scoped_release release;
  const auto shape = eca_shape(sizes, strides, channels_last, taps, threads, pool);
  const auto at = [&](int i) { return address(given[i]); };
  const Scratch scratch(active->eca_scratch(dtype, shape));
  active->eca_forward(dtype,
                      {shape, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), scratch});
}

void eca_backward(int dtype, const Sizes<4>& sizes, const Sizes<2>& strides, bool channels_last,
                  int taps, int threads, int pool, const Sizes<2>& summed,
                  const Addresses<9>& given) {
  py::gil_scoped_release release;
  const auto shape = eca_shape(sizes, strides, channels_last, taps, threads, pool);
  const auto at = [&](int i) { return address(given[i]); };
  const Scratch scratch(active->eca_scratch(dtype, shape));
  active->eca_backward(dtype, {shape, at(0), at(1), at(2), summed[0], summed[1], at(3), at(4),
                               at(5), at(6), at(7), at(8), scratch});
}

void gate_forward(int dtype, int64_t count, int threads, const Addresses<5>& given) {
  py::gil_scoped_release release;
  const auto at = [&](int i) { return address(given[i]); };
  active->gate_forward(dtype, {count, threads, at(0), at(1), at(2), at(3), at(4)});
}

void gate_backward(int dtype, int64_t count, int threads, const Addresses<8>& given) {
  py::gil_scoped_release release;
  const auto at = [&](int i) { return address(given[i]); };
  active->gate_backward(dtype,
                        {count, threads, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)});
}

medseg::TripletShape triplet_shape(int64_t n, const Sizes<3>& sizes, const Sizes<3>& strides,
                                   bool channels_last, int gates, int taps, int threads,
                                   bool training, double eps) {
  medseg::TripletShape shape{};
  shape.n = n;
  for (int i = 0; i < 3; ++i) shape.a[i] = sizes[i];
  shape.stride_n = strides[0], shape.stride_0 = strides[1], shape.stride_1 = strides[2];
  shape.gates = gates, shape.taps = taps, shape.threads = threads;
  shape.training = training, shape.eps = eps;
  medseg::set_gates(&shape, channels_last);
  return shape;
}

void triplet_forward(int dtype, int64_t n, const Sizes<3>& sizes, const Sizes<3>& strides,
                     bool channels_last, int gates, int taps, int threads, bool training,
                     double eps, int index_bytes, const Addresses<10>& given) {
  py::gil_scoped_release release;
  const auto shape =
      triplet_shape(n, sizes, strides, channels_last, gates, taps, threads, training, eps);
  const auto at = [&](int i) { return address(given[i]); };
  const Scratch scratch(active->triplet_scratch(dtype, shape, false));
  active->triplet_forward(dtype, {shape, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7),
                                  at(8), at(9), index_bytes, scratch});
}

void triplet_backward(int dtype, int64_t n, const Sizes<3>& sizes, const Sizes<3>& strides,
                      bool channels_last, int gates, int taps, int threads, bool training,
                      double eps, int index_bytes, const Addresses<12>& given) {
  py::gil_scoped_release release;
  const auto shape =
      triplet_shape(n, sizes, strides, channels_last, gates, taps, threads, training, eps);
  const auto at = [&](int i) { return address(given[i]); };
  const Scratch scratch(active->triplet_scratch(dtype, shape, true));
  active->triplet_backward(dtype, {shape, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7),
                                   index_bytes, at(8), at(9), at(10), at(11), scratch});
}

// Addresses in the order of TripletPart.
template <auto Part>
void triplet_part(int dtype, int64_t n, const Sizes<3>& sizes, const Sizes<3>& strides,
                  bool channels_last, int gates, int threads, int index_bytes,
                  const Addresses<7>& given) {
  py::gil_scoped_release release;
  const auto shape = triplet_shape(n, sizes, strides, channels_last, gates, 1, threads, false, 0);
  const auto at = [&](int i) { return address(given[i]); };
  const Scratch scratch(active->triplet_part_scratch(dtype, shape));
  (active->*Part)(dtype,
                  {shape, at(0), at(1), at(2), at(3), at(4), index_bytes, at(5), at(6), scratch});
}

medseg::MdeStrides mde_strides(const Sizes<4>& s) { return {s[0], s[1], s[2], s[3]}; }

medseg::MdeCall mde_call(const Sizes<4>& sizes, int radius, int masks, bool shared, bool reflect,
                         bool channels_last, int threads) {
  medseg::MdeCall call{};
  call.shape = {sizes[0], sizes[1], sizes[2], sizes[3],      radius,
                masks,    shared,   reflect,  channels_last, threads};
  return call;
}

// Addresses: x, gains, quadrants, out, up, up_out.
void mde_forward(int dtype, const Sizes<4>& sizes, int radius, int masks, bool shared, bool reflect,
                 bool channels_last, int threads, const Sizes<4>& x_strides,
                 const Sizes<4>& out_strides, const Sizes<4>& up_strides, int64_t up_c,
                 const Addresses<6>& given) {
  py::gil_scoped_release release;
  auto call = mde_call(sizes, radius, masks, shared, reflect, channels_last, threads);
  call.source = address(given[0]);
  call.source_strides = mde_strides(x_strides);
  call.gains = address(given[1]);
  call.quadrants = static_cast<const double*>(address(given[2]));
  call.out = address(given[3]);
  call.out_strides = mde_strides(out_strides);
  call.up = address(given[4]);
  call.up_strides = mde_strides(up_strides);
  call.up_c = up_c;
  call.up_out = address(given[5]);
  const Scratch scratch(active->mde_scratch(dtype, call.shape));
  call.scratch = scratch;
  active->mde(dtype, call);
}

// Addresses: grad_out, gains, quadrants, grad_x, x, grad_gains.
void mde_backward(int dtype, const Sizes<4>& sizes, int radius, int masks, bool shared,
                  bool reflect, bool channels_last, int threads, const Sizes<4>& grad_strides,
                  const Sizes<4>& out_strides, const Sizes<4>& x_strides,
                  const Addresses<6>& given) {
  py::gil_scoped_release release;
  auto call = mde_call(sizes, radius, masks, shared, reflect, channels_last, threads);
  call.adjoint = true;
  call.source = address(given[0]);
  call.source_strides = mde_strides(grad_strides);
  call.gains = address(given[1]);
  call.quadrants = static_cast<const double*>(address(given[2]));
  call.out = address(given[3]);
  call.out_strides = mde_strides(out_strides);
  call.x = address(given[4]);
  call.x_strides = mde_strides(x_strides);
  call.grad_gains = address(given[5]);
  const Scratch scratch(active->mde_scratch(dtype, call.shape));
  call.scratch = scratch;
  active->mde(dtype, call);
}

medseg::SplitShape split_shape(const Sizes<4>& sizes, const Sizes<2>& strides, bool channels_last,
                               int radix, int cardinality, int threads, bool training, double eps) {
  return {sizes[0],      sizes[1], sizes[2],    sizes[3], strides[0], strides[1],
          channels_last, radix,    cardinality, threads,  training,   eps};
}

void split_forward(int dtype, const Sizes<4>& sizes, const Sizes<2>& strides, bool channels_last,
                   int radix, int cardinality, int threads, bool training, double eps,
                   const Addresses<14>& given) {
  py::gil_scoped_release release;
  const auto shape =
      split_shape(sizes, strides, channels_last, radix, cardinality, threads, training, eps);
  const auto at = [&](int i) { return address(given[i]); };
  const Scratch scratch(active->split_scratch(dtype, shape, false));
  active->split_forward(dtype, {shape, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7),
                                at(8), at(9), at(10), at(11), at(12), at(13), scratch});
}

void split_backward(int dtype, const Sizes<4>& sizes, const Sizes<2>& strides, bool channels_last,
                    int radix, int cardinality, int threads, bool training, double eps,
                    const Addresses<11>& given) {
  py::gil_scoped_release release;
  const auto shape =
      split_shape(sizes, strides, channels_last, radix, cardinality, threads, training, eps);
  const auto at = [&](int i) { return address(given[i]); };
  const Scratch scratch(active->split_scratch(dtype, shape, true));
  active->split_backward(dtype, {shape, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7),
                                 at(8), at(9), at(10), scratch});
}

// Addresses in the order of SplitPart.
template <auto Part>
void split_part(int dtype, const Sizes<3>& sizes, const Sizes<2>& strides, bool channels_last,
                int radix, int threads, const Addresses<5>& given) {
  py::gil_scoped_release release;
  const auto shape = split_shape({sizes[0], sizes[1], sizes[2], 0}, strides, channels_last, radix,
                                 1, threads, false, 0);
  const auto at = [&](int i) { return address(given[i]); };
  const Scratch scratch(active->split_part_scratch(dtype, shape));
  (active->*Part)(dtype, {shape, at(0), at(1), at(2), at(3), at(4), scratch});
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
  m.def("empty_map", empty_map, "A DLPack capsule of kept or fresh pages, or None.");
  m.def(
      "keep_pages", [](size_t bytes) { medseg::Pages::all().set_limit(bytes); },
      "How much is kept at most.");
  m.def(
      "kept_pages", [] { return medseg::Pages::all().held(); },
      "Bytes that are kept and in no use.");
  m.def("eca_forward", eca_forward);
  m.def("eca_backward", eca_backward);
  m.def("gate_forward", gate_forward);
  m.def("gate_backward", gate_backward);
  m.def("triplet_forward", triplet_forward);
  m.def("triplet_backward", triplet_backward);
  m.def("triplet_pool", triplet_part<&Kernels::triplet_pool>);
  m.def("triplet_pool_backward", triplet_part<&Kernels::triplet_pool_backward>);
  m.def("triplet_apply", triplet_part<&Kernels::triplet_apply>);
  m.def("triplet_apply_backward", triplet_part<&Kernels::triplet_apply_backward>);
  m.def("mde_forward", mde_forward);
  m.def("mde_backward", mde_backward);
  m.def("split_forward", split_forward);
  m.def("split_backward", split_backward);
  m.def("split_pool", split_part<&Kernels::split_pool>);
  m.def("split_apply", split_part<&Kernels::split_apply>);
  m.def("split_apply_backward", split_part<&Kernels::split_apply_backward>);
}

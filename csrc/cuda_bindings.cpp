// medseg.kernels._cuda: addresses and sizes in, nothing checked twice, the GIL released. A launch
// error comes out as RuntimeError. Importing it touches no driver.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "cuda/launchers.h"
#include "triplet_axes.h"

#ifndef MEDSEG_CUDA_ARCHS
#define MEDSEG_CUDA_ARCHS ""
#endif

namespace py = pybind11;
namespace cuda = medseg::cuda;

namespace {

using Parameter = std::pair<uintptr_t, int>;  // address (0: absent), dtype

void* address(uintptr_t p) { return reinterpret_cast<void*>(p); }
float* floats(uintptr_t p) { return reinterpret_cast<float*>(p); }
cuda::Param param(const Parameter& p) { return {address(p.first), p.second}; }

// Runs a launcher on the device of its tensors: this module has a CUDA runtime of its own, which
// need not share PyTorch's idea of the current device.
template <class F>
void on_stream(int device, uintptr_t stream, F launch) {
  cudaError_t error;
  {
    py::gil_scoped_release release;
    error = cudaSetDevice(device);
    if (error == cudaSuccess) error = launch(static_cast<cudaStream_t>(address(stream)));
  }
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA launch failed: ") + cudaGetErrorString(error));
}

using Strides = std::array<int64_t, 2>;

cuda::EcaShape eca_shape(std::array<int64_t, 4> sizes, Strides strides, bool channels_last,
                         int taps, int pool) {
  return {sizes[0], sizes[1], sizes[2] * sizes[3], sizes[3], strides[0], strides[1], channels_last,
          taps,     pool};
}

void eca_forward(int device, uintptr_t stream, int dtype, const cuda::EcaShape& shape, uintptr_t x,
                 uintptr_t residual, Parameter weight, Parameter bias, uintptr_t out,
                 uintptr_t summed, uintptr_t saved, uintptr_t scratch) {
  const cuda::EcaForward args{shape,           address(x),    address(residual),
                              param(weight),   param(bias),   address(out),
                              address(summed), floats(saved), address(scratch)};
  on_stream(device, stream, [&](cudaStream_t s) { return cuda::eca_forward(dtype, args, s); });
}

void eca_backward(int device, uintptr_t stream, int dtype, const cuda::EcaShape& shape, uintptr_t x,
                  uintptr_t grad_out, uintptr_t grad_summed, Strides strides, Parameter weight,
                  uintptr_t saved, uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias,
                  uintptr_t scratch) {
  const cuda::EcaBackward args{
      shape,           address(x),          address(grad_out), address(grad_summed),
      strides[0],      strides[1],          param(weight),     floats(saved),
      address(grad_x), floats(grad_weight), floats(grad_bias), address(scratch)};
  on_stream(device, stream, [&](cudaStream_t s) { return cuda::eca_backward(dtype, args, s); });
}

cuda::TripletShape triplet_shape(int64_t n, std::array<int64_t, 3> sizes,
                                 std::array<int64_t, 3> strides, bool channels_last, int gates,
                                 int taps, bool training, float eps) {
  cuda::TripletShape shape{};
  shape.n = n;
  for (int i = 0; i < 3; ++i) shape.a[i] = sizes[i];
  shape.stride_n = strides[0], shape.stride_0 = strides[1], shape.stride_1 = strides[2];
  shape.gates = gates, shape.taps = taps;
  shape.training = training, shape.eps = eps;
  medseg::set_gates(&shape, channels_last);
  return shape;
}

void triplet_forward(int device, uintptr_t stream, int dtype, const cuda::TripletShape& shape,
                     uintptr_t x, const std::array<Parameter, 5>& params, uintptr_t out,
                     uintptr_t stats, uintptr_t planes, uintptr_t index, int index_bytes,
                     uintptr_t scratch) {
  const cuda::TripletForward args{shape,
                                  address(x),
                                  param(params[0]),
                                  param(params[1]),
                                  param(params[2]),
                                  param(params[3]),
                                  param(params[4]),
                                  address(out),
                                  floats(stats),
                                  floats(planes),
                                  address(index),
                                  index_bytes,
                                  address(scratch)};
  on_stream(device, stream, [&](cudaStream_t s) { return cuda::triplet_forward(dtype, args, s); });
}

void triplet_backward(int device, uintptr_t stream, int dtype, const cuda::TripletShape& shape,
                      uintptr_t x, uintptr_t grad_out, const std::array<Parameter, 3>& params,
                      uintptr_t stats, uintptr_t planes, uintptr_t index, int index_bytes,
                      uintptr_t grad_x, uintptr_t grad_conv_weight, uintptr_t grad_bn_weight,
                      uintptr_t grad_bn_bias, uintptr_t scratch) {
  const cuda::TripletBackward args{shape,
                                   address(x),
                                   address(grad_out),
                                   param(params[0]),
                                   param(params[1]),
                                   param(params[2]),
                                   floats(stats),
                                   floats(planes),
                                   address(index),
                                   index_bytes,
                                   address(grad_x),
                                   floats(grad_conv_weight),
                                   floats(grad_bn_weight),
                                   floats(grad_bn_bias),
                                   address(scratch)};
  on_stream(device, stream, [&](cudaStream_t s) { return cuda::triplet_backward(dtype, args, s); });
}

// Addresses in the order of TripletPart.
template <auto Part>
void triplet_part(int device, uintptr_t stream, int dtype, const cuda::TripletShape& shape,
                  int index_bytes, const std::array<uintptr_t, 8>& given) {
  const auto at = [&](int i) { return address(given[i]); };
  const cuda::TripletPart args{shape, at(0),       at(1), floats(given[2]), floats(given[3]),
                               at(4), index_bytes, at(5), floats(given[6]), at(7)};
  on_stream(device, stream, [&](cudaStream_t s) { return Part(dtype, args, s); });
}

cuda::SplitShape split_shape(std::array<int64_t, 3> sizes, std::array<int64_t, 2> strides,
                             bool channels_last, std::array<int, 3> numbers, bool training,
                             float eps) {
  return {sizes[0],   sizes[1],   sizes[2],   strides[0], strides[1], channels_last,
          numbers[0], numbers[1], numbers[2], training,   eps};
}

void split_forward(int device, uintptr_t stream, int dtype, const cuda::SplitShape& shape,
                   uintptr_t x, const std::array<Parameter, 10>& params, uintptr_t out,
                   uintptr_t stats, uintptr_t saved, uintptr_t scratch) {
  const auto p = [&](int i) { return param(params[i]); };
  const cuda::SplitForward args{
      shape, address(x), p(0), p(1), p(2),         p(3),          p(4),          p(5),
      p(6),  p(7),       p(8), p(9), address(out), floats(stats), floats(saved), address(scratch)};
  on_stream(device, stream, [&](cudaStream_t s) { return cuda::split_forward(dtype, args, s); });
}

// grads: addresses of the gradients of fc1's weight and bias, the norm's, fc2's.
void split_backward(int device, uintptr_t stream, int dtype, const cuda::SplitShape& shape,
                    uintptr_t x, uintptr_t grad_out, const std::array<Parameter, 5>& params,
                    uintptr_t stats, uintptr_t saved, uintptr_t grad_x,
                    const std::array<uintptr_t, 6>& grads, uintptr_t scratch) {
  const auto p = [&](int i) { return param(params[i]); };
  const auto g = [&](int i) { return floats(grads[i]); };
  const cuda::SplitBackward args{
      shape,         address(x),      address(grad_out), p(0), p(1), p(2), p(3), p(4),
      floats(stats), floats(saved),   address(grad_x),   g(0), g(1), g(2), g(3), g(4),
      g(5),          address(scratch)};
  on_stream(device, stream, [&](cudaStream_t s) { return cuda::split_backward(dtype, args, s); });
}

using MapArgument = std::pair<uintptr_t, std::array<int64_t, 4>>;  // address (0: absent), strides

cuda::MdeMap mde_map(const MapArgument& m) {
  return {address(m.first), m.second[0], m.second[1], m.second[2], m.second[3]};
}

cuda::MdeBank mde_bank(int scales, std::array<int, 3> gain, std::array<float, 3> norm,
                       std::array<float, 12> row, bool cross) {
  cuda::MdeBank bank{};
  bank.scales = scales, bank.cross = cross;
  std::copy(gain.begin(), gain.end(), bank.gain);
  std::copy(norm.begin(), norm.end(), bank.norm);
  std::copy(row.begin(), row.end(), bank.row);
  return bank;
}

cuda::MdeShape mde_shape(std::array<int64_t, 4> sizes, bool last, bool reflect, int vec,
                         const cuda::MdeBank& bank) {
  return {sizes[0], sizes[1], static_cast<int>(sizes[2]), static_cast<int>(sizes[3]), last, reflect,
          vec,      bank};
}

void mde_forward(int device, uintptr_t stream, int dtype, const cuda::MdeShape& shape,
                 const MapArgument& x, const MapArgument& out, uintptr_t gains,
                 int64_t stride_gain) {
  const cuda::MdeForward args{shape, mde_map(x), mde_map(out), floats(gains), stride_gain};
  on_stream(device, stream, [&](cudaStream_t s) { return cuda::mde_forward(dtype, args, s); });
}

void mde_backward(int device, uintptr_t stream, int dtype, const cuda::MdeShape& shape,
                  const MapArgument& grad_out, const MapArgument& x, const MapArgument& grad_x,
                  uintptr_t gains, int64_t stride_gain, uintptr_t grad_gains, uintptr_t scratch) {
  const cuda::MdeBackward args{
      shape,         mde_map(grad_out), mde_map(x),         mde_map(grad_x),
      floats(gains), stride_gain,       floats(grad_gains), address(scratch)};
  on_stream(device, stream, [&](cudaStream_t s) { return cuda::mde_backward(dtype, args, s); });
}

void split_pool(int device, uintptr_t stream, int dtype, const cuda::SplitShape& shape, uintptr_t x,
                uintptr_t sums) {
  on_stream(device, stream, [&](cudaStream_t s) {
    return cuda::split_pool(dtype, shape, address(x), floats(sums), s);
  });
}

void split_apply(int device, uintptr_t stream, int dtype, const cuda::SplitShape& shape,
                 uintptr_t x, uintptr_t saved, uintptr_t out) {
  on_stream(device, stream, [&](cudaStream_t s) {
    return cuda::split_apply(dtype, shape, address(x), floats(saved), address(out), s);
  });
}

void split_apply_backward(int device, uintptr_t stream, int dtype, const cuda::SplitShape& shape,
                          uintptr_t x, uintptr_t grad_out, uintptr_t saved, uintptr_t means,
                          uintptr_t sums, uintptr_t grad_x) {
  const cuda::SplitApplyBackward args{shape,         address(x),   address(grad_out), floats(saved),
                                      floats(means), floats(sums), address(grad_x)};
  on_stream(device, stream,
            [&](cudaStream_t s) { return cuda::split_apply_backward(dtype, args, s); });
}

// Addresses in the order of GateForward.
void gate_forward(int device, uintptr_t stream, int dtype, int64_t count,
                  const std::array<uintptr_t, 5>& given) {
  const auto at = [&](int i) { return address(given[i]); };
  const cuda::GateForward args{count, at(0), at(1), at(2), at(3), at(4)};
  on_stream(device, stream, [&](cudaStream_t s) { return cuda::gate_forward(dtype, args, s); });
}

// Addresses in the order of GateBackward.
void gate_backward(int device, uintptr_t stream, int dtype, int64_t count,
                   const std::array<uintptr_t, 8>& given) {
  const auto at = [&](int i) { return address(given[i]); };
  const cuda::GateBackward args{count, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)};
  on_stream(device, stream, [&](cudaStream_t s) { return cuda::gate_backward(dtype, args, s); });
}

py::dict build_info() {
  py::dict info;
  info["cuda"] =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["archs"] = MEDSEG_CUDA_ARCHS;
  return info;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Compiled CUDA kernels of medseg; called through medseg.kernels.<op>.cuda.";
  m.def("build_info", build_info, "The CUDA version and the architectures this was built for.");
  m.attr("MAX_TRIPLET_TAPS") = cuda::kMaxTripletTaps;

  py::class_<cuda::EcaShape>(m, "EcaShape").def(py::init(&eca_shape));
  py::class_<cuda::TripletShape>(m, "TripletShape").def(py::init(&triplet_shape));
  py::class_<cuda::SplitShape>(m, "SplitShape").def(py::init(&split_shape));
  py::class_<cuda::MdeBank>(m, "MdeBank").def(py::init(&mde_bank));
  py::class_<cuda::MdeShape>(m, "MdeShape").def(py::init(&mde_shape));
  m.def("eca_scratch", cuda::eca_scratch, "Bytes of scratch for either direction.");
  m.def("eca_forward", eca_forward);
  m.def("eca_backward", eca_backward);
  m.def("triplet_scratch", cuda::triplet_scratch, "Bytes of scratch for one direction.");
  m.def("triplet_forward", triplet_forward);
  m.def("triplet_backward", triplet_backward);
  m.def("triplet_pool", triplet_part<cuda::triplet_pool>);
  m.def("triplet_pool_backward", triplet_part<cuda::triplet_pool_backward>);
  m.def("triplet_apply", triplet_part<cuda::triplet_apply>);
  m.def("triplet_apply_backward", triplet_part<cuda::triplet_apply_backward>);
  m.def("split_scratch", cuda::split_scratch, "Bytes of scratch for one direction.");
  m.def("split_forward", split_forward);
  m.def("split_backward", split_backward);
  m.def("split_parts", cuda::split_parts, "How many partial sums a channel has.");
  m.def("split_pool", split_pool);
  m.def("split_apply", split_apply);
  m.def("split_apply_backward", split_apply_backward);
  m.def("mde_scratch", cuda::mde_scratch, "Bytes of scratch for learned gains.");
  m.def("mde_forward", mde_forward);
  m.def("mde_backward", mde_backward);
  m.def("gate_forward", gate_forward);
  m.def("gate_backward", gate_backward);
}

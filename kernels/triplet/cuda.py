"""Launchers of the compiled CUDA kernels of triplet attention."""

import torch
from torch import Tensor

from .._backend import like_input, like_layout, native
from .._cuda_launch import DTYPES, on_device, parameter, rows_dense, scratch
from .axes import memory_axes
from .op import index_dtype, plane_elements


def forward(
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (out, stats, planes, index); the last two are empty unless ``keep``."""
    cuda = native("_cuda")
    out = like_input(x)
    stats = x.new_empty((3, conv_weight.shape[0]), dtype=torch.float32)
    positions = plane_elements(x) if keep else 0
    planes = x.new_empty(2 * positions, dtype=torch.float32)
    index = x.new_empty(positions, dtype=index_dtype(x))
    if x.numel() == 0:
        return out, stats.zero_(), planes, index
    x = rows_dense(x)
    params = _contiguous(conv_weight, bn_weight, bn_bias, running_mean, running_var)
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, conv_weight, training, eps)
    work = scratch(x, cuda.triplet_scratch(dtype, shape, False))
    with on_device(x) as (device, stream):
        cuda.triplet_forward(
            device, stream, dtype, shape, x.data_ptr(), [parameter(p) for p in params],
            out.data_ptr(), stats.data_ptr(), planes.data_ptr() if keep else 0, index.data_ptr(),
            index.element_size(), work.data_ptr(),
        )  # fmt: skip
    return out, stats, planes, index


def backward(
    grad_out: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    stats: Tensor,
    planes: Tensor,
    index: Tensor,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (grad_x, grad_conv_weight, grad_bn_weight, grad_bn_bias), the last three float32."""
    cuda = native("_cuda")
    grad_x = like_input(x)
    grad_conv = stats.new_empty(conv_weight.shape)
    grad_bn = stats.new_empty((2, bn_weight.shape[0]))
    if x.numel() == 0:
        return grad_x, grad_conv.zero_(), grad_bn[0].zero_(), grad_bn[1].zero_()
    grad_out = like_layout(x, grad_out)
    x = rows_dense(x)
    params = _contiguous(conv_weight, bn_weight, bn_bias)
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, conv_weight, training, eps)
    work = scratch(x, cuda.triplet_scratch(dtype, shape, True))
    with on_device(x) as (device, stream):
        cuda.triplet_backward(
            device, stream, dtype, shape, x.data_ptr(), grad_out.data_ptr(),
            [parameter(p) for p in params], stats.data_ptr(), planes.data_ptr(), index.data_ptr(),
            index.element_size(), grad_x.data_ptr(), grad_conv.data_ptr(), grad_bn[0].data_ptr(),
            grad_bn[1].data_ptr(), work.data_ptr(),
        )  # fmt: skip
    return grad_x, grad_conv, grad_bn[0], grad_bn[1]


def pool(x: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """Returns (planes (2, positions), index (positions,)); see ``parts.py``."""
    empty = x.new_empty if gates == 3 else x.new_zeros  # kernels skip a plane without a gate
    planes = empty((2, plane_elements(x)), dtype=torch.float32)
    index = empty((plane_elements(x),), dtype=index_dtype(x))
    if x.numel():
        _run("pool", rows_dense(x), gates, planes=planes, index=index)
    return planes, index


def pool_backward(grad_planes: Tensor, x: Tensor, index: Tensor, gates: int) -> Tensor:
    """Returns grad_x."""
    grad_x = like_input(x)
    if x.numel():
        grad_planes = grad_planes.contiguous()
        _run("pool_backward", rows_dense(x), gates, planes=grad_planes, index=index, mapped=grad_x)
    return grad_x


def apply(x: Tensor, gate: Tensor, gates: int) -> Tensor:
    """Returns x times the mean of the gates (positions,)."""
    out = like_input(x)
    if x.numel():
        _run("apply", rows_dense(x), gates, gate=gate.contiguous(), mapped=out)
    return out


def apply_backward(grad_out: Tensor, x: Tensor, gate: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """Returns (grad_x, grad_gate)."""
    grad_x = like_input(x)
    grad_gate = torch.empty_like(gate) if gates == 3 else torch.zeros_like(gate)
    if x.numel():
        grad_out = like_layout(x, grad_out)
        _run(
            "apply_backward", rows_dense(x), gates, grad_out=grad_out, gate=gate.contiguous(),
            mapped=grad_x, grad_gate=grad_gate,
        )  # fmt: skip
    return grad_x, grad_gate


_GIVEN = ("grad_out", "gate", "planes", "index", "mapped", "grad_gate")


def _run(part: str, x: Tensor, gates: int, **given: Tensor) -> None:
    """Launches a part; what of ``_GIVEN`` it takes is given."""
    cuda = native("_cuda")
    dtype = DTYPES[x.dtype]
    shape = cuda.TripletShape(x.shape[0], *memory_axes(x), gates, 1, False, 0.0)
    work = scratch(x, cuda.triplet_scratch(dtype, shape, False))
    tensors = (x, *(given.get(name) for name in _GIVEN), work)
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    width = given["index"].element_size() if "index" in given else 2
    with on_device(x) as (device, stream):
        getattr(cuda, f"triplet_{part}")(device, stream, dtype, shape, width, addresses)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


def _shape(cuda, x: Tensor, conv_weight: Tensor, training: bool, eps: float):  # noqa: ANN001
    if conv_weight.shape[-1] > cuda.MAX_TRIPLET_TAPS:
        raise ValueError(
            f"conv_weight must have k of at most {cuda.MAX_TRIPLET_TAPS} for backend 'cuda', got "
            f"{tuple(conv_weight.shape)}; use backend='reference'"
        )
    gates, taps = conv_weight.shape[0], conv_weight.shape[-1]
    return cuda.TripletShape(x.shape[0], *memory_axes(x), gates, taps, training, eps)

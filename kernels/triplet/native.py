"""Launchers of the compiled CPU kernels of triplet attention."""

import torch
from torch import Tensor

from .._backend import accumulator, is_channels_last, like_input, like_layout, native
from .._cpu_launch import DTYPES, scratch, threads_for
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
    cpu, acc = native("_cpu"), accumulator(x.dtype)
    out = like_input(x)
    stats = torch.zeros((3, conv_weight.shape[0]), dtype=acc)
    positions = plane_elements(x, keep)
    planes = torch.empty(2 * positions, dtype=acc)
    index = torch.empty(positions, dtype=index_dtype(x))
    if x.numel() == 0:
        return out, stats, planes, index
    x = _rows_dense(x)
    params = _params(acc, conv_weight, bn_weight, bn_bias, running_mean, running_var)
    dtype, shape = DTYPES[x.dtype], _shape(cpu, x, conv_weight, training, eps)
    with scratch(cpu.triplet_scratch(dtype, shape, False)) as work:
        cpu.triplet_forward(
            dtype, shape, x.data_ptr(), *(p.data_ptr() for p in params), out.data_ptr(),
            stats.data_ptr(), planes.data_ptr() if keep else 0, index.data_ptr(),
            index.element_size(), work,
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
    """Returns (grad_x, grad_conv_weight, grad_bn_weight, grad_bn_bias), the last three in acc."""
    cpu, acc = native("_cpu"), stats.dtype
    grad_x = like_input(x)
    grad_conv = torch.zeros(conv_weight.shape, dtype=acc)
    grad_bn = torch.zeros((2, bn_weight.shape[0]), dtype=acc)
    if x.numel():
        grad_out = like_layout(x, grad_out)
        x = _rows_dense(x)
        params = _params(acc, conv_weight, bn_weight, bn_bias)
        dtype, shape = DTYPES[x.dtype], _shape(cpu, x, conv_weight, training, eps)
        with scratch(cpu.triplet_scratch(dtype, shape, True)) as work:
            cpu.triplet_backward(
                dtype, shape, x.data_ptr(), grad_out.data_ptr(), *(p.data_ptr() for p in params),
                stats.data_ptr(), planes.data_ptr(), index.data_ptr(), index.element_size(),
                grad_x.data_ptr(), grad_conv.data_ptr(), grad_bn[0].data_ptr(),
                grad_bn[1].data_ptr(), work,
            )  # fmt: skip
    return grad_x, grad_conv, grad_bn[0], grad_bn[1]


def _params(acc: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    return [t.to(acc).contiguous() for t in tensors]


def _rows_dense(x: Tensor) -> Tensor:
    """``x`` itself if the innermost memory axis is dense, else a contiguous copy."""
    return x if is_channels_last(x) or x.stride(3) == 1 else x.contiguous()


def _shape(cpu, x: Tensor, conv_weight: Tensor, training: bool, eps: float):  # noqa: ANN001
    gates, taps = conv_weight.shape[0], conv_weight.shape[-1]
    axes = memory_axes(x, gates)
    return cpu.TripletShape(x.shape[0], *axes, gates, taps, threads_for(x), training, eps)

"""Launchers of the compiled CPU kernels of triplet attention."""

import torch
from torch import Tensor

from .._backend import accumulator, is_channels_last, like_layout, native
from .._cpu_launch import DTYPES, addresses, empty_map, parameters, threads_for
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
    acc = accumulator(x.dtype)
    out = empty_map(x)
    stats = torch.empty(3, conv_weight.shape[0], dtype=acc)
    positions = plane_elements(x) if keep else 0
    planes = torch.empty(2 * positions, dtype=acc)
    index = torch.empty(positions, dtype=index_dtype(x))
    if x.numel() == 0:
        return out, stats.zero_(), planes, index
    x = _rows_dense(x)
    given = (conv_weight, bn_weight, bn_bias, running_mean, running_var)
    params = parameters(given, acc)
    kept = (planes, index) if keep else (None, None)
    native("_cpu").triplet_forward(
        *_shape(x, conv_weight, training, eps), index.element_size(),
        addresses(x, *params, out, stats, *kept),
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
    acc = stats.dtype
    grad_x = empty_map(x)
    grad_conv = torch.zeros(conv_weight.shape, dtype=acc)
    grad_bn = torch.zeros((2, bn_weight.shape[0]), dtype=acc)
    if x.numel():
        grad_out = like_layout(x, grad_out)
        x = _rows_dense(x)
        params = parameters((conv_weight, bn_weight, bn_bias), acc)
        given = addresses(x, grad_out, *params, stats, planes, index, grad_x, grad_conv, *grad_bn)
        native("_cpu").triplet_backward(
            *_shape(x, conv_weight, training, eps), index.element_size(), given
        )
    return grad_x, grad_conv, grad_bn[0], grad_bn[1]


def pool(x: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """Returns (planes (2, positions) in acc, index (positions,)); see ``parts.py``."""
    planes = torch.empty(2, plane_elements(x), dtype=accumulator(x.dtype))
    index = torch.empty(plane_elements(x), dtype=index_dtype(x))
    if x.numel():
        x = _rows_dense(x)
        given = addresses(x, None, None, planes, index, None, None)
        native("_cpu").triplet_pool(*_part(x, gates), index.element_size(), given)
    return planes, index


def pool_backward(grad_planes: Tensor, x: Tensor, index: Tensor, gates: int) -> Tensor:
    """Returns grad_x."""
    grad_x = empty_map(x)
    if x.numel():
        x, grad_planes = _rows_dense(x), grad_planes.contiguous()
        given = addresses(None, None, None, grad_planes, index, grad_x, None)
        native("_cpu").triplet_pool_backward(*_part(x, gates), index.element_size(), given)
    return grad_x


def apply(x: Tensor, gate: Tensor, gates: int) -> Tensor:
    """Returns x times the mean of the gates (positions,) in acc."""
    out = empty_map(x)
    if x.numel():
        x, gate = _rows_dense(x), gate.contiguous()
        given = addresses(x, None, gate, None, None, out, None)
        native("_cpu").triplet_apply(*_part(x, gates), 2, given)
    return out


def apply_backward(grad_out: Tensor, x: Tensor, gate: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """Returns (grad_x, grad_gate in acc)."""
    grad_x, grad_gate = empty_map(x), torch.empty(gate.shape, dtype=gate.dtype)
    if x.numel():
        grad_out, gate = like_layout(x, grad_out), gate.contiguous()
        x = _rows_dense(x)
        given = addresses(x, grad_out, gate, None, None, grad_x, grad_gate)
        native("_cpu").triplet_apply_backward(*_part(x, gates), 2, given)
    return grad_x, grad_gate


def _part(x: Tensor, gates: int) -> tuple:
    """What the parts of the compiled module take first."""
    return DTYPES[x.dtype], x.shape[0], *memory_axes(x), gates, threads_for(x)


def _rows_dense(x: Tensor) -> Tensor:
    """``x`` itself if the innermost memory axis is dense, else a contiguous copy."""
    return x if x.stride(3) == 1 or is_channels_last(x) else x.contiguous()


def _shape(x: Tensor, conv_weight: Tensor, training: bool, eps: float) -> tuple:
    """What both functions of the compiled module take first."""
    sizes, strides, last, (gates, _, taps, _) = *memory_axes(x), conv_weight.shape
    return (
        DTYPES[x.dtype], x.shape[0], sizes, strides, last, gates, taps, threads_for(x), training,
        eps,
    )  # fmt: skip

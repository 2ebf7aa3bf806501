"""Launchers of the compiled CPU kernels of ECA: allocate, look up the dtype, pass addresses."""

import torch
from torch import Tensor

from .._backend import accumulator, is_channels_last, like_layout, native
from .._cpu_launch import DTYPES, addresses, dense_planes, empty_map, parameter, threads_for
from .maps import in_order_of, pooled_shape


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (out, summed or an empty tensor, saved).

    saved (2, N, C) holds the pooled means and the gates.
    """
    acc = accumulator(x.dtype)
    out = empty_map(x, pooled_shape(x, pool))
    summed = x.new_empty(0) if residual is None else empty_map(x)
    saved = torch.empty(2, x.shape[0], x.shape[1], dtype=acc)
    if x.numel() == 0:
        return out, summed, saved
    residual = None if residual is None else like_layout(x, residual)
    x = dense_planes(x)
    weight, bias = parameter(weight, acc), parameter(bias, acc)
    given = addresses(x, residual, weight, bias, out, summed, saved)
    native("_cpu").eca_forward(*_shape(x, weight, pool), [*given, _second_half(saved)])
    return out, summed, saved


def backward(
    grad_out: Tensor,
    grad_summed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    pool: int,
    need_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Returns (grad_x or None, grad_weight (K,), grad_bias (1,)), the last two in acc dtype.

    x is the sum where there was a residual; grad_summed is None unless ``pool`` is 2.
    """
    acc = saved.dtype
    grad_x = empty_map(x) if need_input else None
    grads = torch.zeros(weight.numel() + 1, dtype=acc)
    if x.numel():
        x, weight, strides = dense_planes(x), parameter(weight, acc), (0, 0)
        grad_out = like_layout(x, grad_out)
        if grad_summed is not None:
            grad_summed, strides = in_order_of(x, grad_summed)
        maps = addresses(x, grad_out, grad_summed, weight, saved)
        found = addresses(grad_x, grads[:-1], grads[-1:])
        native("_cpu").eca_backward(
            *_shape(x, weight, pool), strides, [*maps, _second_half(saved), *found]
        )
    return grad_x, grads[:-1], grads[-1:]


def _second_half(saved: Tensor) -> int:
    """Where the gates lie, behind the pooled means."""
    return saved.data_ptr() + saved.nbytes // 2


def _shape(x: Tensor, weight: Tensor, pool: int) -> tuple:
    """What both functions of the compiled module take first."""
    strides = x.stride()
    return (
        DTYPES[x.dtype], x.shape, (strides[0], strides[1]), is_channels_last(x), weight.shape[0],
        threads_for(x), pool,
    )  # fmt: skip

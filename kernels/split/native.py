"""Launchers of the compiled CPU kernels of split attention."""

import torch
from torch import Tensor

from .._backend import accumulator, is_channels_last, like_layout, native
from .._cpu_launch import DTYPES, addresses, dense_planes, empty_map, parameters, threads_for


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    radix: int,
    cardinality: int,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (out, stats (3, I), saved (N, (1+R)*C)): pooled sums and gates in x's order."""
    acc = accumulator(x.dtype)
    n, width, h, w = x.shape
    out = empty_map(x, (n, width // radix, h, w))
    inner = fc1_weight.shape[0]
    saved = torch.empty(n, width // radix + width, dtype=acc)
    if n == 0:
        return out, torch.zeros((3, inner), dtype=acc), saved
    stats = torch.empty(3, inner, dtype=acc)
    x = dense_planes(x)
    given = (
        scale, shift, fc1_weight, fc1_bias, bn_weight, bn_bias, running_mean, running_var,
        fc2_weight, fc2_bias,
    )  # fmt: skip
    params = parameters(given, acc)
    shape = _shape(x, inner, radix, cardinality, training, eps)
    native("_cpu").split_forward(*shape, addresses(x, *params, out, stats, saved))
    return out, stats, saved


def backward(
    grad_out: Tensor,
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    bn_weight: Tensor,
    bn_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    stats: Tensor,
    saved: Tensor,
    radix: int,
    cardinality: int,
    training: bool,
    eps: float,
    need_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns (grad_x or None, the gradients of the six parameters in acc dtype)."""
    acc, inner = stats.dtype, fc1_weight.shape[0]
    grad_x = empty_map(x) if need_input else None
    sizes = (fc1_weight.numel(), inner, inner, inner, fc2_weight.numel(), x.shape[1])
    grads = torch.zeros(sum(sizes), dtype=acc)
    if x.shape[0]:
        grad_out = like_layout(x, grad_out)
        x = dense_planes(x)
        params = parameters((fc1_weight, fc1_bias, bn_weight, bn_bias, fc2_weight), acc)
        shape = _shape(x, inner, radix, cardinality, training, eps)
        given = addresses(x, grad_out, *params, stats, saved, grad_x, grads)
        native("_cpu").split_backward(*shape, given)
    fc1, fc1_b, bn_w, bn_b, fc2, fc2_b = grads.split(sizes)
    return grad_x, fc1.view_as(fc1_weight), fc1_b, bn_w, bn_b, fc2.view_as(fc2_weight), fc2_b


def pool(x: Tensor, radix: int) -> Tensor:
    """Returns the mean over the map of the splits' sum, (N, C) in acc."""
    n, width, _, _ = x.shape
    pooled = torch.empty(n, width // radix, dtype=accumulator(x.dtype))
    if n:
        x = dense_planes(x)
        native("_cpu").split_pool(*_part(x, radix), addresses(x, None, None, None, pooled))
    return pooled


def apply(x: Tensor, gates: Tensor, radix: int) -> Tensor:
    """Returns the sum of the splits, each weighted by its gates (N, R*C) in acc."""
    n, width, h, w = x.shape
    out = empty_map(x, (n, width // radix, h, w))
    if n:
        x, gates = dense_planes(x), gates.contiguous()
        native("_cpu").split_apply(*_part(x, radix), addresses(x, None, gates, out, None))
    return out


def apply_backward(
    grad_out: Tensor, x: Tensor, gates: Tensor, radix: int, need_input: bool
) -> tuple[Tensor | None, Tensor]:
    """Returns (grad_x or None, grad_gates in acc)."""
    grad_x = empty_map(x) if need_input else None
    grad_gates = torch.empty(gates.shape, dtype=gates.dtype)
    if x.shape[0]:
        grad_out, gates = like_layout(x, grad_out), gates.contiguous()
        x = dense_planes(x)
        given = addresses(x, grad_out, gates, grad_x, grad_gates)
        native("_cpu").split_apply_backward(*_part(x, radix), given)
    return grad_x, grad_gates


def _part(x: Tensor, radix: int) -> tuple:
    """What the parts of the compiled module take first."""
    n, width, h, w = x.shape
    strides = x.stride()
    return (
        DTYPES[x.dtype], (n, width // radix, h * w), (strides[0], strides[1]), is_channels_last(x),
        radix, threads_for(x),
    )  # fmt: skip


def _shape(
    x: Tensor, inner: int, radix: int, cardinality: int, training: bool, eps: float
) -> tuple:
    """What both functions of the compiled module take first."""
    n, width, h, w = x.shape
    strides = x.stride()
    return (
        DTYPES[x.dtype], (n, width // radix, h * w, inner), (strides[0], strides[1]),
        is_channels_last(x), radix, cardinality, threads_for(x), training, eps,
    )  # fmt: skip

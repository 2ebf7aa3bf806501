"""Launchers of the compiled CPU kernels of split attention."""

import torch
from torch import Tensor

from .._backend import accumulator, is_channels_last, like_input, like_layout, native
from .._cpu_launch import DTYPES, dense_planes, scratch, threads_for


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
    cpu, acc = native("_cpu"), accumulator(x.dtype)
    n, width, h, w = x.shape
    out = like_input(x, (n, width // radix, h, w))
    inner = fc1_weight.shape[0]
    saved = torch.empty((n, width // radix + width), dtype=acc)
    if n == 0:
        return out, torch.zeros((3, inner), dtype=acc), saved
    stats = torch.empty((3, inner), dtype=acc)
    x = dense_planes(x)
    given = (
        scale, shift, fc1_weight, fc1_bias, bn_weight, bn_bias, running_mean, running_var,
        fc2_weight, fc2_bias,
    )  # fmt: skip
    params = [None if t is None else t.to(acc).contiguous() for t in given]
    dtype = DTYPES[x.dtype]
    shape = _shape(cpu, x, inner, radix, cardinality, training, eps)
    with scratch(cpu.split_scratch(dtype, shape, False)) as work:
        tensors = (x, *params, out, stats, saved)
        cpu.split_forward(
            dtype, shape, [*(0 if t is None else t.data_ptr() for t in tensors), work]
        )
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
    cpu, acc, inner = native("_cpu"), stats.dtype, fc1_weight.shape[0]
    grad_x = like_input(x) if need_input else None
    sizes = (fc1_weight.numel(), inner, inner, inner, fc2_weight.numel(), x.shape[1])
    grads = torch.zeros(sum(sizes), dtype=acc)
    if x.shape[0]:
        grad_out = like_layout(x, grad_out)
        x = dense_planes(x)
        given = (fc1_weight, fc1_bias, bn_weight, bn_bias, fc2_weight)
        params = [None if t is None else t.to(acc).contiguous() for t in given]
        dtype = DTYPES[x.dtype]
        shape = _shape(cpu, x, inner, radix, cardinality, training, eps)
        with scratch(cpu.split_scratch(dtype, shape, True)) as work:
            tensors = (x, grad_out, *params, stats, saved, grad_x, grads)
            addresses = [*(0 if t is None else t.data_ptr() for t in tensors), work]
            cpu.split_backward(dtype, shape, addresses)
    fc1, fc1_b, bn_w, bn_b, fc2, fc2_b = grads.split(sizes)
    return grad_x, fc1.view_as(fc1_weight), fc1_b, bn_w, bn_b, fc2.view_as(fc2_weight), fc2_b


def _shape(cpu, x: Tensor, inner: int, radix: int, cardinality: int, training: bool, eps: float):  # noqa: ANN001
    n, width, h, w = x.shape
    strides = x.stride()
    return cpu.SplitShape(
        (n, width // radix, h * w, inner), (strides[0], strides[1]), is_channels_last(x), radix,
        cardinality, threads_for(x), training, eps,
    )  # fmt: skip

"""Launchers of the compiled CUDA kernels of split attention."""

import torch
from torch import Tensor

from .._backend import is_channels_last, like_input, like_layout, native
from .._cuda_launch import DTYPES, on_device, parameter, planes_dense, scratch, strides_of


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
    """Returns (out, stats, saved); see ``op.py``."""
    cuda = native("_cuda")
    n, width, h, w = x.shape
    out = like_input(x, (n, width // radix, h, w))
    stats = x.new_empty((3, fc1_weight.shape[0]), dtype=torch.float32)
    saved = x.new_empty((n, width // radix + width), dtype=torch.float32)
    if n == 0:
        return out, stats.zero_(), saved
    x = planes_dense(x)
    params = _contiguous(
        scale, shift, fc1_weight, fc1_bias, bn_weight, bn_bias, running_mean, running_var,
        fc2_weight, fc2_bias,
    )  # fmt: skip
    numbers = (radix, cardinality, fc1_weight.shape[0])
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, numbers, training, eps)
    work = scratch(x, cuda.split_scratch(dtype, shape, False))
    with on_device(x) as (device, stream):
        cuda.split_forward(
            device, stream, dtype, shape, x.data_ptr(), [parameter(p) for p in params],
            out.data_ptr(), stats.data_ptr(), saved.data_ptr(), work.data_ptr(),
        )  # fmt: skip
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
    """Returns (grad_x or None, gradients of the six parameters in float32)."""
    cuda = native("_cuda")
    grad_x = like_input(x) if need_input else None
    inner = fc1_weight.shape[0]
    grad_fc1, grad_fc2 = (stats.new_empty(t.shape) for t in (fc1_weight, fc2_weight))
    rows, grad_bias = stats.new_empty((3, inner)), stats.new_empty(x.shape[1])
    grads = (grad_fc1, rows[0], rows[1], rows[2], grad_fc2, grad_bias)
    if x.shape[0] == 0:
        for grad in grads:
            grad.zero_()
        return grad_x, *grads
    grad_out, x = like_layout(x, grad_out), planes_dense(x)
    params = _contiguous(fc1_weight, fc1_bias, bn_weight, bn_bias, fc2_weight)
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, (radix, cardinality, inner), training, eps)
    work = scratch(x, cuda.split_scratch(dtype, shape, True))
    with on_device(x) as (device, stream):
        cuda.split_backward(
            device, stream, dtype, shape, x.data_ptr(), grad_out.data_ptr(),
            [parameter(p) for p in params], stats.data_ptr(), saved.data_ptr(),
            0 if grad_x is None else grad_x.data_ptr(), [g.data_ptr() for g in grads],
            work.data_ptr(),
        )  # fmt: skip
    return grad_x, *grads


def pool(x: Tensor, radix: int) -> Tensor:
    """Returns the mean over the map of the splits' sum, (N, C)."""
    cuda = native("_cuda")
    n, width, h, w = x.shape
    if n == 0:
        return x.new_empty((0, width // radix), dtype=torch.float32)
    x = planes_dense(x)
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, (radix, 1, 1), False, 0.0)
    parts = cuda.split_parts(dtype, shape)
    sums = x.new_empty((n, width // radix, parts), dtype=torch.float32)
    with on_device(x) as (device, stream):
        cuda.split_pool(device, stream, dtype, shape, x.data_ptr(), sums.data_ptr())
    return sums.sum(2).div_(h * w)


def apply(x: Tensor, gates: Tensor, radix: int) -> Tensor:
    """Returns the sum of the splits, each weighted by its gates (N, R*C)."""
    cuda = native("_cuda")
    n, width, h, w = x.shape
    out = like_input(x, (n, width // radix, h, w))
    if n == 0:
        return out
    x, saved = planes_dense(x), _behind_means(gates, radix)
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, (radix, 1, 1), False, 0.0)
    with on_device(x) as (device, stream):
        cuda.split_apply(
            device, stream, dtype, shape, x.data_ptr(), saved.data_ptr(), out.data_ptr()
        )
    return out


def apply_backward(
    grad_out: Tensor, x: Tensor, gates: Tensor, radix: int, need_input: bool
) -> tuple[Tensor | None, Tensor]:
    """Returns (grad_x or None, grad_gates)."""
    cuda = native("_cuda")
    grad_x = like_input(x) if need_input else None
    if x.shape[0] == 0:
        return grad_x, torch.zeros_like(gates)
    grad_out, saved = like_layout(x, grad_out), _behind_means(gates, radix)
    x = planes_dense(x)
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, (radix, 1, 1), False, 0.0)
    sums = gates.new_empty((*gates.shape, cuda.split_parts(dtype, shape)))
    means = gates.new_zeros((x.shape[0], gates.shape[1] // radix))
    with on_device(x) as (device, stream):
        cuda.split_apply_backward(
            device, stream, dtype, shape, x.data_ptr(), grad_out.data_ptr(), saved.data_ptr(),
            means.data_ptr(), sums.data_ptr(), 0 if grad_x is None else grad_x.data_ptr(),
        )  # fmt: skip
    return grad_x, sums.sum(2)


def _behind_means(gates: Tensor, radix: int) -> Tensor:
    """(N, (1 + R) * C), as the kernels keep what they made: zeros for the means, then ``gates``."""
    return torch.nn.functional.pad(gates, (gates.shape[1] // radix, 0))


def _contiguous(*parameters: Tensor | None) -> list[Tensor | None]:
    return [None if p is None else p.contiguous() for p in parameters]


def _shape(cuda, x: Tensor, numbers: tuple[int, int, int], training: bool, eps: float):  # noqa: ANN001
    """``numbers``: radix, cardinality, hidden units."""
    n, width, h, w = x.shape
    last = is_channels_last(x)
    sizes = (n, width // numbers[0], h * w)
    return cuda.SplitShape(sizes, strides_of(x, last), last, numbers, training, eps)

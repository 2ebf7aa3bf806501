"""Launchers of the compiled CUDA kernels of ECA: allocate, look up dtypes, pass addresses."""

import torch
from torch import Tensor

from .._backend import is_channels_last, like_input, like_layout, native
from .._cuda_launch import DTYPES, on_device, parameter, planes_dense, scratch, strides_of
from .maps import in_order_of, pooled_like


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (out, summed or an empty tensor, saved).

    saved (2, N, C) float32 holds the pooled means and the gates.
    """
    cuda = native("_cuda")
    out = pooled_like(x, pool)
    summed = x.new_empty(0) if residual is None else like_input(x)
    saved = x.new_empty((2, x.shape[0], x.shape[1]), dtype=torch.float32)
    if x.numel() == 0:
        return out, summed, saved
    residual = None if residual is None else like_layout(x, residual)
    x, weight = planes_dense(x), weight.contiguous()
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, weight, pool)
    work = scratch(x, cuda.eca_scratch(dtype, shape))
    with on_device(x) as (device, stream):
        cuda.eca_forward(
            device, stream, dtype, shape, x.data_ptr(), _address(residual), parameter(weight),
            parameter(bias), out.data_ptr(), summed.data_ptr(), saved.data_ptr(), work.data_ptr(),
        )  # fmt: skip
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
    """Returns (grad_x or None, grad_weight (K,), grad_bias (1,)), the last two in float32.

    x is the sum where there was a residual; grad_summed is None unless ``pool`` is 2.
    """
    cuda = native("_cuda")
    grad_x = like_input(x) if need_input else None
    grads = saved.new_empty(weight.numel() + 1)
    if x.numel() == 0:
        grads.zero_()
        return grad_x, grads[:-1], grads[-1:]
    x, weight, strides = planes_dense(x), weight.contiguous(), (0, 0)
    grad_out = like_layout(x, grad_out)
    if grad_summed is not None:
        grad_summed, strides = in_order_of(x, grad_summed)
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, weight, pool)
    work = scratch(x, cuda.eca_scratch(dtype, shape))
    with on_device(x) as (device, stream):
        cuda.eca_backward(
            device, stream, dtype, shape, x.data_ptr(), grad_out.data_ptr(),
            _address(grad_summed), strides, parameter(weight), saved.data_ptr(), _address(grad_x),
            grads.data_ptr(), grads[-1:].data_ptr(), work.data_ptr(),
        )  # fmt: skip
    return grad_x, grads[:-1], grads[-1:]


def _address(given: Tensor | None) -> int:
    return 0 if given is None else given.data_ptr()


def _shape(cuda, x: Tensor, weight: Tensor, pool: int):  # noqa: ANN001  (types of the compiled module)
    last = is_channels_last(x)
    return cuda.EcaShape(tuple(x.shape), strides_of(x, last), last, weight.numel(), pool)

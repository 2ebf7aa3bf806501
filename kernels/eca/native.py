"""Launchers of the compiled CPU kernels of ECA: allocate, look up the dtype, pass addresses."""

import torch
from torch import Tensor

from .._backend import accumulator, is_channels_last, like_input, like_layout, native
from .._cpu_launch import DTYPES, dense_planes, scratch, threads_for
from .maps import in_order_of, pooled_like


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (out, summed or an empty tensor, saved).

    saved (2, N, C) holds the pooled means and the gates.
    """
    cpu, acc = native("_cpu"), accumulator(x.dtype)
    out = pooled_like(x, pool)
    summed = x.new_empty(0) if residual is None else like_input(x)
    saved = torch.empty((2, x.shape[0], x.shape[1]), dtype=acc)
    if x.numel() == 0:
        return out, summed, saved
    residual = None if residual is None else like_layout(x, residual)
    x = dense_planes(x)
    weight = weight.to(acc).contiguous()
    bias = None if bias is None else bias.to(acc)
    dtype, shape = DTYPES[x.dtype], _shape(cpu, x, weight, pool)
    with scratch(cpu.eca_scratch(dtype, shape)) as work:
        cpu.eca_forward(
            dtype, shape, x.data_ptr(), _address(residual), weight.data_ptr(), _address(bias),
            out.data_ptr(), summed.data_ptr(), saved.data_ptr(),
            saved.data_ptr() + saved.nbytes // 2, work,
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
    """Returns (grad_x or None, grad_weight (K,), grad_bias (1,)), the last two in acc dtype.

    x is the sum where there was a residual; grad_summed is None unless ``pool`` is 2.
    """
    cpu, acc = native("_cpu"), saved.dtype
    grad_x = like_input(x) if need_input else None
    grads = torch.zeros(weight.numel() + 1, dtype=acc)
    if x.numel():
        x, weight, strides = dense_planes(x), weight.to(acc).contiguous(), (0, 0)
        grad_out = like_layout(x, grad_out)
        if grad_summed is not None:
            grad_summed, strides = in_order_of(x, grad_summed)
        dtype, shape = DTYPES[x.dtype], _shape(cpu, x, weight, pool)
        with scratch(cpu.eca_scratch(dtype, shape)) as work:
            cpu.eca_backward(
                dtype, shape, x.data_ptr(), grad_out.data_ptr(), _address(grad_summed), strides,
                weight.data_ptr(), saved.data_ptr(), saved.data_ptr() + saved.nbytes // 2,
                _address(grad_x), grads.data_ptr(),
                grads.data_ptr() + weight.numel() * grads.element_size(), work,
            )  # fmt: skip
    return grad_x, grads[:-1], grads[-1:]


def _address(given: Tensor | None) -> int:
    return 0 if given is None else given.data_ptr()


def _shape(cpu, x: Tensor, weight: Tensor, pool: int):  # noqa: ANN001  (types of the compiled module)
    return cpu.EcaShape(
        tuple(x.shape), (x.stride(0), x.stride(1)), is_channels_last(x), weight.numel(),
        threads_for(x), pool,
    )  # fmt: skip

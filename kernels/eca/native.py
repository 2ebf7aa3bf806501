"""Launchers of the compiled CPU kernels of ECA: allocate, look up the dtype, pass addresses."""

import torch
from torch import Tensor

from .._backend import accumulator, is_channels_last, like_input, like_layout, native
from .._cpu_launch import DTYPES, dense_planes, scratch, threads_for


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns (out, saved); saved (2, N, C) holds the pooled means and the gates."""
    cpu, acc = native("_cpu"), accumulator(x.dtype)
    out = like_input(x)
    saved = torch.empty((2, x.shape[0], x.shape[1]), dtype=acc)
    if out.numel() == 0:
        return out, saved
    x = dense_planes(x)
    weight = weight.to(acc).contiguous()
    bias = None if bias is None else bias.to(acc)
    dtype, shape = DTYPES[x.dtype], _shape(cpu, x, weight)
    with scratch(cpu.eca_scratch(dtype, shape)) as work:
        cpu.eca_forward(
            dtype, shape, x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
            out.data_ptr(), saved.data_ptr(), saved.data_ptr() + saved.nbytes // 2, work,
        )  # fmt: skip
    return out, saved


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, saved: Tensor, need_input: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Returns (grad_x or None, grad_weight (K,), grad_bias (1,)), the last two in acc dtype."""
    cpu, acc = native("_cpu"), saved.dtype
    grad_x = like_input(x) if need_input else None
    grads = torch.zeros(weight.numel() + 1, dtype=acc)
    if x.numel():
        grad_out = like_layout(x, grad_out)
        x, weight = dense_planes(x), weight.to(acc).contiguous()
        dtype, shape = DTYPES[x.dtype], _shape(cpu, x, weight)
        with scratch(cpu.eca_scratch(dtype, shape)) as work:
            cpu.eca_backward(
                dtype, shape, x.data_ptr(), grad_out.data_ptr(), weight.data_ptr(),
                saved.data_ptr(), saved.data_ptr() + saved.nbytes // 2,
                0 if grad_x is None else grad_x.data_ptr(), grads.data_ptr(),
                grads.data_ptr() + weight.numel() * grads.element_size(), work,
            )  # fmt: skip
    return grad_x, grads[:-1], grads[-1:]


def _shape(cpu, x: Tensor, weight: Tensor):  # noqa: ANN001  (types of the compiled module)
    n, c, h, w = x.shape
    strides = x.stride()
    return cpu.EcaShape(
        (n, c, h * w), (strides[0], strides[1]), is_channels_last(x), weight.numel(),
        threads_for(x),
    )  # fmt: skip

"""Launchers of the compiled CPU kernels of the MDE filter: allocate, look up, pass addresses."""

import functools

import torch
from torch import Tensor

from .._backend import accumulator, is_channels_last, like_input, native
from .._cpu_launch import DTYPES, scratch, threads_for
from .bank import quadrants

NONE = (0, 0, 0, 0)


def forward(
    x: Tensor, up: Tensor | None, gains: Tensor, scales: tuple[int, ...], bank: str, pad: str
) -> Tensor:
    """Returns (N, C_up + C, H, W), the filtered ``x`` behind ``up``."""
    n, c, h, w = x.shape
    before = 0 if up is None else up.shape[1]
    out = like_input(x) if up is None else like_input(x, (n, before + c, h, w))
    if out.numel() == 0:
        return out
    last = is_channels_last(x)
    x = _walkable(x, last)
    if up is not None and not _copies(up, last):
        out.narrow(1, 0, before).copy_(up)
        up = None
    cpu, dtype, strides = native("_cpu"), DTYPES[x.dtype], out.stride()
    gains, shape = _shape(cpu, x, gains, scales, pad, last)
    with scratch(cpu.mde_scratch(dtype, shape)) as work:
        cpu.mde_forward(
            dtype, shape, x.data_ptr(), x.stride(), gains.data_ptr(),
            _table(scales, bank).data_ptr(),
            out.data_ptr() + before * strides[1] * out.element_size(), strides,
            0 if up is None else up.data_ptr(), NONE if up is None else up.stride(), before,
            out.data_ptr(), work,
        )  # fmt: skip
    return out


def backward(
    grad_out: Tensor,
    x: Tensor | None,
    gains: Tensor,
    offset: int,
    scales: tuple[int, ...],
    bank: str,
    pad: str,
    need_input: bool,
    need_gains: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Returns (grad_x or None, grad_gains or None) from the gradient behind channel ``offset``."""
    last = is_channels_last(grad_out)
    n, c, h, w = grad_out.shape
    grad_x = like_input(grad_out, (n, c - offset, h, w)) if need_input else None
    acc = accumulator(grad_out.dtype)
    grad_gains = torch.zeros(gains.shape, dtype=acc) if need_gains else None
    if n == 0:
        return grad_x, grad_gains
    part = _walkable(grad_out, last).narrow(1, offset, c - offset)
    x = _walkable(x, last) if x is not None and need_gains else None
    cpu, dtype = native("_cpu"), DTYPES[part.dtype]
    gains, shape = _shape(cpu, part, gains, scales, pad, last)
    with scratch(cpu.mde_scratch(dtype, shape)) as work:
        cpu.mde_backward(
            dtype, shape, part.data_ptr(), part.stride(), gains.data_ptr(),
            _table(scales, bank).data_ptr(),
            0 if grad_x is None else grad_x.data_ptr(),
            NONE if grad_x is None else grad_x.stride(),
            0 if x is None else x.data_ptr(), NONE if x is None else x.stride(),
            0 if grad_gains is None else grad_gains.data_ptr(), work,
        )  # fmt: skip
    return grad_x, grad_gains


def _walkable(x: Tensor, last: bool) -> Tensor:
    """``x`` itself if its rows (or with ``last`` its pixels) are dense, else a copy that is."""
    if last:
        return x.contiguous(memory_format=torch.channels_last)
    return x if x.stride(3) == 1 else x.contiguous()


def _copies(up: Tensor, last: bool) -> bool:
    """Whether the kernel can copy ``up``; PyTorch takes over what lies crosswise."""
    return up.stride(1 if last else 3) == 1


def _shape(cpu, x: Tensor, gains: Tensor, scales: tuple[int, ...], pad: str, last: bool):  # noqa: ANN001
    """Gains as the kernel reads them and the shape of a call (a type of the compiled module)."""
    gains = gains.detach().to(accumulator(x.dtype)).contiguous()
    shape = cpu.MdeShape(
        tuple(x.shape), max(scales) // 2, gains.shape[1], gains.shape[0] == 1, pad == "reflect",
        last, threads_for(x),
    )  # fmt: skip
    return gains, shape


@functools.cache
def _table(scales: tuple[int, ...], bank: str) -> Tensor:
    """The quadrants of the masks (S + 1, p + 1, p + 1) in float64, kept for good."""
    return torch.tensor(quadrants(scales, bank), dtype=torch.float64)

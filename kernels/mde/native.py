"""Launchers of the compiled CPU kernels of the MDE filter: allocate, look up, pass addresses."""

import functools

import torch
from torch import Tensor

from .._backend import accumulator, is_channels_last, native
from .._cpu_launch import DTYPES, addresses, empty_map, parameter, threads_for
from .bank import quadrants

NONE = (0, 0, 0, 0)


def forward(
    x: Tensor, up: Tensor | None, gains: Tensor, scales: tuple[int, ...], bank: str, pad: str
) -> Tensor:
    """Returns (N, C_up + C, H, W), the filtered ``x`` behind ``up``."""
    n, c, h, w = x.shape
    before = 0 if up is None else up.shape[1]
    out = empty_map(x) if up is None else empty_map(x, (n, before + c, h, w))
    if out.numel() == 0:
        return out
    last = is_channels_last(x)
    x = _walkable(x, last)
    if up is not None and not _copies(up, last):
        out.narrow(1, 0, before).copy_(up)
        up = None
    strides = out.stride()
    gains = parameter(gains, accumulator(x.dtype))
    given = addresses(x, gains, _table(scales, bank), out, up, out)
    given[3] += before * strides[1] * out.element_size()
    native("_cpu").mde_forward(
        *_shape(x, gains, scales, pad, last), x.stride(), strides,
        NONE if up is None else up.stride(), before, given,
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
    grad_x = empty_map(grad_out, (n, c - offset, h, w)) if need_input else None
    acc = accumulator(grad_out.dtype)
    grad_gains = torch.zeros(gains.shape, dtype=acc) if need_gains else None
    if n == 0:
        return grad_x, grad_gains
    part = _walkable(grad_out, last).narrow(1, offset, c - offset)
    x = _walkable(x, last) if x is not None and need_gains else None
    gains = parameter(gains, accumulator(part.dtype))
    native("_cpu").mde_backward(
        *_shape(part, gains, scales, pad, last), part.stride(),
        *(NONE if t is None else t.stride() for t in (grad_x, x)),
        addresses(part, gains, _table(scales, bank), grad_x, x, grad_gains),
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


def _shape(x: Tensor, gains: Tensor, scales: tuple[int, ...], pad: str, last: bool) -> tuple:
    """What both functions of the compiled module take first."""
    rows, masks = gains.shape
    return (
        DTYPES[x.dtype], x.shape, max(scales) // 2, masks, rows == 1, pad == "reflect", last,
        threads_for(x),
    )  # fmt: skip


@functools.cache
def _table(scales: tuple[int, ...], bank: str) -> Tensor:
    """The quadrants of the masks (S + 1, p + 1, p + 1) in float64, kept for good."""
    return torch.tensor(quadrants(scales, bank), dtype=torch.float64)

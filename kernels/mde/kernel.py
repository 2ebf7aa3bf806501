"""The MDE filter on Triton: one launch forward, one backward, one more for learned gains.

Passes over x (floor of the op in brackets): forward 1R 1W (1R 1W), and a copy of ``up`` where there
is one; backward 1R 1W (1R 1W), with learned gains 2R 1W (2R 1W). Rows read again, 2 * radius for
each ``span`` of them, and columns at the seams of tiles come from L1 or L2. No atomics: the sums of
the gains' gradient are added up by a second kernel, always in the same order.
"""

# Triton declares what a kernel is given as constexpr, and so what its helpers return.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .._backend import like_input
from .access import channels_dense, output, readable, vector
from .kernel_jit import filter_kernel, gains_kernel
from .rows import rows_of

THREADS = 128  # of a program, each with VEC values of a row
PROGRAMS = 512  # enough to fill a large GPU
SPANS = (64, 32, 16)  # rows of a program, in turn until there are programs enough
AHEAD = 2  # rows on their way from memory while one is worked on
VALUES = 1024  # that a program of the second kernel adds at once


class _Plan(NamedTuple):
    """How a map is cut: values a thread, units and places of a tile, rows of a program."""

    last: bool
    vec: int
    block_u: int
    block_w: int
    span: int
    chunks: int
    parts: int  # programs that share a unit
    grid: tuple[int]


def _plan(x: Tensor, out: Tensor, other: Tensor | None) -> _Plan:
    """Tiles as long as the dense axis, and programs enough to fill the machine."""
    batch, channels, height, width = x.shape
    last = channels_dense(out)
    wide = not last and other is None and x.element_size() == 2
    vec = vector([t for t in (x, out, other) if t is not None], last, (8, 4) if wide else (4,))
    if last:
        units, places = batch * (channels // vec), width
        block_u = min(32, triton.next_power_of_2(channels // vec))
        block_w = THREADS // block_u
    else:
        units, places = batch * channels, width // vec
        block_w = min(THREADS, triton.next_power_of_2(places))
        block_u = THREADS // block_w
    across, blocks = triton.cdiv(places, block_w), triton.cdiv(units, block_u)
    for span in SPANS:
        chunks = triton.cdiv(height, span)
        if blocks * across * chunks >= PROGRAMS:
            break
    parts = across * chunks
    return _Plan(last, vec, block_u, block_w, span, chunks, parts, (blocks * parts,))


def _filter(
    x: Tensor,
    out: Tensor | None,
    gains: Tensor,
    other: Tensor | None,
    scales: tuple[int, ...],
    bank: str,
    pad: str,
    adjoint: bool,
) -> Tensor | None:
    """Fills ``out`` from x; with ``other``, the partial sums (radius + 1, parts, N, C) too."""
    rows, channels = rows_of(scales, bank), x.shape[1]
    plan = _plan(x, x if out is None else out, other)
    part = None
    if other is not None:
        shape = (rows.radius + 1, plan.parts, x.shape[0], channels)
        part = x.new_empty(shape, dtype=torch.float32)
    filter_kernel[plan.grid](
        x,
        x if out is None else out,
        gains,
        x if other is None else other,
        gains if part is None else part,
        *x.shape,
        plan.span,
        plan.chunks,
        plan.parts,
        gains.stride(0) if gains.shape[0] > 1 else 0,
        *x.stride(),
        *(x if out is None else out).stride(),
        *(x if other is None else other).stride(),
        RADII=rows.radii,
        NORM=rows.norm,
        ROW=rows.row,
        CROSS=rows.cross,
        REFLECT=pad == "reflect",
        ADJOINT=adjoint and pad == "reflect",  # without borders of its own it is its transpose
        WRITE=out is not None,
        PRODUCTS=other is not None,
        LAST=plan.last,
        VEC=plan.vec,
        AHEAD=1 if plan.last and pad == "reflect" else AHEAD,  # mirrors take registers
        BLOCK_U=plan.block_u,
        BLOCK_W=plan.block_w,
    )
    return part


def forward(
    x: Tensor,
    up: Tensor | None,
    gains: Tensor,
    scales: tuple[int, ...],
    bank: str,
    pad: str,
) -> Tensor:
    """The filtered map, behind the channels of ``up`` if that is given."""
    out, target = output(x, up)
    if target.numel() > 0:
        x = readable(x, out)
        _filter(x, target, gains.contiguous(), None, scales, bank, pad, adjoint=False)
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
    """(grad_x or None, grad_gains float32 or None), reading grad_out from channel ``offset`` on."""
    grad = grad_out.narrow(1, offset, grad_out.shape[1] - offset)
    grad_x = like_input(grad_out, grad.shape) if need_input else None
    if grad.numel() == 0:
        return grad_x, gains.new_zeros(gains.shape) if need_gains else None
    other = readable(x, grad_out) if need_gains and x is not None else None
    grad = readable(grad, grad_out)
    part = _filter(grad, grad_x, gains.contiguous(), other, scales, bank, pad, adjoint=True)
    return grad_x, None if part is None else _grad_gains(part, gains, scales, bank)


def _grad_gains(part: Tensor, gains: Tensor, scales: tuple[int, ...], bank: str) -> Tensor:
    """Adds up the partial sums: per channel, or over all of them for shared gains."""
    rows = rows_of(scales, bank)
    grad = gains.new_empty(gains.shape)
    columns = gains.shape[0]
    size = part[0].numel()
    block_c = min(16, triton.next_power_of_2(columns))
    block_r = min(VALUES // block_c, triton.next_power_of_2(size // columns))
    gains_kernel[(triton.cdiv(columns, block_c),)](
        part,
        grad,
        size // columns,
        columns,
        size,
        RADII=rows.radii,
        NORM=rows.norm,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
    )
    return grad

"""Triton: x as a 3-D block in memory order, and its three pooled planes from one read.

An image is read as (A0, A1, A2) with A2 innermost: (C, H, W) in NCHW, (H, W, C) in channels_last.
Pooling over memory axis m gives plane m: rows x columns (A1, A2), (A0, A2), (A0, A1) for m = 0, 1,
2. One of the three then lies transposed to the paper's drawing, and only its taps are turned. The
planes of a batch follow each other in every buffer: N planes 0, then N planes 1, then N planes 2.
"""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ROW_BYTES = 256  # of a tile, so that a half warp reads whole lines
POOL_WARPS = 1024  # warps that keep a large GPU's memory busy where each has much in flight
STREAM_WARPS = 4096  # the same where each has little
NO_KEYS, VALUES, PAIRS_32, PAIRS_64 = (tl.constexpr(i) for i in range(4))


class View(NamedTuple):
    """x in memory order: sizes, which gate pools over which memory axis, which plane is turned."""

    batch: int
    sizes: tuple[int, int, int]
    order: tuple[int, int, int]  # axis of x that is memory axis 0, 1, 2
    gates: tuple[int, int, int]  # gate of memory axis 0, 1, 2; -1 where there is none
    turned: int  # memory axis whose plane lies transposed

    def strides(self, x: Tensor) -> tuple[int, ...]:
        """Strides of (image, A0, A1, A2) of a tensor shaped like x."""
        return (x.stride(0), *(x.stride(axis) for axis in self.order))

    @property
    def positions(self) -> int:
        """Elements of the three planes of the whole batch."""
        a0, a1, a2 = self.sizes
        return self.batch * (a1 * a2 + a0 * a2 + a0 * a1)

    def constants(self) -> dict[str, int]:
        return {"G0": self.gates[0], "G1": self.gates[1], "G2": self.gates[2]}


def memory_view(x: Tensor, gates: int) -> View:
    """The view of ``x``; what is dense both ways counts as NCHW unless channels are all it has."""
    c, w = x.shape[1], x.shape[3]
    return view_of(x, gates, x.stride(1) == 1 and c > 1 and (w == 1 or x.stride(3) != 1))


def view_of(x: Tensor, gates: int, last: bool) -> View:
    """The view that has the channels innermost, or else the columns."""
    n, c, h, w = x.shape
    if last:
        return View(n, (h, w, c), (2, 3, 1), (0, 1, 2 if gates == 3 else -1), 0)
    return View(n, (c, h, w), (1, 2, 3), (2 if gates == 3 else -1, 0, 1), 2)


def readable(x: Tensor, view: View) -> bool:
    """Whether the innermost memory axis of ``view`` is dense in ``x``."""
    return view.sizes[2] == 1 or x.stride(view.order[2]) == 1


class Tiling(NamedTuple):
    """Tile (block1, block2), ``rows`` of A0 per program, warps, tiles along each memory axis."""

    block1: int
    block2: int
    rows: int
    warps: int
    counts: tuple[int, int, int]

    @property
    def programs(self) -> int:
        return self.counts[0] * self.counts[1] * self.counts[2]

    def constants(self) -> dict[str, int]:
        return {"BLOCK1": self.block1, "BLOCK2": self.block2, "num_warps": self.warps}


def tiling(
    view: View, element_size: int, elements: int, per_thread: int, rows: int, warps: int
) -> Tiling:
    """Tiles of up to ``elements`` and up to ``rows`` of them, fewer until ``warps`` are busy."""
    a0, a1, a2 = view.sizes
    block2 = min(triton.next_power_of_2(a2), ROW_BYTES // element_size)
    block1 = min(triton.next_power_of_2(a1), elements // block2)
    flat = triton.cdiv(a1, block1), triton.cdiv(a2, block2)
    each = min(8, max(1, block1 * block2 // (32 * per_thread)))
    rows = min(rows, triton.next_power_of_2(a0))
    while rows > 4 and view.batch * flat[0] * flat[1] * triton.cdiv(a0, rows) * each < warps:
        rows //= 2
    return Tiling(block1, block2, rows, each, (triton.cdiv(a0, rows), *flat))


@triton.jit
def sort_order(x, inside, KEYS: tl.constexpr):
    """int32 that sorts as x does: NaN on top, both zeros equal, below all where not ``inside``.

    Sixteen bits of it suffice for a half type (PAIRS_32).
    """
    if KEYS == PAIRS_32:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        order = bits ^ ((bits >> 31) & 0x7FFF)
        top: tl.constexpr = 0x7FFF
    else:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        top: tl.constexpr = 0x7FFFFFFF
    order = tl.where(order == -1, 0, order)
    order = tl.where(x != x, top, order)
    return tl.where(inside, order, -top - 1)


@triton.jit
def tagged(order, index, KEYS: tl.constexpr):
    """The order with the position below it, so that one integer maximum finds the first maximum."""
    if KEYS == VALUES:
        key = order
    elif KEYS == PAIRS_32:
        key = ((order << 16) | (0xFFFF - index)).to(tl.int32)
    else:
        key = (order.to(tl.int64) << 32) | (0x7FFFFFFF - index)
    return key


@triton.jit
def untagged(key, dtype: tl.constexpr, KEYS: tl.constexpr):
    """(value, index) of a key: the inverse of ``tagged(sort_order(...))``."""
    if KEYS == PAIRS_32:
        order = key >> 16
        bits = (order ^ ((order >> 31) & 0x7FFF)).to(tl.int16)
        value = bits.to(dtype, bitcast=True).to(tl.float32)
        index = 0xFFFF - (key & 0xFFFF)
    else:
        order = (key >> 32).to(tl.int32) if KEYS == PAIRS_64 else key
        index = (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)
        value = (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return value, index


@triton.jit
def least(shape: tl.constexpr, KEYS: tl.constexpr):
    """A tensor of the key below every other."""
    if KEYS == PAIRS_64:
        key = tl.full(shape, -0x8000000000000000, tl.int64)
    else:
        key = tl.full(shape, -0x80000000, tl.int32)
    return key


@triton.jit
def block_of(pid, a0, a1, a2, rows, BLOCK1: tl.constexpr, BLOCK2: tl.constexpr):
    """(image, tile along A0, A1, A2) of a program; A2 runs fastest, as memory does."""
    tiles1, tiles2 = tl.cdiv(a1, BLOCK1), tl.cdiv(a2, BLOCK2)
    t2 = pid % tiles2
    t1 = pid // tiles2 % tiles1
    pid = pid // tiles2 // tiles1
    return pid // tl.cdiv(a0, rows), pid % tl.cdiv(a0, rows), t1, t2


@triton.jit
def pool_kernel(
    x_ptr,
    grad_ptr,
    sum_ptr,
    key_ptr,
    batch,
    a0,
    a1,
    a2,
    rows,
    stride_xn,
    stride_x0,
    stride_x1,
    stride_x2,
    stride_gn,
    stride_g0,
    stride_g1,
    stride_g2,
    HAS_GRAD: tl.constexpr,
    KEYS: tl.constexpr,
    G0: tl.constexpr,
    G1: tl.constexpr,
    G2: tl.constexpr,
    BLOCK1: tl.constexpr,
    BLOCK2: tl.constexpr,
):
    """Partial sums (and maxima) of x, or of x * grad, over each memory axis, from one read.

    One program owns rows x BLOCK1 x BLOCK2 elements of an image and writes its share of each of the
    three planes once: tile t along axis m writes partial plane t of m. ``gates_kernel`` adds them
    up in order. Extra bytes: (1/rows + 1/BLOCK1 + 1/BLOCK2) * (8 or 12) per element of x.
    """
    pid = tl.program_id(0).to(tl.int64)
    n, t0, t1, t2 = block_of(pid, a0, a1, a2, rows, BLOCK1, BLOCK2)
    offs1 = t1 * BLOCK1 + tl.arange(0, BLOCK1)
    offs2 = t2 * BLOCK2 + tl.arange(0, BLOCK2)
    inside = (offs1[:, None] < a1) & (offs2[None, :] < a2)
    x_ptr += n * stride_xn + offs1[:, None] * stride_x1 + offs2[None, :] * stride_x2
    grad_ptr += n * stride_gn + offs1[:, None] * stride_g1 + offs2[None, :] * stride_g2
    images = n * 0 + batch  # 64 bits wide
    plane0 = images * a1 * a2
    plane1 = images * a0 * a2
    part1 = tl.cdiv(a0, rows) * plane0 + t1 * plane1 + n * a0 * a2
    part2 = tl.cdiv(a0, rows) * plane0 + tl.cdiv(a1, BLOCK1) * plane1 + n * a0 * a1
    part2 += t2 * images * a0 * a1
    lo = t0 * rows
    hi = tl.minimum(lo + rows, a0)
    sum0 = tl.zeros((BLOCK1, BLOCK2), tl.float32)
    key0 = least((BLOCK1, BLOCK2), KEYS)
    ahead = tl.load(x_ptr + lo * stride_x0, mask=inside, other=0.0)
    for i0 in range(lo, hi):
        tile = ahead
        ahead = tl.load(x_ptr + (i0 + 1) * stride_x0, mask=inside & (i0 + 1 < hi), other=0.0)
        value = tile.to(tl.float32)
        if HAS_GRAD:
            value *= tl.load(grad_ptr + i0 * stride_g0, mask=inside, other=0.0).to(tl.float32)
        if G0 >= 0:
            sum0 += value
        at1, at2 = part1 + i0 * a2 + offs2, part2 + i0 * a1 + offs1
        tl.store(sum_ptr + at1, tl.sum(value, axis=0), mask=offs2 < a2)
        if G2 >= 0:
            tl.store(sum_ptr + at2, tl.sum(value, axis=1), mask=offs1 < a1)
        if KEYS != NO_KEYS:
            order = sort_order(tile, inside, KEYS)
            if G0 >= 0:
                key0 = tl.maximum(key0, tagged(order, i0, KEYS))
            key1 = tl.max(tagged(order, offs1[:, None], KEYS), axis=0)
            tl.store(key_ptr + at1, key1, mask=offs2 < a2)
            if G2 >= 0:
                key2 = tl.max(tagged(order, offs2[None, :], KEYS), axis=1)
                tl.store(key_ptr + at2, key2, mask=offs1 < a1)
    if G0 >= 0:
        at0 = t0 * plane0 + n * a1 * a2 + offs1[:, None] * a2 + offs2[None, :]
        tl.store(sum_ptr + at0, sum0, mask=inside)
        if KEYS != NO_KEYS:
            tl.store(key_ptr + at0, key0, mask=inside)


def pairs(x: Tensor, view: View) -> tl.constexpr:
    """The keys that find where the first maximum lies."""
    return PAIRS_32 if x.element_size() == 2 and max(view.sizes) <= 65536 else PAIRS_64


def partials(
    x: Tensor, grad: Tensor | None, view: View, keys: int
) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """(partial sums, partial keys, partial planes per memory axis) of x, or of x * grad."""
    size = x.element_size()
    tiles = tiling(view, size, 8192 // size, 16, 64, POOL_WARPS)
    a0, a1, a2 = view.sizes
    shares = tiles.counts[0] * a1 * a2 + tiles.counts[1] * a0 * a2 + tiles.counts[2] * a0 * a1
    sums = torch.empty(view.batch * shares, dtype=torch.float32, device=x.device)
    keys_dtype = torch.int64 if keys == PAIRS_64.value else torch.int32
    best = torch.empty(view.batch * shares if keys else 0, dtype=keys_dtype, device=x.device)
    pool_kernel[(view.batch * tiles.programs,)](
        x,
        x if grad is None else grad,
        sums,
        best,
        view.batch,
        *view.sizes,
        tiles.rows,
        *view.strides(x),
        *view.strides(x if grad is None else grad),
        HAS_GRAD=grad is not None,
        KEYS=keys,
        **view.constants(),
        **tiles.constants(),
    )
    return sums, best, tiles.counts

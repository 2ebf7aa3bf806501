"""How the Triton launchers of ECA cut a map into tiles, programs and partial sums."""

from typing import NamedTuple

import triton
from torch import Tensor

from .._backend import like_layout

PROGRAMS = 1024  # enough to fill a large GPU several times over
MAX_SPLITS = 32  # partial sums the second stage adds up per channel
TILE_BYTES = 8192  # four 16-byte loads in flight for each of 128 threads
ROW_BYTES = 256  # of a channels_last tile


class Plan(NamedTuple):
    """How a map is cut: tile, pixels per program of the pool and of the scale, split of the sum."""

    block_c: int
    block_p: int
    splits: int
    pool_chunk: int
    scale_chunk: int
    pool_grid: tuple[int]
    scale_grid: tuple[int]


def plan_of(x: Tensor, pool: int = 1) -> Plan:
    """Tiles long where memory is, and programs enough to fill the machine.

    With ``pool`` 2 a position is a window of four pixels, cut off at an odd edge or not.
    """
    batch, channels, height, width = x.shape
    hw = triton.cdiv(height, pool) * triton.cdiv(width, pool)
    tile = TILE_BYTES // x.element_size() // pool**2
    wide_c, wide_p = triton.next_power_of_2(channels), triton.next_power_of_2(hw)
    if x.stride(1) == 1 and channels > 1:
        block_p = min(wide_p, tile // min(wide_c, ROW_BYTES // x.element_size()))
    else:
        block_p = min(wide_p, tile)
    block_c = min(wide_c, tile // block_p)
    rows, tiles = batch * triton.cdiv(channels, block_c), triton.cdiv(hw, block_p)
    splits = 1
    while splits < MAX_SPLITS and rows * splits < PROGRAMS and 2 * splits <= tiles:
        splits *= 2
    per_scale = max(1, min(8, rows * tiles // PROGRAMS))
    return Plan(
        block_c,
        block_p,
        splits,
        triton.cdiv(tiles, splits) * block_p,
        per_scale * block_p,
        (rows * splits,),
        (rows * triton.cdiv(tiles, per_scale),),
    )


def pixel_strides(x: Tensor) -> tuple[int, int, int] | None:
    """Strides of (image, channel, pixel), or None when the pixels do not lie evenly."""
    height, width = x.shape[2:]
    if width == 1:
        return x.stride(0), x.stride(1), x.stride(2) if height > 1 else 1
    if height > 1 and x.stride(2) != width * x.stride(3):
        return None
    return x.stride(0), x.stride(1), x.stride(3)


def strides(x: Tensor) -> tuple[int, int, int]:
    strides = pixel_strides(x)
    assert strides is not None
    return strides


def even(x: Tensor) -> Tensor:
    """``x``, or a contiguous copy when its pixels do not lie evenly."""
    return x if pixel_strides(x) else x.contiguous()


def beside(x: Tensor, grad: Tensor) -> Tensor:
    """``grad``, or a copy in the layout of x: it costs less than reading across the lines."""
    if not pixel_strides(grad) or (grad.stride(1) == 1) != (x.stride(1) == 1):
        return like_layout(x, grad)
    return grad

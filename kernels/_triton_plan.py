"""How Triton launchers cut a map into tiles, programs and partial sums, and see it as pixels."""

import functools
from typing import NamedTuple

from torch import Tensor

from ._backend import like_layout

PROGRAMS = 1024  # enough to fill a large GPU several times over
TILE_BYTES = 8192  # four 16-byte loads in flight for each of 128 threads
ROW_BYTES = 256  # of a channels_last tile


class Plan(NamedTuple):
    """A tile, how many parts a sum over pixels has, pixels per program of a sum and of a map."""

    block_c: int
    block_p: int
    parts: int
    sum_chunk: int
    map_chunk: int
    sum_grid: tuple[int]
    map_grid: tuple[int]


def next_power(n: int) -> int:
    """The least power of two from ``n`` on; as with ``cdiv``, Triton's own cost a microsecond."""
    return 1 << (n - 1).bit_length()


def cdiv(n: int, size: int) -> int:
    """How many times ``size`` are needed to cover ``n``."""
    return -(-n // size)


def plan_of(x: Tensor, pool: int = 1, splits: int = 1, most_parts: int = 32) -> Plan:
    """The plan of a map, whose tiles hold the same channels of all ``splits`` of it.

    With ``pool`` 2 a position is a window of four pixels, cut off at an odd edge or not.
    ``most_parts``: how many partial sums the second stage may have to add up per channel.
    """
    batch, channels, height, width = x.shape
    channels //= splits
    positions = cdiv(height, pool) * cdiv(width, pool)
    size = x.element_size()
    tile = TILE_BYTES // size // pool**2 // next_power(splits)
    row = ROW_BYTES // size if x.stride(1) == 1 and channels > 1 else 1
    return _cut(batch, channels, positions, tile, row, most_parts)


@functools.lru_cache(maxsize=1024)
def _cut(batch: int, channels: int, positions: int, tile: int, row: int, most_parts: int) -> Plan:
    """Tiles long where memory is, ``row`` channels at least, and programs to fill the machine."""
    wide_c, wide_p = next_power(channels), next_power(positions)
    block_p = min(wide_p, tile // min(wide_c, row))
    block_c = min(wide_c, tile // block_p)
    rows, tiles = batch * cdiv(channels, block_c), cdiv(positions, block_p)
    parts = 1
    while parts < most_parts and rows * parts < PROGRAMS and 2 * parts <= tiles:
        parts *= 2
    per_map = max(1, min(8, rows * tiles // PROGRAMS))
    return Plan(
        block_c,
        block_p,
        parts,
        cdiv(tiles, parts) * block_p,
        per_map * block_p,
        (rows * parts,),
        (rows * cdiv(tiles, per_map),),
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
    """``pixel_strides`` of a map that has them."""
    found = pixel_strides(x)
    assert found is not None
    return found


def even(x: Tensor) -> Tensor:
    """``x``, or a contiguous copy when its pixels do not lie evenly."""
    return x if pixel_strides(x) else x.contiguous()


def beside(x: Tensor, grad: Tensor) -> Tensor:
    """``grad``, or a copy in the layout of x: it costs less than reading across the lines."""
    if not pixel_strides(grad) or (grad.stride(1) == 1) != (x.stride(1) == 1):
        return like_layout(x, grad)
    return grad

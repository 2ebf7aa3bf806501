"""x as the compiled kernels see it: a 3-D array in memory order, for either layout."""

from typing import NamedTuple

from torch import Tensor

from .._backend import is_channels_last


class MemoryAxes(NamedTuple):
    """Memory axes (a0, a1, a2) of one image, a2 dense; plane m pools over axis m."""

    sizes: tuple[int, int, int]
    strides: tuple[int, int, int]  # of the batch, a0 and a1, in elements
    gate: tuple[int, ...]  # which gate plane m feeds (0: H, 1: W, 2: C); -1 without that gate
    turned: tuple[bool, bool, bool]  # whether plane m lies transposed: H x C and C x W are meant


def memory_axes(x: Tensor, gates: int) -> MemoryAxes:
    """Axes (C, H, W) of a map with dense rows, or (H, W, C) in channels_last."""
    last = is_channels_last(x)
    order = (2, 3, 1) if last else (1, 2, 3)
    gate = (0, 1, 2) if last else (2, 0, 1)
    turned = (True, False, False) if last else (False, False, True)
    sizes, strides = x.shape, x.stride()
    return MemoryAxes(
        (sizes[order[0]], sizes[order[1]], sizes[order[2]]),
        (strides[0], strides[order[0]], strides[order[1]]),
        tuple(g if g < gates else -1 for g in gate),
        turned,
    )

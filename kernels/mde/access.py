"""How the GPU launchers of the MDE filter lay their maps out and read them."""

import torch
from torch import Tensor

from .._backend import is_channels_last, like_input


def output(x: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor]:
    """(the result, the part of it to be filtered into); ``up`` is copied into the rest."""
    if up is None:
        out = like_input(x)
        return out, out
    n, c, h, w = x.shape
    out = like_input(x, (n, up.shape[1] + c, h, w))
    out.narrow(1, 0, up.shape[1]).copy_(up)
    return out, out.narrow(1, up.shape[1], c)


def channels_dense(x: Tensor) -> bool:
    """Whether channels are the dense axis; a map of one channel counts as NCHW."""
    return x.stride(1) == 1 and x.shape[1] > 1 and (x.shape[3] == 1 or x.stride(3) != 1)


def readable(x: Tensor, like: Tensor) -> Tensor:
    """``x``, or a copy where the axis that is dense in the result is not dense in ``x``."""
    if is_channels_last(like):
        return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def vector(maps: list[Tensor], last: bool, widths: tuple[int, ...]) -> int:
    """The first of ``widths`` that one access may take along the dense axis of all maps, else 1."""
    axis = 1 if last else 3
    for width in widths:
        size = width * maps[0].element_size()
        if all(
            t.stride(axis) == 1
            and t.shape[axis] % width == 0
            and t.data_ptr() % size == 0
            and all(t.stride(i) % width == 0 for i in range(4) if i != axis)
            for t in maps
        ):
            return width
    return 1

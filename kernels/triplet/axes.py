"""x as the compiled kernels see it: a 3-D array in memory order, for either layout."""

from torch import Tensor

from .._backend import is_channels_last

Three = tuple[int, int, int]


def memory_axes(x: Tensor) -> tuple[Three, Three, bool]:
    """Axes of one image in memory order: (C, H, W) of dense rows, or (H, W, C) in channels_last.

    Returns their sizes; the strides, in elements, of the batch and the two outer axes; and whether
    it is channels_last.
    """
    (_, c, h, w), (image, channel, row, column) = x.shape, x.stride()
    if is_channels_last(x):
        return (h, w, c), (image, row, column), True
    return (c, h, w), (image, channel, row), False

"""x as the compiled kernels see it: a 3-D array in memory order, for either layout."""

from collections.abc import Sequence

import torch
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


def _order(last: bool) -> tuple[Three, int]:
    """The gate of memory axis 0, 1, 2, and the axis whose plane lies transposed to its gate's."""
    return ((0, 1, 2), 0) if last else ((2, 0, 1), 2)


def gate_planes(flat: Tensor, x: Tensor, gates: int) -> tuple[Tensor, ...]:
    """Views (N, K, R, S) of planes (K, positions), one for each gate, as it sees them.

    ``positions`` are those of the batch: N planes of memory axis 0, then 1, then 2.
    """
    (a0, a1, a2), _, last = memory_axes(x)
    order, turned = _order(last)
    shapes = ((a1, a2), (a0, a2), (a0, a1))
    parts = flat.split([x.shape[0] * rows * cols for rows, cols in shapes], 1)
    found: dict[int, Tensor] = {}
    for axis, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
        planes = part.view(flat.shape[0], x.shape[0], *shape).transpose(0, 1)
        found[order[axis]] = planes.mT if axis == turned else planes
    return tuple(found[gate] for gate in range(gates))


def flat_gates(gates: Sequence[Tensor], x: Tensor) -> Tensor:
    """The inverse for gates (N, 1, R, S): (positions,), zeros where there is none."""
    n, _, h, w = x.shape
    order, turned = _order(is_channels_last(x))
    parts = []
    for axis, gate in enumerate(order):
        if gate < len(gates):
            parts.append((gates[gate].mT if axis == turned else gates[gate]).reshape(-1))
        else:
            parts.append(gates[0].new_zeros(n * h * w))  # the only one that may be missing
    return torch.cat(parts)

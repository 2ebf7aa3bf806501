"""Decoded files kept in memory, up to a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ..losses import IGNORE
from .files import parallel
from .memory import free_memory

_CHUNK = 32  # samples read at a time, so that the budget is passed by a few at most
UNKNOWN = 255  # what IGNORE is in a kept mask: class indices end at 254

Decoded = tuple[np.ndarray, np.ndarray]  # image in the file's depth, mask uint8
Item = TypeVar("Item")


def keep_decoded(
    read: Callable[[Item], Decoded], items: Sequence[Item], budget: int
) -> list[Decoded]:
    """Reads the first ``items`` for as long as they fit.

    Args:
        read: gives image and mask of one item.
        items: in the order of the data set.
        budget: bytes; at most half of the memory that is free now is taken.

    Returns:
        What ``read`` gave for ``items[:n]``, n as large as the budget allows.
    """
    left = min(budget, free_memory() // 2)
    kept: list[Decoded] = []
    for start in range(0, len(items), _CHUNK):
        if left <= 0:
            break
        for image, mask in parallel(read, items[start : start + _CHUNK]):
            left -= image.nbytes + mask.nbytes
            if left < 0:
                return kept
            kept.append((image, mask))
    return kept


def pack_mask(mask: np.ndarray) -> np.ndarray:
    """int16 labels with ``IGNORE`` -> uint8 with ``UNKNOWN``."""
    return np.where(mask == IGNORE, UNKNOWN, mask).astype(np.uint8)


def unpack_mask(mask: np.ndarray) -> np.ndarray:
    """uint8 with ``UNKNOWN`` -> int64 labels with ``IGNORE``."""
    labels = mask.astype(np.int64)
    labels[mask == UNKNOWN] = IGNORE
    return labels

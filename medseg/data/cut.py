"""Squares cut out of images at random, and what is drawn for each."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from .cache import UNKNOWN, Decoded
from .geometry import pad_image, scale_image, scale_mask

Range = tuple[float, float]  # least and largest


class Draws:
    """Random numbers for the items of a set: they depend on seed, epoch and item alone.

    Whichever process draws: loader workers hear of the next epoch, too.

    Args:
        seed: of all epochs.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch."""
        self._epoch.fill_(epoch)

    def of(self, index: int) -> np.random.Generator:
        """The generator of one item in this epoch."""
        return np.random.default_rng([self._seed, int(self._epoch), index])


def draw_side(draw: np.random.Generator, size: int, rescale: Range | None) -> int:
    """Side of the square that is scaled to ``size``, by a factor drawn evenly from ``rescale``."""
    return size if rescale is None else max(1, round(size / draw.uniform(*rescale)))


def draw_corner(draw: np.random.Generator, shape: tuple[int, ...], side: int) -> tuple[int, ...]:
    """A place, row and column, for a square that lies anywhere in an image."""
    return tuple(int(draw.integers(max(0, length - side) + 1)) for length in shape)


def cut_patch(
    pixels: np.ndarray, mask: np.ndarray, corner: tuple[int, ...], side: int, size: int
) -> Decoded:
    """The square at ``corner`` (row, column), moved inside, and padded where the image ends.

    Args:
        pixels: (H, W, C).
        mask: (H, W) uint8.
        corner: may lie outside.
        side: of the square, in pixels of the image.
        size: of the result, to which the square is scaled.

    Returns:
        (size, size, C), reflected at the image's ends, and (size, size), ``UNKNOWN`` there.
    """
    top, left = (
        min(max(0, at), max(0, length - side))
        for at, length in zip(corner, mask.shape, strict=True)
    )
    image = pixels[top : top + side, left : left + side]
    labels = mask[top : top + side, left : left + side]
    height, width = (max(1, round(length * size / side)) for length in labels.shape)
    image, labels = scale_image(image, height, width), scale_mask(labels, height, width)
    down, right = size - height, size - width
    if down or right:
        edges = (down // 2, down - down // 2, right // 2, right - right // 2)
        labels = cv2.copyMakeBorder(labels, *edges, cv2.BORDER_CONSTANT, value=(UNKNOWN,))
    return pad_image(image, size), labels

"""The samples of a table as squares for a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .cache import Decoded, keep_decoded, pack_mask, unpack_mask
from .cut import Draws, Range, cut_patch, draw_corner, draw_side
from .files import read_image, read_mask
from .geometry import fit_image, fit_mask, to_planes
from .table import Sample, Table


class Item(TypedDict):
    """What a network learns from."""

    image: Tensor  # float32 (C, size, size) in 0..1
    mask: Tensor  # int64 (size, size): class indices, -1 beside the image
    index: int  # in the samples of the set


class SegmentationSet(Dataset[Item]):
    """Image and mask of each sample, fitted into a square (``geometry`` says how).

    The fitted squares are kept in memory up to ``cache_bytes``, read once when the set is made,
    before the loader forks its workers; what does not fit is read again each time.

    Args:
        table: gives the number of channels and the classes.
        samples: the part of the table to serve, as ``table.part("train")``.
        size: side of the square, in pixels.
        cache_bytes: memory for kept squares; 0 keeps none.
        rescale: least and largest factor by which a square is scaled at random and then, the part
            of it or it and its reflection, fills the square again; None: not at all.
        seed: of these draws, which depend on it, the epoch and the item alone.
    """

    def __init__(
        self,
        table: Table,
        samples: Sequence[Sample],
        size: int,
        cache_bytes: int = 1 << 30,
        rescale: Range | None = None,
        seed: int = 0,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.table = table
        self.samples = list(samples)
        self.size, self.rescale = size, rescale
        self._draws = Draws(seed)
        self._kept = keep_decoded(self._read, self.samples, cache_bytes)

    @property
    def kept(self) -> int:
        """How many decoded squares lie in memory."""
        return len(self._kept)

    def set_epoch(self, epoch: int) -> None:
        """Chooses how the squares of an epoch are scaled; loader workers see it at their next."""
        self._draws.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        pixels, mask = self._kept[index] if index < self.kept else self._read(self.samples[index])
        if self.rescale is not None:
            draw = self._draws.of(index)
            side = draw_side(draw, self.size, self.rescale)
            pixels, mask = cut_patch(
                pixels, mask, draw_corner(draw, mask.shape, side), side, self.size
            )
        return as_item(pixels, mask, index)

    def _read(self, sample: Sample) -> Decoded:
        """(size, size, C) in the file's depth, and (size, size) uint8."""
        image = fit_image(read_image(sample.image, self.table.channels), self.size)
        return image, pack_mask(fit_mask(read_mask(sample.mask, self.table), self.size))


def as_item(pixels: np.ndarray, mask: np.ndarray, index: int) -> Item:
    """Tensors of (size, size, C) pixels in the file's depth and a packed (size, size) mask."""
    return {
        "image": to_planes(pixels),
        "mask": torch.from_numpy(unpack_mask(mask)),
        "index": index,
    }

"""Patches of large images at their own resolution, a share of them on the foreground.

Source: the sampling of nnU-Net (Isensee et al., Nature Methods 18, 2021, arXiv:1809.10486), which
forces a third of the patches onto a foreground class, so that a class of few pixels is seen at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from .cache import UNKNOWN, Decoded, keep_decoded, pack_mask
from .cut import Draws, Range, cut_patch, draw_corner, draw_side
from .dataset import Item, as_item
from .files import parallel, read_image, read_mask
from .header import read_header
from .table import Sample, Table

FOREGROUND = 1 / 3  # of the patches, as nnU-Net has it
_MOST_SPOTS = 4096  # kept of each class of an image: enough to centre patches on


class PatchSet(Dataset[Item]):
    """Square patches of the samples, drawn anew in every epoch.

    Item i is patch ``i % patches`` of sample ``i // patches``. With probability ``foreground`` it
    is centred on a pixel of a foreground class, the class drawn evenly from those in the image, the
    pixel evenly from that class; else it lies anywhere. At the rim it is moved inside; an image
    smaller than the patch is reflected around itself, with ``IGNORE`` in the mask. What is drawn
    depends on seed, epoch and i alone, whichever process draws it.

    Args:
        table: gives the number of channels and the classes.
        samples: the part of the table to serve.
        size: side of a patch, in pixels of the file.
        patches: how many of each image an epoch has.
        foreground: probability of a patch on the foreground, 0 to 1.
        seed: of the draws.
        cache_bytes: memory for decoded images; those that do not fit are decoded for each patch.
        rescale: least and largest factor by which the image is scaled for a patch; None: not at
            all. Only what the patch shows of it is.
    """

    def __init__(
        self,
        table: Table,
        samples: Sequence[Sample],
        size: int,
        patches: int,
        foreground: float = FOREGROUND,
        seed: int = 0,
        cache_bytes: int = 1 << 30,
        rescale: Range | None = None,
    ) -> None:
        if size < 1 or patches < 1 or not 0 <= foreground <= 1:
            raise ValueError(
                "size and patches must be at least 1 and foreground lie in 0..1, "
                f"got {size}, {patches} and {foreground}"
            )
        self.table, self.samples = table, list(samples)
        self.size, self.patches = size, patches
        self.foreground, self.seed, self.rescale = foreground, seed, rescale
        self._draws = Draws(seed)
        self._kept = keep_decoded(self._read, self.samples, cache_bytes)
        self._spots = parallel(self._find_spots, range(len(self.samples)))

    @property
    def kept(self) -> int:
        """How many decoded images lie in memory."""
        return len(self._kept)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the patches of an epoch; loader workers see it at their next one."""
        self._draws.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.samples) * self.patches

    def __getitem__(self, index: int) -> Item:
        number = index // self.patches
        pixels, mask = self._decoded(number)
        draw = self._draws.of(index)
        side = draw_side(draw, self.size, self.rescale)
        spots = self._spots[number]
        if spots and draw.random() < self.foreground:
            of_class = spots[draw.integers(len(spots))]
            row, column = of_class[draw.integers(len(of_class))]
            corner = (int(row) - side // 2, int(column) - side // 2)
        else:
            corner = draw_corner(draw, mask.shape, side)
        return as_item(*cut_patch(pixels, mask, corner, side, self.size), number)

    def _decoded(self, number: int) -> Decoded:
        return self._kept[number] if number < self.kept else self._read(self.samples[number])

    def _read(self, sample: Sample) -> Decoded:
        """(H, W, C) in the file's depth, and (H, W) uint8."""
        image = read_image(sample.image, self.table.channels)
        return image, pack_mask(read_mask(sample.mask, self.table))

    def _find_spots(self, number: int) -> list[np.ndarray]:
        """(n, 2) rows and columns of pixels of each foreground class that the image has."""
        mask = self._decoded(number)[1]
        draw = np.random.default_rng([self.seed, number])
        found = []
        for k in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)):
            if 0 < k < UNKNOWN:
                places = np.flatnonzero(mask == k)
                if len(places) > _MOST_SPOTS:
                    places = places[draw.integers(len(places), size=_MOST_SPOTS)]
                found.append(np.stack(np.unravel_index(places, mask.shape), 1).astype(np.int32))
        return found


def patches_to_cover(samples: Sequence[Sample], size: int) -> int:
    """How many patches have, together, the area of the mean image of ``samples``."""

    def area(sample: Sample) -> int:
        header = read_header(sample.image)
        if header is None or not header.height:
            height, width = read_image(sample.image).shape[:2]
            return height * width
        return header.height * header.width

    mean = sum(parallel(area, samples)) / len(samples)
    return max(1, math.ceil(mean / size**2))

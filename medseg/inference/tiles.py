"""From an image of any size to class probabilities, in slabs of rows.

What a network saw of an image in training is its view: the whole image scaled into a square, or a
patch at its own resolution. An image no larger than the window of that view is seen so again. A
larger one is cut into overlapping windows, whose probabilities are averaged with Gaussian weights;
never more than one row of windows is in memory.

Source: the sliding window of nnU-Net (Isensee et al., Nature Methods 18, 2021, arXiv:1809.10486)
and of MONAI's `sliding_window_inference`, whose sigma of an eighth of the window is kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data import fit_image, pad_image, to_labels, to_original, to_planes

_SIGMA = 0.125  # of the window
_ROWS = 256  # of a slab at most

Forward = Callable[[Tensor], Tensor]  # (N, C, size, size) -> logits (N, K, size, size)


class Rows(Protocol):
    """An image that is read in rows."""

    @property
    def height(self) -> int:
        """How many rows."""
        ...

    @property
    def width(self) -> int:
        """How many columns."""
        ...

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1, (n, width, C) uint8 or uint16."""
        ...


class Slab(NamedTuple):
    """Some rows of a prediction."""

    top: int
    probabilities: Tensor  # (K, n, width) float32 on the CPU, summing to one over K
    labels: np.ndarray  # (n, width) uint8, the class of every pixel


@dataclass(frozen=True)
class View:
    """What a network sees of an image at once.

    Args:
        size: side of the network's square.
        window: side of the part of the image in it; None where any image is scaled into the square.
        patches: the part has the image's own resolution, and a smaller image is reflected around
            itself; else it is scaled so that its longer side is ``size``.
    """

    size: int
    window: int | None = None
    patches: bool = False

    def holds(self, height: int, width: int) -> bool:
        """Whether an image is seen whole."""
        return self.window is None or max(height, width) <= self.window

    def square(self, pixels: np.ndarray) -> Tensor:
        """(h, w, C) uint8 or uint16, h and w up to ``window`` -> float32 (C, size, size)."""
        if self.patches:
            return to_planes(pad_image(pixels, self.size))
        return to_planes(fit_image(pixels, self.size))

    def back(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Logits (N, K, size, size) of N such squares -> probabilities (N, K, height, width)."""
        if not self.patches:
            return to_original(logits, height, width)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        cut = logits[..., top : top + height, left : left + width]
        return torch.softmax(cut.float(), 1)

    def slabs(self, logits: Tensor, height: int, width: int) -> Iterator[Slab]:
        """Such squares -> what was seen of each image, all at once."""
        found = self.back(logits, height, width)
        for probabilities, labels in zip(found.cpu(), to_labels(found), strict=True):
            yield Slab(0, probabilities, labels)


def slabs(
    image: Rows, forward: Forward, view: View, overlap: float = 0.25, batch: int = 8
) -> Iterator[Slab]:
    """Predicts an image from top to bottom.

    Args:
        image: of any size.
        forward: the network.
        view: what it sees at once.
        overlap: part of a window that lies in the next one as well, 0 to below 1.
        batch: windows a call of ``forward``.
    """
    height, width = image.height, image.width
    if view.window is None or view.holds(height, width):
        logits = forward(view.square(image.rows(0, height))[None])
        yield from view.slabs(logits, height, width)
        return
    tops, lefts = (starts(side, view.window, overlap) for side in (height, width))
    high, wide = min(height, view.window), min(width, view.window)
    down, across = _weights(tops, high, height), _weights(lefts, wide, width)
    bell = torch.from_numpy(np.outer(_bell(high), _bell(wide)).astype(np.float32))
    held = torch.zeros(1, 0, width)  # weighted sums of the rows that the next windows add to
    band = image.rows(0, high)
    for top, below in zip(tops, [*tops[1:], height], strict=True):
        sums = _row_of_windows(band, lefts, wide, forward, view, bell, batch)
        sums[:, : held.shape[1]] += held
        step = below - top
        held = sums[:, step:].clone()
        for start in range(0, step, _ROWS):
            part = sums[:, start : min(start + _ROWS, step)]
            norm = down[top + start : top + start + part.shape[1], None] * across
            part.div_(torch.from_numpy(norm))
            yield Slab(top + start, part, to_labels(part))
        if below < height:
            band = np.concatenate((band[step:], image.rows(top + high, below + high)))


def starts(side: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side: the first at 0, the last at the end, evenly between."""
    if side <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(side - window) // step) + 1
    return [round(place) for place in np.linspace(0, side - window, count)]


def _row_of_windows(
    band: np.ndarray,
    lefts: list[int],
    wide: int,
    forward: Forward,
    view: View,
    bell: Tensor,
    batch: int,
) -> Tensor:
    """Weighted sums (K, h, W) of the windows along a band (h, W, C)."""
    sums: Tensor | None = None
    for start in range(0, len(lefts), batch):
        places = lefts[start : start + batch]
        squares = torch.stack([view.square(band[:, left : left + wide]) for left in places])
        for left, found in zip(places, view.back(forward(squares), len(band), wide), strict=True):
            found = found.cpu()
            if sums is None:
                sums = torch.zeros(len(found), *band.shape[:2])
            sums[:, :, left : left + wide].addcmul_(found, bell)
    assert sums is not None
    return sums


@cache
def _bell(side: int) -> np.ndarray:
    """Gaussian weights of a window along one side."""
    places = np.arange(side) - (side - 1) / 2
    return np.exp(-0.5 * (places / (_SIGMA * side)) ** 2)  # 0.0003 at the rim, never 0


def _weights(starts: list[int], window: int, side: int) -> np.ndarray:
    """The sum of all windows' weights along one side: those of the image are their products."""
    total = np.zeros(side)
    for start in starts:
        total[start : start + window] += _bell(window)
    return total.astype(np.float32)

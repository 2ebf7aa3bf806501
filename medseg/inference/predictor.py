"""A trained network shown one image after the other, small ones in batches."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..data import match_channels
from .forward import Forward
from .load import Trained
from .tiles import Rows, Slab, View, slabs

_READERS = 4
_AHEAD = 1 << 25  # pixels that are read while the network works

Image = TypeVar("Image", bound=Rows)


@dataclass
class Pixels:
    """An image in memory.

    Args:
        pixels: (H, W, C).
    """

    pixels: np.ndarray

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[1]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1, (n, W, C)."""
        return self.pixels[start:stop]


@dataclass
class Predictor:
    """Predicts images of any size.

    Args:
        trained: from `load_trained`.
        batch: squares a forward pass.
        flips: average over four mirror images of each square.
        overlap: part of a window that lies in the next one as well; for large images.
        precision: "fp32", "bf16" or "fp16".
        window: side of the part of an image that is seen at once, in place of the training's.
    """

    trained: Trained
    batch: int = 8
    flips: bool = False
    overlap: float = 0.25
    precision: str = "fp32"
    window: int | None = None

    @cached_property
    def forward(self) -> Forward:
        """The network, called on squares."""
        normalize = self.trained.normalize
        return Forward(self.trained.network, self.precision, self.flips, normalize)

    @cached_property
    def view(self) -> View:
        """What the network sees at once."""
        view = self.trained.view
        if self.window is None:
            return view
        if view.patches:  # at the resolution of the image, so the square grows with the window
            return View(self.window, self.window, patches=True)
        return View(view.size, self.window)

    def probabilities(self, pixels: np.ndarray) -> Tensor:
        """Class probabilities of an image in memory.

        Args:
            pixels: (H, W) or (H, W, C), gray or RGB, uint8 or uint16.

        Returns:
            float32 (K, H, W), summing to one over K.

        Raises:
            ValueError: ``pixels`` has another shape or dtype.
        """
        return torch.cat([slab.probabilities for slab in self._slabs(pixels)], 1)

    def labels(self, pixels: np.ndarray) -> np.ndarray:
        """The most probable class of every pixel, (H, W) uint8; ``pixels`` as above."""
        return np.concatenate([slab.labels for slab in self._slabs(pixels)])

    def _slabs(self, pixels: np.ndarray) -> Iterator[Slab]:
        if pixels.ndim not in (2, 3) or not pixels.size:
            raise ValueError(f"pixels must be (H, W) or (H, W, C), got {pixels.shape}")
        if pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be uint8 or uint16, got {pixels.dtype}")
        return self.slabs(Pixels(match_channels(pixels, self.trained.channels)))

    def slabs(self, image: Rows) -> Iterator[Slab]:
        """One image from top to bottom; it has the network's number of channels."""
        return slabs(image, self.forward, self.view, self.overlap, self.batch)

    def stream(self, images: Iterable[Image]) -> Iterator[tuple[Image, Iterator[Slab]]]:
        """Predicts many images in their order; the next ones are read meanwhile.

        Those that the network sees whole share forward passes, whatever their sizes.

        Args:
            images: with the network's number of channels.

        Returns:
            Each image with its slabs, to be taken before the next one is asked for. What an image
            raises when it is read comes with its first slab.
        """
        with ThreadPoolExecutor(_READERS) as pool:
            source = iter(images)
            waiting: deque[tuple[Image, Future[Tensor | None]]] = deque()
            self._read_ahead(source, waiting, pool)
            while waiting:
                group = self._next_batch(waiting)
                if not group:
                    image, future = waiting.popleft()
                    yield image, _failed(future) or self.slabs(image)
                    self._read_ahead(source, waiting, pool)
                    continue
                self._read_ahead(source, waiting, pool)
                logits = self.forward(torch.stack([square for _, square in group]))
                yield from self._back([image for image, _ in group], logits)

    def _read_ahead(
        self,
        source: Iterator[Image],
        waiting: deque[tuple[Image, Future[Tensor | None]]],
        pool: ThreadPoolExecutor,
    ) -> None:
        pixels = sum(image.height * image.width for image, _ in waiting)
        while pixels < _AHEAD and len(waiting) < 3 * self.batch:
            image = next(source, None)
            if image is None:
                return
            pixels += image.height * image.width
            waiting.append((image, pool.submit(self._square, image)))

    def _square(self, image: Rows) -> Tensor | None:
        """The square of an image that is seen whole."""
        if not self.view.holds(image.height, image.width):
            return None
        return self.view.square(image.rows(0, image.height))

    def _next_batch(
        self, waiting: deque[tuple[Image, Future[Tensor | None]]]
    ) -> list[tuple[Image, Tensor]]:
        """Takes the squares in front, up to an image that has none."""
        group: list[tuple[Image, Tensor]] = []
        while waiting and len(group) < self.batch:
            image, future = waiting[0]
            if future.exception() is not None or (square := future.result()) is None:
                break
            group.append((image, square))
            waiting.popleft()
        return group

    def _back(self, images: list[Image], logits: Tensor) -> Iterator[tuple[Image, Iterator[Slab]]]:
        """The images with their slabs; those of one size that lie together are taken at once."""
        sizes = [(image.height, image.width) for image in images]
        for size, run in groupby(range(len(images)), sizes.__getitem__):
            places = list(run)
            found = self.view.slabs(logits[places[0] : places[-1] + 1], *size)
            for place, slab in zip(places, found, strict=True):
                yield images[place], iter((slab,))


def _failed(future: Future[Tensor | None]) -> Iterator[Slab] | None:
    error = future.exception()
    if error is None:
        return None

    def fail() -> Iterator[Slab]:
        raise error
        yield

    return fail()

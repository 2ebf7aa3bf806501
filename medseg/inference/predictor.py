"""A trained network shown one image after the other, small ones in batches."""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..data import match_channels
from ..data.memory import free_memory
from ..errors import UserError
from .forward import Forward
from .lanes import Image, Result, Work, in_lanes
from .load import Trained
from .tiles import Rows, Slab, View, slabs

_PIXEL_BYTES = 128  # two maps of 16 channels, the least that a network holds of a window at a time


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
            self._refuse_more_than_memory(self.window)
            return View(self.window, self.window, patches=True)
        return View(view.size, self.window)

    def _refuse_more_than_memory(self, window: int) -> None:
        needed = window**2 * _PIXEL_BYTES
        if self.trained.device.type == "cpu" and needed > free_memory():
            raise UserError(
                f"--window {window}: the network needs at least {needed / 1e9:.0f} GB of memory "
                "for one, more than is free; take a smaller one."
            )

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

    def stream(
        self, images: Iterable[Image], work: Work[Image, Result]
    ) -> Generator[tuple[Image, Future[Result]]]:
        """Predicts many images and does something with each; several at once.

        Those that the network sees whole share forward passes, whatever their sizes. Large images
        are taken one by one.

        Args:
            images: with the network's number of channels.
            work: is given an image and its slabs, in any thread; on a CPU it may use no more than
                its share of the cores.

        Returns:
            The images in their order, each with what ``work`` returns or raises, or what the image
            raises when it is read. Close it where it is not used up.
        """
        return in_lanes(self, images, work)

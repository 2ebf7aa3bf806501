"""What the page draws: the mask as it is, and image and classes as a screen shows them."""

import base64
import io
import json
from typing import BinaryIO, ClassVar

import numpy as np

from ..inference import Trained
from ..predict.png import PngWriter
from ..predict.writers import MaskWriter, Part

_SIDE = 2048  # of what is drawn; of larger images every second row and column, or third, ...


class ViewWriter:
    """Sides, pixels of each class and three PNG in base64: mask, classes and image."""

    shows: ClassVar[bool] = True

    def __init__(self, file: BinaryIO, height: int, width: int, trained: Trained) -> None:
        self._file = file
        self._step = -(-max(height, width) // _SIDE)
        self._sides = height, width
        self._counts = np.zeros(len(trained.names), np.int64)
        self._packed = {name: io.BytesIO() for name in ("mask", "classes", "image")}
        self._mask = MaskWriter(self._packed["mask"], height, width, trained)
        sides = -(-height // self._step), -(-width // self._step)
        self._classes = PngWriter(self._packed["classes"], *sides, 1)
        self._image = PngWriter(self._packed["image"], *sides, 3)

    def add(self, part: Part) -> None:
        """Adds the next rows."""
        assert part.shown is not None
        self._mask.add(part)
        self._counts += np.bincount(part.labels.ravel(), minlength=len(self._counts))
        rows = slice(-part.top % self._step, None, self._step)
        if part.labels[rows].size:
            self._classes.add(part.labels[rows, :: self._step])
            self._image.add(part.shown[rows, :: self._step])

    def finish(self) -> None:
        """Writes the document."""
        self._mask.finish()
        self._classes.finish()
        self._image.finish()
        document = {
            "height": self._sides[0],
            "width": self._sides[1],
            "pixels": self._counts.tolist(),
            **{
                name: base64.b64encode(packed.getvalue()).decode()
                for name, packed in self._packed.items()
            },
        }
        self._file.write(json.dumps(document).encode())

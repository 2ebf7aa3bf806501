"""What a prediction is written as, a slab of rows at a time."""

import contextlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import cv2
import numpy as np
from torch import Tensor

from ..errors import UserError
from ..inference import Trained
from ..look import BRIGHT
from ..runs import atomic
from .png import PngWriter
from .polygons import Polygon, Tracer

_BUFFER = 1 << 16  # bytes: a small picture is one write
_OPACITY = 0.4  # of the colours of an overlay


@dataclass(frozen=True)
class Part:
    """Some rows of an image and of its prediction."""

    top: int
    labels: np.ndarray  # (n, width) uint8
    probabilities: Tensor  # (K, n, width) float32
    shown: np.ndarray | None  # (n, width, 3) uint8, where a writer looks at it


class Writer(Protocol):
    """Writes one file."""

    shows: ClassVar[bool]  # whether it looks at the image

    def __init__(self, file: BinaryIO, height: int, width: int, trained: Trained) -> None: ...

    def add(self, part: Part) -> None:
        """Adds the next rows."""
        ...

    def finish(self) -> None:
        """Writes what is left."""
        ...


class MaskWriter:
    """The mask values that the network was trained on, as PNG."""

    shows: ClassVar[bool] = False

    def __init__(self, file: BinaryIO, height: int, width: int, trained: Trained) -> None:
        dtype = np.uint8 if max(trained.values) < 256 else np.uint16
        self._values = np.array(trained.values, dtype)
        self._png = PngWriter(file, height, width, 1, dtype)

    def add(self, part: Part) -> None:
        """Adds the next rows."""
        self._png.add(self._values.take(part.labels))

    def finish(self) -> None:
        """Writes what is left."""
        self._png.finish()


class OverlayWriter:
    """The image with the classes but the background coloured, as PNG."""

    shows: ClassVar[bool] = True

    def __init__(self, file: BinaryIO, height: int, width: int, trained: Trained) -> None:
        self._colours = np.zeros((256, 1, 3), np.uint8)  # by label
        self._colours[: len(trained.values), 0] = _colours(len(trained.values))
        self._png = PngWriter(file, height, width, 3)

    def add(self, part: Part) -> None:
        """Adds the next rows."""
        assert part.shown is not None
        image = np.ascontiguousarray(part.shown)
        found = part.labels > 0
        if found.any():
            colours = cv2.applyColorMap(np.ascontiguousarray(part.labels), self._colours)
            mixed = cv2.addWeighted(image, 1 - _OPACITY, colours, _OPACITY, 0)
            image = cv2.copyTo(mixed, found.view(np.uint8), image.copy())
        self._png.add(image)

    def finish(self) -> None:
        """Writes what is left."""
        self._png.finish()


class OutlineWriter:
    """The image with a line of one pixel where classes meet, as PNG."""

    shows: ClassVar[bool] = True

    def __init__(self, file: BinaryIO, height: int, width: int, trained: Trained) -> None:
        self._colours = _colours(len(trained.values))
        self._png = PngWriter(file, height, width, 3)
        self._above: np.ndarray | None = None  # the last row of labels

    def add(self, part: Part) -> None:
        """Adds the next rows."""
        assert part.shown is not None
        labels = part.labels
        above = np.concatenate((labels[:1] if self._above is None else self._above, labels[:-1]))
        left = np.concatenate((labels[:, :1], labels[:, :-1]), 1)
        edge = (labels != above) | (labels != left)
        drawn = np.maximum(labels, np.maximum(above, left))
        shown = part.shown.copy()
        shown[edge] = self._colours[drawn[edge]]
        self._above = labels[-1:].copy()
        self._png.add(shown)

    def finish(self) -> None:
        """Writes what is left."""
        self._png.finish()


class ProbabilityWriter:
    """The probabilities of all classes, (K, H, W) float16, as NumPy's .npy."""

    shows: ClassVar[bool] = False

    def __init__(self, file: BinaryIO, height: int, width: int, trained: Trained) -> None:
        shape = (len(trained.values), height, width)
        head = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        self._file, self._start = file, file.tell()
        self._plane, self._row = 2 * height * width, 2 * width
        file.truncate(self._start + shape[0] * self._plane)

    def add(self, part: Part) -> None:
        """Adds the next rows."""
        for k, rows in enumerate(part.probabilities.numpy().astype("<f2")):
            self._file.seek(self._start + k * self._plane + part.top * self._row)
            self._file.write(rows.tobytes())

    def finish(self) -> None:
        """All is written."""


class PolygonWriter:
    """Gathers labels and hands on the polygons that are finished."""

    shows: ClassVar[bool] = False

    def __init__(self, file: BinaryIO, height: int, width: int, trained: Trained) -> None:
        self._file, self._trained = file, trained
        self._tracer = Tracer()
        self._count = 0

    def add(self, part: Part) -> None:
        """Adds the next rows."""
        for polygon in self._tracer.add(part.labels):
            self._write(polygon)
            self._count += 1

    def finish(self) -> None:
        """Writes what is left."""
        for polygon in self._tracer.finish():
            self._write(polygon)
            self._count += 1

    def _write(self, polygon: Polygon) -> None:
        raise NotImplementedError


class GeoJsonWriter(PolygonWriter):
    """A polygon with its holes for each region, as GeoJSON in pixels; QuPath reads the classes."""

    def __init__(self, file: BinaryIO, height: int, width: int, trained: Trained) -> None:
        super().__init__(file, height, width, trained)
        file.write(b'{"type": "FeatureCollection", "features": [\n')

    def _write(self, polygon: Polygon) -> None:
        rings = [[*ring.tolist(), ring[0].tolist()] for ring in (polygon.outer, *polygon.holes)]
        colour = _colours(polygon.label + 1)[polygon.label].tolist()
        name = self._trained.names[polygon.label]
        feature: dict[str, Any] = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": name, "color": colour},
                "mask_value": self._trained.values[polygon.label],
            },
        }
        text = json.dumps(feature, ensure_ascii=False, separators=(",", ":"))
        self._file.write((",\n" if self._count else "").encode() + text.encode())

    def finish(self) -> None:
        """Writes what is left."""
        super().finish()
        self._file.write(b"\n]}\n")


class ImageJWriter(PolygonWriter):
    """A polygon for each region, as a zip of ImageJ ROIs; holes hang on the border by a line."""

    def __init__(self, file: BinaryIO, height: int, width: int, trained: Trained) -> None:
        super().__init__(file, height, width, trained)
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)

    def _write(self, polygon: Polygon) -> None:
        from roifile import ImagejRoi

        name = f"{self._count + 1:06d}-{self._trained.names[polygon.label]}"
        roi = ImagejRoi.frompoints(_keyhole(polygon), name=name)
        safe = "".join(c if c.isalnum() or c in "-_ " else "_" for c in name)
        self._zip.writestr(f"{safe}.roi", roi.tobytes())

    def finish(self) -> None:
        """Writes what is left."""
        super().finish()
        self._zip.close()


KINDS: dict[str, tuple[type[Writer], str]] = {
    "masks": (MaskWriter, ".png"),
    "overlays": (OverlayWriter, ".png"),
    "outlines": (OutlineWriter, ".png"),
    "probabilities": (ProbabilityWriter, ".npy"),
    "geojson": (GeoJsonWriter, ".geojson"),
    "imagej": (ImageJWriter, ".zip"),
}


@contextlib.contextmanager
def open_writer(
    make: type[Writer], path: Path, height: int, width: int, trained: Trained
) -> Iterator[Writer]:
    """Yields a writer; the file is there whole once the block ends, or not at all.

    Raises:
        UserError: it cannot be written, or needs a package that is not installed.
    """
    with atomic(path) as beside, beside.open("wb", _BUFFER) as file:
        writer = make(file, height, width, trained)
        yield writer
        writer.finish()


def check_kinds(kinds: list[str]) -> None:
    """Refuses a kind whose package is not installed.

    Raises:
        UserError: it is not.
    """
    if "imagej" in kinds:
        try:
            import roifile  # noqa: F401
        except ImportError:
            words = "--write imagej: needs roifile: pip install 'medseg[formats]'."
            raise UserError(words) from None


def _colours(classes: int) -> np.ndarray:
    """(classes, 3) uint8; black for the background, which is never drawn."""
    bright = [list(bytes.fromhex(text[1:])) for text in BRIGHT]
    found = [bright[k % len(bright)] for k in range(classes - 1)]
    return np.array([[0, 0, 0], *found], np.uint8)


def _keyhole(polygon: Polygon) -> np.ndarray:
    """One ring around a region and its holes: to each hole along a line, and back along it."""
    start = polygon.outer[:1]
    rings = [polygon.outer, start]
    for hole in polygon.holes:
        rings += [hole, hole[:1], start]
    return np.concatenate(rings)

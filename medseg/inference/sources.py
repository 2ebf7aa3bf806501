"""Image files as rows of pixels: read whole where that is cheap, in strips where it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..data import match_channels, read_image
from ..data.files import EXTENSIONS
from ..data.header import Header, read_header
from ..data.paths import refuse_odd_name
from ..errors import UserError

RAW = (".npy",)
VOLUMES = (".dcm", ".dicom", ".nii", ".nii.gz")
_LARGE = 1 << 24  # pixels, from which a file is read in strips where it can be


@dataclass
class FileImage:
    """A PNG, JPEG, BMP or TIFF file, read whole when it is first asked for.

    Args:
        path: of the file.
        channels: what the network takes, 1 or 3; gray and RGB become each other.
    """

    path: Path
    channels: int
    part: str = ""  # which of several images of the file, for a name

    @property
    def name(self) -> str:
        """Of the image, without what stands for its format."""
        return stem(self.path) + self.part

    @cached_property
    def _header(self) -> Header | None:
        return read_header(self.path)

    @cached_property
    def _sides(self) -> tuple[int, int]:
        header = self._header
        if header is None or not header.height or not header.width:
            return self._pixels.shape[0], self._pixels.shape[1]
        return header.height, header.width

    @property
    def height(self) -> int:
        """Rows."""
        return self._sides[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self._sides[1]

    @cached_property
    def _pixels(self) -> np.ndarray:
        return read_image(self.path, self.channels, upright=True, header=self._header)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1, (n, width, C)."""
        return self._pixels[start:stop]


@dataclass
class RowImage:
    """An image whose file gives any rows without the others.

    Args:
        path: of the file.
        channels: what the network takes, 1 or 3.
        height, width: of the image.
        read: (start, stop) -> pixels (n, width) or (n, width, any number of channels).
        part: which of several images of the file, for a name.
    """

    path: Path
    channels: int
    height: int
    width: int
    read: Callable[[int, int], np.ndarray] = field(repr=False)
    part: str = ""

    @property
    def name(self) -> str:
        """Of the image, without what stands for its format."""
        return stem(self.path) + self.part

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1, (n, width, C)."""
        return match_channels(self.read(start, stop), self.channels)


SourceImage = FileImage | RowImage


def stem(path: Path) -> str:
    """The file's name without its ending, of which .nii.gz is one."""
    name = path.name
    return name[:-7] if name.lower().endswith(".nii.gz") else path.stem


def readable(path: Path) -> bool:
    """Whether a file's name is that of an image."""
    name = path.name.lower()
    return not name.startswith(".") and name.endswith((*EXTENSIONS, *RAW, *VOLUMES))


def find_files(path: Path) -> list[Path]:
    """The file, or the image files of the folder, or of images/ in it, by name.

    Raises:
        UserError: there is none, or a name is no text.
    """
    if path.is_file():
        if not readable(path):
            raise UserError(
                f"--images {path}: is no image file by its name; known are "
                f"{' '.join((*EXTENSIONS, *RAW, *VOLUMES))}.",
                code=3,
            )
        return [path]
    if not path.is_dir():
        raise UserError(f"--images {path}: is not there; name a file or a folder of images.", 3)
    for folder in (path, path / "images"):
        files = sorted(p for p in folder.iterdir() if readable(p)) if folder.is_dir() else []
        for file in files:
            refuse_odd_name(file)
        if files:
            return files
    raise UserError(
        f"--images {path}: holds no image; known are {' '.join((*EXTENSIONS, *RAW, *VOLUMES))}.", 3
    )


def open_images(path: Path, channels: int) -> Iterator[SourceImage]:
    """The images of one file: pages of a TIFF, slices of a volume, or the one there is.

    Raises:
        UserError: the file cannot be read, or needs a package that is not installed.
    """
    name = path.name.lower()
    if name.endswith(RAW):
        from .raw import open_npy

        yield open_npy(path, channels)
    elif name.endswith(VOLUMES):
        from .volumes import open_dicom, open_nifti

        opener = open_dicom if name.endswith((".dcm", ".dicom")) else open_nifti
        yield from opener(path, channels)
    elif name.endswith((".tif", ".tiff")):
        from .tiff import open_tiff

        yield from open_tiff(path, channels)
    else:
        yield FileImage(path, channels)


def is_large(height: int, width: int) -> bool:
    """Whether an image is worth reading in strips."""
    return height * width > _LARGE

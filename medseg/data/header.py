"""What an image file says of itself, read before its pixels are: format, size, palette, turn."""

from __future__ import annotations

import functools
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from ..errors import UserError
from .memory import free_memory

_ORIENTATION = 0x0112  # of EXIF; 1 is upright
_WIDTH, _HEIGHT = 256, 257  # tags of TIFF
_PIXEL_BYTES = 8  # four channels of 16 bits, the most a pixel takes
_SMALL = 1 << 26  # bytes: decoded without a look at the free memory
_READERS = {  # of each file's first bytes; Image.open would refuse large images as bombs
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
    b"II+\0": TiffImagePlugin.TiffImageFile,
    b"MM\0+": TiffImagePlugin.TiffImageFile,
}


@dataclass(frozen=True)
class Header:
    """What is known without decoding; 0 for a side that is not."""

    height: int
    width: int
    palette: bool
    turned: bool  # viewers turn or mirror it by its EXIF entry

    @property
    def large(self) -> bool:
        """Whether the pixels may take more memory than one would take unasked."""
        return self.height * self.width * _PIXEL_BYTES > _SMALL


def read_header(path: Path) -> Header | None:
    """Reads the header of a PNG, JPEG, TIFF or BMP file; None for any other, or none at all."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with path.open("rb") as file:
            return header_of(file)
    except OSError:
        return None


def header_of(file: BinaryIO) -> Header | None:
    """As `read_header`, of a file that is open at its start, or of bytes in memory."""
    try:
        start = file.read(16)
        file.seek(0)
        if (reader := _reader(start)) is None:
            return None
        if reader is PngImagePlugin.PngImageFile:
            return _png_header(file)
        try:
            return _header(reader, file)
        except Exception:  # Pillow knows fewer kinds of TIFF, and trips over bad files
            return Header(*_tiff_sides(file, start), False, False)
    except (OSError, ValueError):
        return None


def _png_header(file: BinaryIO) -> Header:
    """The first chunk of a PNG, which no viewer turns; Pillow would take ten times as long."""
    start = file.read(26)
    if start[12:16] != b"IHDR" or len(start) < 26:
        return Header(0, 0, False, False)  # OpenCV has the last word on whether it is an image
    width, height, _, kind = struct.unpack(">IIBB", start[16:])
    return Header(height, width, kind == 3, False)


def open_picture(path: Path) -> ImageFile.ImageFile:
    """Opens a file of those formats as Pillow's; nothing is decoded yet."""
    with path.open("rb") as file:
        reader = _reader(file.read(16))
    assert reader is not None  # asked for after `read_header`
    _silence_pillow()
    return reader(path)


@functools.cache
def _silence_pillow() -> None:
    """No warnings beside our sentence; once and for all, since threads share the filters."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _header(reader: type[ImageFile.ImageFile], file: BinaryIO) -> Header:
    _silence_pillow()
    with reader(file) as picture:
        turned = picture.getexif().get(_ORIENTATION, 1) not in (0, 1)
        return Header(picture.height, picture.width, picture.mode in ("P", "PA"), turned)


def _reader(start: bytes) -> type[ImageFile.ImageFile] | None:
    return next((known for magic, known in _READERS.items() if start.startswith(magic)), None)


def _tiff_sides(file: BinaryIO, start: bytes) -> tuple[int, int]:
    """Height and width of a TIFF of a kind that Pillow does not know; 0, 0 if they are not said."""
    try:
        big = 43 in start[2:4]  # BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(start if big else start[:8])
        file.seek(tags.next)
        tags.load(file)
        return int(tags[_HEIGHT]), int(tags[_WIDTH])
    except Exception:  # OpenCV has the last word on whether it is an image
        return 0, 0


def refuse_too_large(path: Path, header: Header) -> None:
    """Refuses an image that would not fit into half of the free memory, before it is decoded.

    Raises:
        UserError: it would not.
    """
    needed = max(header.height * header.width * _PIXEL_BYTES, os.path.getsize(path))
    if needed > _SMALL and needed > free_memory() // 2:
        raise UserError(
            f"{path} has {header.width}x{header.height} pixels, too many for the memory that is "
            "free: cut it into smaller images, or replace it if it is damaged.",
            code=3,
        )

"""TIFF files: pages one by one, large ones in strips or tiles, by tifffile where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from ..errors import UserError
from .raw import row_reader
from .sources import FileImage, RowImage, SourceImage, is_large

_PLAIN = (1, 2)  # photometric interpretation: black is zero, RGB
_MORE = "pip install 'medseg[formats]'"


def open_tiff(path: Path, channels: int) -> Iterator[SourceImage]:
    """The pages of a file, without the smaller copies that pyramids hold.

    A single page of common size is read by the same code as in training. The rows of a larger page
    are read as they are needed, so that its memory is that of one row of strips or tiles.

    Raises:
        UserError: it has several pages and tifffile is not installed, or cannot decode them.
    """
    try:
        import tifffile
    except ImportError:
        if _pages(path) > 1:
            raise UserError(f"{path} has several pages, which need tifffile: {_MORE}.", 3) from None
        yield FileImage(path, channels)
        return
    try:
        with tifffile.TiffFile(path) as file:
            pages: list[Any] = [page.aspage() for page in file.pages]
            pages = [page for page in pages if not page.is_reduced] or pages[:1]
            if len(pages) == 1 and not is_large(pages[0].imagelength, pages[0].imagewidth):
                pages = []
            images = [
                _page(path, page, channels, number, len(pages)) for number, page in enumerate(pages)
            ]
    except UserError:
        raise
    except Exception:  # what tifffile cannot open, OpenCV opens or says why not
        images = []
    yield from images or [FileImage(path, channels)]


def _page(path: Path, page: Any, channels: int, number: int, pages: int) -> SourceImage:
    part = f"_{number + 1:0{max(4, len(str(pages)))}d}" if pages > 1 else ""
    try:
        _check(path, page)
        if page.is_memmappable:
            dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
            read = row_reader(path, page.dataoffsets[0], page.shape, dtype)
        else:
            read = _Strips(path, page)
            read(0, 1)
    except UserError:
        raise
    except Exception as error:
        if pages == 1:
            return FileImage(path, channels)
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{path} page {number + 1} cannot be decoded ({reason}): {_MORE}, or save it without "
            "compression.",
            code=3,
        ) from None
    return RowImage(path, channels, page.imagelength, page.imagewidth, read, part)


def _check(path: Path, page: Any) -> None:
    if page.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{path} has {page.dtype} pixels: save it with 8 or 16 bits a channel.", code=3
        )
    if page.photometric not in _PLAIN or page.planarconfig != 1 or page.imagedepth != 1:
        raise ValueError(f"photometric {page.photometric}, planes {page.planarconfig}")


class _Strips:
    """Reads rows of a page through its strips or tiles; the last row of those is kept."""

    def __init__(self, path: Path, page: Any) -> None:
        self.path, self.page = path, page
        self.high, self.wide = page.chunks[:2]
        self.across = -(-page.imagewidth // self.wide)
        self._last: tuple[int, np.ndarray] | None = None

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1, (n, width, samples)."""
        stop = min(stop, self.page.imagelength)
        parts = []
        for number in range(start // self.high, -(-stop // self.high)):
            top = number * self.high
            rows = self._row(number)
            parts.append(rows[max(start - top, 0) : stop - top])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _row(self, number: int) -> np.ndarray:
        """A whole row of strips or tiles."""
        last = self._last
        if last is not None and last[0] == number:
            return last[1]
        page = self.page
        rows = min(self.high, page.imagelength - number * self.high)
        found = np.zeros((rows, page.imagewidth, page.samplesperpixel), page.dtype)
        with self.path.open("rb") as file:
            for column in range(self.across):
                index = number * self.across + column
                file.seek(page.dataoffsets[index])
                data = file.read(page.databytecounts[index])
                if not data:  # a tile that was never written
                    continue
                pixels = page.decode(data, index, jpegtables=page.jpegtables)[0]
                left = column * self.wide
                width = min(self.wide, page.imagewidth - left)
                found[:, left : left + width] = pixels[0, :rows, :width]
        self._last = (number, found)
        return found


def _pages(path: Path) -> int:
    """How many pages there are; 1 where that cannot be told."""
    try:
        with TiffImagePlugin.TiffImageFile(path) as picture:
            return picture.n_frames
    except Exception:  # OpenCV has the last word on whether it is an image
        return 1

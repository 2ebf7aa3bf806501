"""Reads image and mask files, 8 and 16 bit kept; what cannot be used is refused by name."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from ..errors import UserError
from ..losses import IGNORE
from .header import Header, header_of, open_picture, read_header, refuse_too_large
from .table import Table

_STRANGE = IGNORE - 1  # of a mask value that belongs to no class
_SMALL = 1 << 24  # bytes of a file that is read whole before anything is known of it
_LARGE = threading.Lock()  # large images are decoded one by one, each if it fits beside the others
EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_image(
    path: Path,
    channels: int | None = None,
    upright: bool = False,
    header: Header | None = None,
) -> np.ndarray:
    """Reads an image as (H, W, C), C = 1 or 3 (RGB), uint8 or uint16 as it is in the file.

    Transparency is dropped; gray becomes RGB and back where ``channels`` asks for it. ``upright``
    refuses an image that some viewers turn or mirror by its EXIF entry. ``header`` is the file's,
    where it was read before.

    Raises:
        UserError: the file cannot be read, or its pixels are neither 8 nor 16 bit.
    """
    pixels, header = _decode(path, header)
    if upright and header.turned:
        raise UserError(
            f"{path} is turned or mirrored by its EXIF entry, which some programs heed and some do "
            "not: save it upright, without the entry.",
            code=3,
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{path} has {pixels.dtype} pixels: save it with 8 or 16 bits a channel.", code=3
        )
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        pixels = cv2.cvtColor(pixels[:, :, :3], cv2.COLOR_BGR2RGB)
    return match_channels(pixels, channels)


def match_channels(pixels: np.ndarray, channels: int | None) -> np.ndarray:
    """(H, W), or (H, W, C) gray or RGB, with transparency or without -> (H, W, 1 or 3).

    None leaves gray gray and RGB in its colours.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    found = 3 if pixels.shape[2] >= 3 else 1
    pixels = pixels[:, :, :found]
    if channels in (None, found):
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)[:, :, None]


def read_mask_values(path: Path) -> np.ndarray:
    """Reads a mask as (H, W) uint8 or uint16 with the values of the file.

    A palette file is taken only where index and gray level agree, so that both readings are one.

    Raises:
        UserError: the file cannot be read, has colours, a palette, or values that are not integers.
    """
    pixels, header = _decode(path)
    if header.palette:
        return _palette_indices(path)
    if pixels.ndim == 3:
        raise UserError(
            f"{path} is a colour mask with {pixels.shape[2]} channels: "
            "save it as a one-channel file whose pixel value is the class.",
            code=3,
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{path} has {pixels.dtype} pixels: save it as a mask of 8 or 16 bit integers.", code=3
        )
    return pixels


def read_mask(path: Path, table: Table) -> np.ndarray:
    """Reads a mask as (H, W) int16 class indices of ``table``, at the file's own resolution.

    Pixels of the value ``table.ignore`` become ``IGNORE``.

    Raises:
        UserError: as ``read_mask_values``, or a value belongs to no class.
    """
    values = read_mask_values(path)
    lookup = _lookup(table.values, table.ignore)
    mask = lookup[values] if values.dtype == np.uint16 else lookup[:256][values]
    if mask.min(initial=0) == _STRANGE:
        strange = sorted(set(present_values(values)) - {*table.values, table.ignore})
        raise UserError(
            f"{path} has {quote(strange)}, but the classes of {table.root} have "
            f"{quote(table.values)}: correct the mask or classes.json.",
            code=3,
        )
    return mask


def present_values(values: np.ndarray) -> list[int]:
    """The distinct values of a uint8 or uint16 array, ascending."""
    return np.flatnonzero(np.bincount(values.ravel(), minlength=1)).tolist()


def quote(values: Iterable[int], most: int = 8) -> str:
    """ "the values 1, 2, 3": a list for a sentence, cut after ``most``."""
    known = list(values)
    text = ", ".join(map(str, known[:most])) + (", ..." if len(known) > most else "")
    return f"the value{'s' if len(known) > 1 else ''} {text}"


def first_of(count: int) -> str:
    """ " (the first of 3 such files)": what a sentence about one file says of the others."""
    return f" (the first of {count} such files)" if count > 1 else ""


def parallel(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """[work(item) for item in items] on a few threads: OpenCV releases the interpreter lock."""
    _prepare_opencv()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))


def _decode(path: Path, header: Header | None = None) -> tuple[np.ndarray, Header]:
    """The pixels as OpenCV gives them, (H, W) or (H, W, C), BGR; and what the file says of them."""
    _prepare_opencv()
    data = _small_file(path)
    if header is None:
        header = read_header(path) if data is None else header_of(io.BytesIO(data))
    pixels = None
    if header is not None:
        with _LARGE if header.large else contextlib.nullcontext():
            refuse_too_large(path, header)
            with contextlib.suppress(OSError, cv2.error):
                read = (
                    np.fromfile(path, np.uint8) if data is None else np.frombuffer(data, np.uint8)
                )
                pixels = cv2.imdecode(read, cv2.IMREAD_UNCHANGED)
    if header is None or pixels is None:
        raise UserError(
            f"{path} cannot be read as an image (missing, empty or damaged): "
            "replace it, or leave it out.",
            code=3,
        )
    return pixels, header


def _small_file(path: Path) -> bytes | None:
    """All of a small file in one read, so that readers seldom wait for the interpreter's lock."""
    with contextlib.suppress(OSError):
        facts = os.stat(path)
        if stat.S_ISREG(facts.st_mode) and facts.st_size <= _SMALL:
            with open(path, "rb", buffering=0) as file:
                return file.readall()
    return None


@functools.cache
def _prepare_opencv() -> None:
    """No messages beside our sentence; no threads inside ours or in forked workers."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    cv2.setNumThreads(0)


def _palette_indices(path: Path) -> np.ndarray:
    with open_picture(path) as picture:
        indices = np.asarray(picture if picture.mode == "P" else picture.getchannel(0))
        colours = picture.getpalette("RGB") or []
    used = present_values(indices)
    if any(colours[3 * index : 3 * index + 3] != [index] * 3 for index in used):
        raise UserError(
            f"{path} is a palette mask whose indices and colours differ, so that its classes could "
            "be either: save it as a one-channel gray file whose pixel value is the class.",
            code=3,
        )
    return indices


@functools.lru_cache(maxsize=8)
def _lookup(values: tuple[int, ...], ignore: int | None) -> np.ndarray:
    """Mask value -> class index, or IGNORE, or _STRANGE for a value of no class."""
    table = np.full(65536, _STRANGE, np.int16)
    table[list(values)] = np.arange(len(values), dtype=np.int16)
    if ignore is not None:
        table[ignore] = IGNORE
    return table

"""Slices of medical volumes, as 16-bit gray images.

Networks learn from images of 8 or 16 bits, so intensities are brought to that range: by the window
that a DICOM file names, else from the least to the largest value of the volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .sources import RowImage

_MOST = 1 << 33  # values in a volume: above, the header is damaged
_MORE = "pip install 'medseg[formats]'"


def open_dicom(path: Path, channels: int) -> Iterator[RowImage]:
    """The frames of a DICOM file; colours stay as they are.

    Raises:
        UserError: it cannot be read, or pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_rescale
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise UserError(f"{path} needs pydicom: {_MORE}.", 3) from None
    try:
        file = pydicom.dcmread(path)
        pixels = pixel_array(file)
        colour = int(file.SamplesPerPixel) > 1
        if not colour:
            pixels = _windowed(np.asarray(apply_rescale(pixels, file), np.float32), file)
        elif pixels.dtype != np.uint8:
            pixels = _stretched(pixels, float(pixels.min()), float(pixels.max()))
    except Exception as error:
        raise _unreadable(path, "a DICOM file", error) from None
    frames = pixels if pixels.ndim == 3 + colour else pixels[None]
    for number, frame in enumerate(frames):
        yield _slice(path, frame, channels, number, len(frames))


def open_nifti(path: Path, channels: int) -> Iterator[RowImage]:
    """The slices along the third axis of a NIfTI volume; rows run along the second axis.

    Raises:
        UserError: it cannot be read, has no two or three axes, or nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError:
        raise UserError(f"{path} needs nibabel: {_MORE}.", 3) from None
    try:
        volume: Any = nibabel.load(path)  # pyright: ignore[reportPrivateImportUsage]
        shape = tuple(volume.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (2, 3) or min(shape) < 1 or math.prod(shape) > _MOST:
            raise ValueError(f"its shape is {volume.shape}, not (x, y) or (x, y, z)")
        values = np.asarray(volume.dataobj, np.float32).reshape(*shape, *[1] * (3 - len(shape)))
        if not np.isfinite(values).all():
            values = np.nan_to_num(values, posinf=0, neginf=0)
    except Exception as error:
        raise _unreadable(path, "a NIfTI volume", error) from None
    low, high = float(values.min()), float(values.max())
    for number in range(values.shape[2]):
        frame = _stretched(values[:, :, number].T, low, high)
        yield _slice(path, frame, channels, number, values.shape[2])


def _windowed(values: np.ndarray, file: Any) -> np.ndarray:
    """Values in the window of the file, white where the file says that high is dark."""
    centre, width = (file.get(key) for key in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        low, high = float(values.min()), float(values.max())
    else:
        first = [
            float(each if isinstance(each, (int, float, str)) else each[0])
            for each in (centre, width)
        ]
        low, high = first[0] - first[1] / 2, first[0] + first[1] / 2
    found = _stretched(values, low, high)
    return 65535 - found if file.PhotometricInterpretation == "MONOCHROME1" else found


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """low .. high to 0 .. 65535; all black where they are one."""
    scale = 65535 / (high - low) if high > low else 0.0
    return ((values.astype(np.float32) - low) * scale).clip(0, 65535).round().astype(np.uint16)


def _slice(path: Path, frame: np.ndarray, channels: int, number: int, count: int) -> RowImage:
    part = f"_{number + 1:0{max(4, len(str(count)))}d}" if count > 1 else ""
    height, width = frame.shape[:2]
    return RowImage(path, channels, height, width, lambda a, b: frame[a:b], part)


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return UserError(f"{path} cannot be read as {kind} ({reason}): replace it or take it out.", 3)

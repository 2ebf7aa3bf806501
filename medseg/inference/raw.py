"""Pixels that lie in a file as they are: any rows are one read."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import UserError
from .sources import RowImage


def open_npy(path: Path, channels: int) -> RowImage:
    """An array of NumPy's own format, (H, W) or (H, W, C), 8 or 16 bit; never a pickle.

    Raises:
        UserError: it is none.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(file)
            offset = file.tell()
            room = path.stat().st_size - offset
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{path} cannot be read as an array ({reason}): save it anew.", 3) from None
    fine = len(shape) in (2, 3) and not fortran and dtype.kind == "u" and dtype.itemsize in (1, 2)
    if not fine or min(shape) < 1 or math.prod(shape) * dtype.itemsize > room:
        raise UserError(
            f"{path} holds {dtype} of shape {shape}: save rows, columns and channels, (H, W) or "
            "(H, W, C), as uint8 or uint16 in C order.",
            code=3,
        )
    return RowImage(path, channels, shape[0], shape[1], row_reader(path, offset, shape, dtype))


def row_reader(
    path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[int, int], np.ndarray]:
    """Reads rows of an array (H, W) or (H, W, C) that begins at ``offset``.

    Not mapped into memory: the pages of a mapped file count as the program's own.
    """
    row = math.prod(shape[1:])

    def read(start: int, stop: int) -> np.ndarray:
        count = (min(stop, shape[0]) - start) * row
        values = np.fromfile(path, dtype, count, offset=offset + start * row * dtype.itemsize)
        if len(values) != count:
            raise UserError(f"{path} ends before its last row: save it anew.", 3)
        return values.reshape(-1, *shape[1:]).astype(dtype.newbyteorder("="), copy=False)

    return read

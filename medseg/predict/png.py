"""PNG files written a few rows at a time, so that no image need be whole in memory."""

import struct
import zlib
from typing import BinaryIO

import numpy as np

# labels shrink to nothing; of photographs runs are all that is worth looking for, and the files
# are smaller than those of zlib's default strategy at this level
_LEVEL, _STRATEGY = 1, zlib.Z_RLE
_UP = 2  # filter: each byte less the one above


class PngWriter:
    """Writes gray or RGB rows of 8 or 16 bits.

    Args:
        file: to write to.
        height, width: of the image.
        channels: 1 or 3.
        dtype: uint8 or uint16.

    Source: PNG specification, third edition, W3C 2023, sections 5 and 9.
    """

    def __init__(
        self, file: BinaryIO, height: int, width: int, channels: int, dtype: type = np.uint8
    ) -> None:
        self._file = file
        self._dtype = np.dtype(dtype).newbyteorder(">")
        self._above = np.zeros((1, width * channels * self._dtype.itemsize), np.uint8)
        self._pack = zlib.compressobj(_LEVEL, strategy=_STRATEGY)
        file.write(b"\x89PNG\r\n\x1a\n")
        kind = {1: 0, 3: 2}[channels]
        sides = struct.pack(">IIBBBBB", width, height, 8 * self._dtype.itemsize, kind, 0, 0, 0)
        self._chunk(b"IHDR", sides)

    def add(self, rows: np.ndarray) -> None:
        """Adds rows, (n, width) or (n, width, channels)."""
        values = np.ascontiguousarray(rows.astype(self._dtype, copy=False))
        lines = values.view(np.uint8).reshape(len(rows), -1)
        above = np.concatenate((self._above, lines[:-1]))
        filtered = np.empty((len(lines), lines.shape[1] + 1), np.uint8)
        filtered[:, 0] = _UP
        np.subtract(lines, above, out=filtered[:, 1:])
        self._above = lines[-1:].copy()
        if packed := self._pack.compress(filtered.data):
            self._chunk(b"IDAT", packed)

    def finish(self) -> None:
        """Writes what is left."""
        self._chunk(b"IDAT", self._pack.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data)
        self._file.write(struct.pack(">I", zlib.crc32(kind + data)))

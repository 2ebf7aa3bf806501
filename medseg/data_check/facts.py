"""What is kept of an image and its mask once they were read: kilobytes, whatever their size."""

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np

from ..data import Sample
from ..data.load import read_pair

SIDE = 32  # of the thumbnail that near copies are found by
_MOST = 1024  # mask values kept; a mask has a few, a photograph thousands
_FLAT = 1e-3  # standard deviation, of the full range, below which there is nothing to compare


@dataclass(frozen=True)
class Facts:
    """One pair."""

    sample: Sample
    height: int
    width: int
    channels: int  # 1 or 3
    bits: int  # 8 or 16
    low: int  # the least and the greatest value of a channel
    high: int
    counts: dict[int, int]  # mask value -> pixels
    digest: bytes  # of the image's pixels: equal where every pixel is
    mask_digest: bytes
    thumb: np.ndarray  # (SIDE, SIDE) float16, gray, mean 0, length 1; zeros where it is flat

    @property
    def name(self) -> str:
        """The image's file name."""
        return self.sample.image.name


def facts_of(sample: Sample) -> Facts:
    """Reads a pair.

    Raises:
        UserError: a file cannot be used.
    """
    image, mask = read_pair(sample)
    values, counts = np.unique(mask, return_counts=True)
    return Facts(
        sample,
        *image.shape,
        bits=8 * image.dtype.itemsize,
        low=int(image.min()),
        high=int(image.max()),
        counts=dict(zip(values[:_MOST].tolist(), counts[:_MOST].tolist(), strict=True)),
        digest=_digest(image),
        mask_digest=_digest(mask),
        thumb=_thumb(image),
    )


def _digest(pixels: np.ndarray) -> bytes:
    head = f"{pixels.shape}{pixels.dtype}".encode()
    return hashlib.blake2b(head + pixels.tobytes(), digest_size=16).digest()


def _thumb(image: np.ndarray) -> np.ndarray:
    """Only shape is left: brightness, contrast, size and file format no longer matter."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    gray = small.reshape(SIDE, SIDE, -1).mean(2, dtype=np.float32) / np.iinfo(image.dtype).max
    gray -= gray.mean()
    if gray.std() < _FLAT:
        return np.zeros((SIDE, SIDE), np.float16)
    return (gray / np.linalg.norm(gray)).astype(np.float16)

"""The square a network sees and the way back: one definition, used in both directions.

An image is scaled by one factor until its longer side is ``size`` and centred; the rest of the
square is filled with the reflected image, and with ``IGNORE`` in the mask, so that no invented
pixel is learned from or scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import IGNORE


@dataclass(frozen=True)
class Letterbox:
    """Where the image lies in the square."""

    top: int
    left: int
    height: int
    width: int


def letterbox(height: int, width: int, size: int) -> Letterbox:
    """Places an image of (height, width) in a square of ``size``, aspect ratio kept, centred."""
    longer = max(height, width)
    new_height = max(1, round(height * size / longer))
    new_width = max(1, round(width * size / longer))
    return Letterbox((size - new_height) // 2, (size - new_width) // 2, new_height, new_width)


def fit_image(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, C) -> (size, size, C): scaled as by ``scale_image``, reflected around itself."""
    box = letterbox(image.shape[0], image.shape[1], size)
    scaled = scale_image(image, box.height, box.width)
    square = cv2.copyMakeBorder(scaled, *_margins(box, size), cv2.BORDER_REFLECT)
    return square.reshape(size, size, image.shape[2])


def scale_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, C) -> (height, width, C): area average where it shrinks, bilinear where it grows."""
    shrinks = height < image.shape[0] or width < image.shape[1]
    scaled = _resize(image, height, width, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return scaled.reshape(height, width, image.shape[2])


def scale_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) -> (height, width): the nearest pixel, so that no class is made up."""
    return _resize(mask, height, width, cv2.INTER_NEAREST_EXACT)


def pad_image(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, C), H and W up to ``size`` -> (size, size, C): reflected around itself, centred."""
    down, right = size - image.shape[0], size - image.shape[1]
    if down or right:
        edges = (down // 2, down - down // 2, right // 2, right - right // 2)
        image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_REFLECT)
    return image.reshape(size, size, -1)


def to_planes(pixels: np.ndarray) -> Tensor:
    """(H, W, C) uint8 or uint16 -> float32 (C, H, W) in 0..1, what a network is given."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return torch.from_numpy(np.divide(planes, np.iinfo(pixels.dtype).max, dtype=np.float32))


def fit_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """(H, W) class indices -> (size, size) int16: nearest, ``IGNORE`` beside the image."""
    box = letterbox(mask.shape[0], mask.shape[1], size)
    scaled = scale_mask(mask.astype(np.int16), box.height, box.width)
    return cv2.copyMakeBorder(scaled, *_margins(box, size), cv2.BORDER_CONSTANT, value=(IGNORE,))


def to_original(logits: Tensor, height: int, width: int) -> Tensor:
    """Class probabilities at the resolution of the file: the way back from ``SegmentationSet``.

    The softmax is taken in the square, cut to the image, and scaled back bilinearly; `to_labels`
    gives the classes.

    Args:
        logits: output of the network, (K, size, size) for one image or (N, K, size, size) for
            several of one size, K >= 2.
        height, width: of the image's file.

    Returns:
        float32 (K, height, width) or (N, K, height, width), summing to one over K.

    Raises:
        ValueError: ``logits`` has another shape.
    """
    if logits.ndim not in (3, 4) or logits.shape[-2] != logits.shape[-1]:
        raise ValueError(
            f"logits must be (K, size, size) or (N, K, size, size), got {tuple(logits.shape)}"
        )
    box = letterbox(height, width, logits.shape[-1])
    cut = logits[..., box.top : box.top + box.height, box.left : box.left + box.width]
    probabilities = torch.softmax(cut.float(), -3)
    if (box.height, box.width) == (height, width):
        return probabilities
    several = probabilities if logits.ndim == 4 else probabilities[None]
    scaled = F.interpolate(several, (height, width), mode="bilinear", align_corners=False)
    return scaled if logits.ndim == 4 else scaled[0]


def to_labels(probabilities: Tensor) -> np.ndarray:
    """The most probable class of every pixel.

    Args:
        probabilities: float32 (K, H, W), or (N, K, H, W) for several images.

    Returns:
        (H, W) or (N, H, W) uint8; of equal classes the first.
    """
    if probabilities.device.type != "cpu":
        return probabilities.max(-3).indices.to(torch.uint8).cpu().numpy()
    first, *others = np.moveaxis(probabilities.numpy(), -3, 0)
    best, labels = first, np.zeros(first.shape, np.uint8)
    for label, plane in enumerate(others, 1):  # a fifth of the time of PyTorch's one call
        np.maximum(labels, (plane > best).view(np.uint8) * np.uint8(label), out=labels)
        best = np.maximum(best, plane)
    return labels


def _resize(pixels: np.ndarray, height: int, width: int, method: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    return cv2.resize(pixels, (width, height), interpolation=method)


def _margins(box: Letterbox, size: int) -> tuple[int, int, int, int]:
    """top, bottom, left, right"""
    return box.top, size - box.height - box.top, box.left, size - box.width - box.left

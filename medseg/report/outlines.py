"""An image with the outlines of mask and prediction, as one SVG that needs no other file."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from markupsafe import Markup

_FINE = 4  # outlines are traced on labels enlarged so many times, along pixel borders


@dataclass(frozen=True)
class Picture:
    """One image of the page."""

    name: str
    pixels: np.ndarray  # (H, W, C) uint8 or uint16
    mask: np.ndarray  # (H, W) classes
    predicted: np.ndarray  # (H, W) classes
    dice: Sequence[float | None]  # of class 1, 2, ...

    @property
    def mean(self) -> float:
        """Mean Dice of the classes that count."""
        return mean_of(self.dice)

    def svg(self) -> Markup:
        """Returns the picture, its outlines drawn in two ways of which the page shows one.

        Paths have the classes `tp`, `fp` and `fn` (of all classes together; a pixel of a wrong
        class is missed and false), and `mask` or `pred` with `c1`, `c2`, ...
        """
        known, found = self.mask >= 0, self.predicted > 0
        right, there = self.mask == self.predicted, self.mask > 0
        errors = {"tp": right & there, "fp": known & found & ~right, "fn": there & ~right}
        layers = {f"{kind} e": region for kind, region in errors.items()}
        for kind, labels in (("mask", self.mask), ("pred", self.predicted)):
            layers |= {f"{kind} k c{k}": labels == k for k in range(1, len(self.dice) + 1)}
        return outlined(self.pixels, layers)


def outlined(
    pixels: np.ndarray, layers: Mapping[str, np.ndarray], longest: int = 480, quality: int = 88
) -> Markup:
    """Draws regions as outlines on an image, in one SVG.

    Args:
        pixels: (H, W, C) uint8 or uint16.
        layers: class of the path -> region (H, W) bool; empty ones are left out.
        longest: pixels of the embedded image's longer side.
        quality: of its JPEG, to 100.
    """
    height, width = pixels.shape[:2]
    paths = [
        f'<path class="{kind}" d="{_trace(region)}"/>'
        for kind, region in layers.items()
        if region.any()
    ]
    shown = _data_uri(pixels, longest, quality)
    image = f'<image width="{width}" height="{height}" href="{shown}"/>'
    box = f'viewBox="0 0 {width} {height}" role="img" preserveAspectRatio="xMidYMid meet"'
    return Markup(f"<svg {box}>{image}{''.join(paths)}</svg>")


def mean_of(dice: Sequence[float | None]) -> float:
    """Mean of the values that are there; NaN of none."""
    known = [value for value in dice if value is not None]
    return sum(known) / len(known) if known else math.nan


def best_and_worst(
    rows: Sequence[Sequence[float | None]], best: int = 4, worst: int = 12
) -> tuple[list[int], list[int]]:
    """Returns the places of the best rows, best first, and of the worst, worst first.

    No row is in both; a small set is halved.
    """
    means = [(mean_of(row), place) for place, row in enumerate(rows)]
    order = [place for mean, place in sorted(means) if not math.isnan(mean)]
    last = order[: min(worst, (len(order) + 1) // 2)]
    return [place for place in reversed(order) if place not in last][:best], last


def _trace(region: np.ndarray) -> str:
    """SVG path data around a region, in pixels of the image."""
    step = max(1, min(_FINE, 2048 // max(region.shape)))
    large = np.kron(region.astype(np.uint8), np.ones((step, step), np.uint8))
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 0.3 * step, True)[:, 0]
        if len(points) < 3:
            continue
        places = " ".join(f"{(x + 0.5) / step:.4g},{(y + 0.5) / step:.4g}" for x, y in points)
        parts.append(f"M{places}Z")
    return "".join(parts)


def _data_uri(pixels: np.ndarray, longest: int, quality: int) -> str:
    """The image as 8-bit JPEG, that many pixels long, enlarged if small."""
    shown = _to_bytes(pixels)
    factor = longest / max(shown.shape[:2])
    size = (max(1, round(shown.shape[1] * factor)), max(1, round(shown.shape[0] * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    shown = cv2.resize(shown, size, interpolation=method)
    if shown.ndim == 3:
        shown = cv2.cvtColor(shown, cv2.COLOR_RGB2BGR)
    _, coded = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(coded.tobytes()).decode("ascii")


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8:  # 16 bits seldom fill their range
        low, high = np.percentile(pixels, (0.5, 99.5))
        scaled = (pixels.astype(np.float32) - low) / max(float(high - low), 1.0)
        pixels = (scaled.clip(0, 1) * 255).astype(np.uint8)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[:, :, :3])

"""An image as a screen shows it."""

import numpy as np

from ..inference.tiles import Rows

_SAMPLES = 8  # places where a 16-bit image is looked at for its range
_HIGH = 16  # rows at each


class Shown:
    """Rows of an image as 8-bit RGB.

    Args:
        image: of 8 bits, which stay as they are, or 16, of which the range between the 0.5th and
            the 99.5th percentile is shown, since they seldom fill theirs.
    """

    def __init__(self, image: Rows) -> None:
        self._image = image
        self._range: tuple[float, float] | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1, (n, width, 3) uint8."""
        pixels = self._image.rows(start, stop)
        if pixels.dtype != np.uint8:
            if self._range is None:
                self._range = self._percentiles()
            low, high = self._range
            scaled = (pixels.astype(np.float32) - low) * (255 / max(high - low, 1.0))
            pixels = scaled.clip(0, 255).astype(np.uint8)
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def _percentiles(self) -> tuple[float, float]:
        height = self._image.height
        tops = sorted({max(0, round(t)) for t in np.linspace(0, height - _HIGH, _SAMPLES)})
        seen = [self._image.rows(top, min(top + _HIGH, height)).ravel() for top in tops]
        low, high = np.percentile(np.concatenate(seen), (0.5, 99.5))
        return float(low), float(high)

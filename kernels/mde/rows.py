"""The bank as the GPU kernels take it: one short row a scale, applied along both axes."""

import functools
from typing import NamedTuple

from .bank import quadrants

FAINT = 2.0**-40  # of the centre: what an outermost weight counts as if it is less


class Rows(NamedTuple):
    """Masks norm * row x row, one for every radius from 1 to ``radius``.

    A radius that is no scale has norm 0. ``row`` holds four values a radius, from the centre, in
    units of the outermost: a multiplication less, and whole numbers for binomial, opencv and box.
    """

    radius: int
    cross: bool  # five cells instead of nine
    norm: tuple[float, ...]
    row: tuple[float, ...]
    radii: tuple[int, ...]  # of each scale


@functools.cache
def rows_of(scales: tuple[int, ...], bank: str) -> Rows:
    """The rows of masks up to 7 wide."""
    radii = tuple(k // 2 for k in scales)
    norm, row = [0.0] * max(radii), [1.0] * (4 * max(radii))
    for r, mask in zip(radii, quadrants(scales, bank)[1:], strict=True):
        unit = max(mask[0][r], FAINT * mask[0][0])
        outermost = mask[r][r] if unit == mask[0][r] else unit**2 / mask[0][0]
        norm[r - 1] = mask[0][0] if bank == "cross" else outermost
        row[4 * r - 4 : 4 * r] = [w / unit for w in (*mask[0][:r], unit, 0.0, 0.0)[:4]]
    return Rows(max(radii), bank == "cross", tuple(norm), tuple(row), radii)

"""Regions of one class as polygons along the borders of their pixels, found slab by slab."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

_STEP = 1 << 21  # pixels that are gathered before regions are looked for
_MOST = 1 << 24  # pixels that are kept for regions that go on below


class Polygon(NamedTuple):
    """A region of 8-connected pixels; corners are (x, y), whole numbers at pixel borders."""

    label: int
    outer: np.ndarray  # (n, 2) int
    holes: list[np.ndarray]


class Tracer:
    """Finds the polygons of labels that come in rows.

    A region is given out when a row without it has come. One that is larger than ``_MOST`` pixels
    with all that lies beside it is cut there, so that memory stays bounded.
    """

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._top = 0  # of the kept rows, in the image
        self._kept = 0  # pixels of regions that go on, and beside them
        self._pixels = 0

    def add(self, labels: np.ndarray) -> Iterator[Polygon]:
        """Adds rows (n, width) of class indices; 0 is no region."""
        self._rows.append(labels)
        self._pixels += labels.size
        if self._pixels >= max(_STEP, 2 * self._kept):
            yield from self._look(cut=self._pixels >= _MOST)

    def finish(self) -> Iterator[Polygon]:
        """The regions that reach the last row."""
        if self._rows:
            yield from self._look(cut=True)

    def _look(self, cut: bool) -> Iterator[Polygon]:
        labels = np.concatenate(self._rows)
        above, first = np.zeros_like(labels), len(labels)
        for label in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist():
            if label == 0:
                continue
            region = labels == label
            if not cut and region[-1].any():
                open_, top = _reaching_down(region)
                above[open_] = label
                first = min(first, top)
                region &= ~open_
            for outer, holes in outlines(region):
                offset = np.array((0, self._top))
                yield Polygon(label, outer + offset, [hole + offset for hole in holes])
        kept = above[first:]
        self._top += first
        self._rows = [kept] if len(kept) else []
        self._kept = self._pixels = kept.size


def outlines(region: np.ndarray) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Outer border and holes of each 8-connected part of a region, bool (H, W).

    On a grid of twice the resolution, whose even places are pixel borders, OpenCV's contours run
    along these once each pixel has grown by one; they cut inner corners, which are put back.
    """
    grid = np.zeros((2 * region.shape[0] + 1, 2 * region.shape[1] + 1), np.uint8)
    grid[1::2, 1::2] = region
    fine: Any = cv2.dilate(grid, np.ones((3, 3), np.uint8))
    found: Any = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours, tree = found
    if tree is None:
        return
    for number, (_, _, child, parent) in enumerate(tree[0]):
        if parent >= 0:
            continue
        holes = []
        while child >= 0:
            holes.append(_corners(contours[child][:, 0], fine))
            child = tree[0][child][0]
        yield _corners(contours[number][:, 0], fine), holes


def _corners(points: Any, fine: Any) -> np.ndarray:
    """Corners of a contour (n, 2) of the fine grid, in pixels of the image."""
    ahead = np.roll(points, -1, 0)
    step = ahead - points
    slanted: Any = np.flatnonzero((step != 0).all(1))
    beside = points[slanted] + step[slanted] * (1, 0)  # or the other corner of that square
    outside = fine[beside[:, 1], beside[:, 0]] == 0
    beside[outside] = points[slanted[outside]] + step[slanted[outside]] * (0, 1)
    points = np.insert(points, slanted + 1, beside, 0)
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turns = (before != after).any(1)
    return points[turns] // 2


def _reaching_down(region: np.ndarray) -> tuple[np.ndarray, int]:
    """The parts of a region that reach its last row, and the row where the first begins."""
    found: Any = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    _, parts, facts, _ = found
    reach = np.zeros(len(facts), bool)
    reach[np.unique(parts[-1])] = True
    reach[0] = False
    return reach[parts], int(facts[reach, cv2.CC_STAT_TOP].min())

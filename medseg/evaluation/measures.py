"""The figures of one class in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..losses import IGNORE

MEASURES = ("dice", "iou", "precision", "recall", "hd95", "nsd")
DEFINITION = (
    "Every image and foreground class has six figures, of prediction P and mask T at the original "
    "resolution: Dice = 2 |P and T| / (|P| + |T|); IoU = |P and T| / |P or T|; precision = |P and "
    "T| / |P|; recall = |P and T| / |T|; HD95, the larger of the two 95th percentiles of the "
    "distances from the boundary pixels of one to the nearest boundary pixel of the other; NSD, "
    "the part of all boundary pixels of both that lie within the tolerance of the other's. Where "
    "the class is in one of them only, HD95 is the diagonal of the image and the others are 0; "
    "where it is in neither, the figures are left out and counted. Pixels that nobody knows are in "
    "neither. A mean is taken over all values that were not left out, over all foreground classes "
    "or over one; its interval is the 95 % percentile bootstrap of 2000 draws of whole images, or "
    "of whole clusters of images where they are known. Figures of the data set are those of all "
    "images taken as one."
)
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


@dataclass(frozen=True)
class Measures:
    """One class in one image; the ratios and distances are None where it is in neither."""

    both: int  # pixels in prediction and mask
    predicted: int
    true: int
    hd95: float | None
    nsd: float | None

    @property
    def dice(self) -> float | None:
        """2 |P and T| / (|P| + |T|)"""
        return self._ratio(2 * self.both, self.predicted + self.true)

    @property
    def iou(self) -> float | None:
        """|P and T| / |P or T|"""
        return self._ratio(self.both, self.predicted + self.true - self.both)

    @property
    def precision(self) -> float | None:
        """|P and T| / |P|; 0 where only the mask has the class."""
        return self._ratio(self.both, self.predicted)

    @property
    def recall(self) -> float | None:
        """|P and T| / |T|; 0 where only the prediction has the class."""
        return self._ratio(self.both, self.true)

    def values(self) -> list[float | None]:
        """The figures in the order of ``MEASURES``."""
        return [getattr(self, name) for name in MEASURES]

    def _ratio(self, part: int, whole: int) -> float | None:
        if not self.predicted and not self.true:
            return None
        return part / whole if whole else 0.0


def measure(
    pred: np.ndarray,
    target: np.ndarray,
    classes: int,
    tolerance: float = 2.0,
    spacing: float = 1.0,
) -> list[Measures]:
    """Measures class 1, 2, ..., classes - 1 of one image.

    Args:
        pred: predicted class indices, (H, W).
        target: true class indices, (H, W); pixels of ``IGNORE`` are left out.
        classes: K, background included.
        tolerance: of the NSD, in units of ``spacing``.
        spacing: side of a pixel.

    Raises:
        ValueError: the shapes differ.
    """
    if pred.shape != target.shape or pred.ndim != 2:
        raise ValueError(f"pred {pred.shape} and target {target.shape} must be the same (H, W)")
    known = target != IGNORE
    diagonal = float(np.hypot(*pred.shape)) * spacing
    return [
        _measure(known & (pred == k), target == k, tolerance, spacing, diagonal)
        for k in range(1, classes)
    ]


def _measure(
    pred: np.ndarray, target: np.ndarray, tolerance: float, spacing: float, diagonal: float
) -> Measures:
    both, predicted, true = (int(np.count_nonzero(r)) for r in (pred & target, pred, target))
    if not predicted and not true:
        return Measures(0, 0, 0, None, None)
    if not predicted or not true:
        return Measures(both, predicted, true, diagonal, 0.0)
    there, back = surface_distances(pred, target)
    hd95 = max(float(np.percentile(distances, 95)) for distances in (there, back)) * spacing
    near = sum(np.count_nonzero(each * spacing <= tolerance) for each in (there, back))
    return Measures(both, predicted, true, hd95, near / (len(there) + len(back)))


def surface_distances(pred: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances, in pixels, from each boundary pixel of one region to the other's boundary.

    A boundary pixel has one of its four neighbours outside of the region or of the image.

    Args:
        pred, target: bool (H, W), neither empty.

    Returns:
        Those of ``pred`` to ``target``, and those back.
    """
    box = _bounds(pred | target)
    edges = [_boundary(region[box]) for region in (pred, target)]
    fields = [
        cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for edge in edges
    ]
    return fields[1][edges[0]], fields[0][edges[1]]


def _bounds(region: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold anything: what lies beside changes no distance."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _boundary(region: np.ndarray) -> np.ndarray:
    inner = cv2.erode(
        region.astype(np.uint8), _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=(0,)
    )
    return region & (inner == 0)


def pooled(rows: Sequence[Sequence[Measures]]) -> list[dict[str, float | None]]:
    """Dice, IoU, precision and recall of each class in all images taken as one.

    Args:
        rows: the measures of class 1, 2, ... of each image.
    """
    found = []
    for column in zip(*rows, strict=True):
        whole = Measures(
            sum(m.both for m in column),
            sum(m.predicted for m in column),
            sum(m.true for m in column),
            None,
            None,
        )
        found.append({name: getattr(whole, name) for name in MEASURES[:4]})
    return found

"""The metrics of the published programs, as they compute them, to be held against their tables.

None is a better Dice or IoU than ours, and most are not comparable with it: each says what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..losses import IGNORE

Figures = dict[str, float]
_EPS = 1e-5  # of DRA-Net's program


@dataclass(frozen=True)
class Style:
    """How one program scores.

    Args:
        source: the program, and what its figures are.
        score: (prediction, mask, classes) of one image -> its figures, labels as integers.
        spread: also give the standard deviation over images, as the program does.
    """

    source: str
    score: Callable[[np.ndarray, np.ndarray, int], Figures]
    spread: bool = False

    def figures(self, images: list[Figures]) -> Figures:
        """Means over images, NaN where one has NaN, as in the programs."""
        means = {name: float(np.mean([image[name] for image in images])) for name in images[0]}
        if not self.spread:
            return means
        stds = {name: float(np.std([image[name] for image in images])) for name in images[0]}
        return means | {f"{name}_std": value for name, value in stds.items()}


@dataclass(frozen=True)
class SummedStyle(Style):
    """A program that adds areas over the data set before it divides."""

    def figures(self, images: list[Figures]) -> Figures:
        """IoU of each class from the summed areas, their mean, and the accuracy of pixels."""
        total = {name: sum(image.get(name, 0) for image in images) for name in images[0]}
        classes = sum(name.startswith("both") for name in total)
        found: Figures = {}
        for k in range(classes):
            either = total[f"either{k}"]
            found[f"iou_{k}"] = total[f"both{k}"] / either if either else float("nan")
        mean = float(np.nanmean(list(found.values())))
        pixels = total["pixels"]
        right = sum(total[f"both{k}"] for k in range(classes))
        return {"miou": mean, "pixel_accuracy": 100 * right / pixels} | found


def _dra_net(pred: np.ndarray, target: np.ndarray, classes: int) -> Figures:
    label = target.max(initial=0)
    p, t = (pred == label, target == label) if label else (target < 0, target < 0)
    both, predicted, true = (float(np.count_nonzero(each)) for each in (p & t, p, t))
    precision, recall = both / (predicted + _EPS), both / (true + _EPS)
    shared = float(np.bitwise_and(pred, target).sum())
    return {
        "iou": (both + _EPS) / (predicted + true - both + _EPS),
        "f1": 2 * precision * recall / (precision + recall + _EPS),
        "dice": (2 * shared + _EPS) / (float(pred.sum()) + float(target.sum()) + _EPS),
    }


def _dpsau2_net(pred: np.ndarray, target: np.ndarray, classes: int) -> Figures:
    both, predicted, true = _foreground(pred, target)
    return {
        "iou": (both + 1) / (predicted + true - both + 1),
        "dice": (2 * both + 1) / (predicted + true + 1),
    }


def _drrmsan(pred: np.ndarray, target: np.ndarray, classes: int) -> Figures:
    both, predicted, true = _foreground(pred, target)
    if not predicted and not true:
        return {"jaccard": float("nan"), "dice": float("nan")}
    return {
        "jaccard": both / (predicted + true - both),
        "dice": 2 * both / (predicted + true),
    }


def _hpddrnet(pred: np.ndarray, target: np.ndarray, classes: int) -> Figures:
    known = target != IGNORE
    found: Figures = {"pixels": float(np.count_nonzero(known))}
    for k in range(classes):
        p, t = known & (pred == k), target == k
        found[f"both{k}"] = float(np.count_nonzero(p & t))
        found[f"either{k}"] = float(np.count_nonzero(p | t))
    return found


def _foreground(pred: np.ndarray, target: np.ndarray) -> tuple[int, int, int]:
    p, t = pred > 0, target > 0
    return int(np.count_nonzero(p & t)), int(np.count_nonzero(p)), int(np.count_nonzero(t))


STYLES = {
    "dra_net": Style(
        "test script of W-JFenf/DRA-Net: IoU and F1 of each image's largest mask label alone, "
        "smoothed by 1e-5; `dice` takes the bitwise and of class numbers, which is the Dice "
        "coefficient for labels 0 and 1 only; means over images",
        _dra_net,
    ),
    "dpsau2_net": Style(
        "evaluation script of WKSalt/DPSAU2-Net: IoU and Dice of the foreground of each image, "
        "smoothed by 1; means and standard deviations over images; all classes but the background "
        "taken as one, since the program knows two",
        _dpsau2_net,
        spread=True,
    ),
    "drrmsan": Style(
        "evaluation of Jimut123/drrmsan_tests: Jaccard and Dice of the foreground of each image, "
        "not smoothed, NaN where mask and prediction are empty; means over images; all classes "
        "but the background taken as one, since the program knows two",
        _drrmsan,
    ),
    "hpddrnet": SummedStyle(
        "mmsegmentation, as fanjuchen/HPDDRNet runs it: intersections and unions added over the "
        "data set, IoU of every class with the background, their mean, and the share of right "
        "pixels in per cent; unknown pixels left out",
        _hpddrnet,
    ),
}


@dataclass
class StyledScores:
    """Collects the figures of one program over images.

    Args:
        name: one of ``STYLES``.
        classes: K, background included.
    """

    name: str
    classes: int
    images: list[Figures] = field(default_factory=list)

    def add(self, pred: np.ndarray, target: np.ndarray) -> None:
        """Scores one image.

        Args:
            pred: class indices (H, W).
            target: the same, or ``IGNORE``, which only the program that knows it leaves out; for
                the others such a pixel is background in both.
        """
        pred, target = pred.astype(np.int64), target.astype(np.int64)
        if self.name != "hpddrnet":
            unknown = target == IGNORE
            pred, target = np.where(unknown, 0, pred), np.where(unknown, 0, target)
        self.images.append(STYLES[self.name].score(pred, target, self.classes))

    def figures(self) -> Figures:
        """The figures of all images."""
        return STYLES[self.name].figures(self.images)

    @property
    def source(self) -> str:
        """The program, and what its figures are."""
        return STYLES[self.name].source

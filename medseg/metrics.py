"""The score of a segmentation: one definition, used in training, evaluation and every report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from .losses import IGNORE

DEFINITION = (
    "Dice = 2 |P and T| / (|P| + |T|) and IoU = |P and T| / |P or T| are taken for every image and "
    "every foreground class (the background is never scored), on the labels at the original "
    "resolution of the image. Where a class is in neither prediction P nor mask T, the value is "
    "left out and counted; where it is in one of them only, the value is 0. The mean foreground "
    "Dice is the plain mean over all values of all images and classes that were not left out; the "
    "mean of a class is taken over its own values. The interval is the 95 % percentile bootstrap "
    "of 2000 draws of whole images."
)
RESAMPLES = 2000

Number = TypeVar("Number", float, np.ndarray)


@dataclass(frozen=True)
class Summary:
    """The scores of a set, as ``DEFINITION`` says. A mean of nothing is NaN."""

    dice: float  # mean foreground Dice
    low: float  # its 95 % interval
    high: float
    iou: float  # mean foreground IoU
    class_dice: tuple[float, ...]  # of class 1, 2, ...
    class_iou: tuple[float, ...]
    left_out: tuple[int, ...]  # values left out, of class 1, 2, ...
    images: int


def image_scores(
    pred: np.ndarray | Tensor, target: np.ndarray | Tensor, classes: int
) -> list[float | None]:
    """Dice of class 1, 2, ..., classes - 1 in one image; None where the class is in neither.

    Args:
        pred: predicted class indices, (H, W).
        target: true class indices, (H, W); pixels of ``IGNORE`` are left out.
        classes: K, background included.

    Raises:
        ValueError: the shapes differ, or a label is outside 0 .. K - 1.
    """
    counts = confusion(pred, target, classes)
    both = np.diagonal(counts)
    total = counts.sum(0) + counts.sum(1)
    return [float(2 * both[k] / total[k]) if total[k] else None for k in range(1, classes)]


def confusion(pred: np.ndarray | Tensor, target: np.ndarray | Tensor, classes: int) -> np.ndarray:
    """Pixels by true class (row) and predicted class (column), int64 (K, K).

    Arguments and errors are those of ``image_scores``.
    """
    pred_labels, target_labels = (
        _labels(pred, classes, "pred"),
        _labels(target, classes, "target", IGNORE),
    )
    if pred_labels.shape != target_labels.shape:
        raise ValueError(
            f"pred is {pred_labels.shape}, target is {target_labels.shape}: not the same"
        )
    known = target_labels != IGNORE
    pairs = target_labels[known] * classes + pred_labels[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def iou_from_dice(dice: Number) -> Number:
    """IoU of the same two regions: D / (2 - D)."""
    return dice / (2 - dice)


def summarise(rows: Sequence[Sequence[float | None]], seed: int = 0) -> Summary:
    """The means, and their interval, of the ``image_scores`` of all images.

    Args:
        rows: one list per image; None is left out.
        seed: of the bootstrap.

    Raises:
        ValueError: there are no rows, or they differ in length.
    """
    if not rows or len({len(row) for row in rows}) != 1:
        raise ValueError("rows must hold one list of equal length per image, at least one")
    dice = np.array(
        [[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64
    )
    iou = iou_from_dice(dice)
    low, high = _bootstrap(dice, seed)
    return Summary(
        dice=_mean(dice),
        low=low,
        high=high,
        iou=_mean(iou),
        class_dice=tuple(_mean(column) for column in dice.T),
        class_iou=tuple(_mean(column) for column in iou.T),
        left_out=tuple(np.isnan(dice).sum(0).tolist()),
        images=len(rows),
    )


def _labels(values: np.ndarray | Tensor, classes: int, name: str, least: int = 0) -> np.ndarray:
    labels = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if labels.size and not (labels.min() >= least and labels.max() < classes):
        raise ValueError(
            f"{name} must hold labels {least} to {classes - 1}, "
            f"got {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of (images, classes) values, images redrawn."""
    sums, counts = np.nansum(values, axis=1), (~np.isnan(values)).sum(axis=1)
    draw, images = np.random.default_rng(seed), len(values)
    means = np.empty(RESAMPLES)
    for step in range(RESAMPLES):
        chosen = draw.integers(images, size=images)
        count = counts[chosen].sum()
        means[step] = sums[chosen].sum() / count if count else np.nan
    means = means[~np.isnan(means)]
    if not means.size:
        return float("nan"), float("nan")
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)

"""Means of scores that may be left out, their intervals, and what two networks differ by.

Values are arrays (images, columns) with NaN where a value was left out. What is redrawn are whole
clusters: images that belong together, such as those of a patient, or each image for itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics import RESAMPLES

_SWAPS = 10_000


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval; NaN of nothing."""

    mean: float
    low: float
    high: float
    values: int
    left_out: int


@dataclass(frozen=True)
class Difference:
    """The mean of A less that of B, on the same images."""

    mean: float
    low: float  # its 95 % interval
    high: float
    p: float  # of a difference at least as large, were A and B exchangeable in every cluster
    better: int  # images whose own mean is larger in A
    worse: int


def intervals(
    groups: Sequence[np.ndarray], clusters: Sequence[str] | None = None, seed: int = 0
) -> list[Mean]:
    """The mean of each group of values, and the interval of all from the same draws.

    Args:
        groups: arrays (images, columns), all with the same images.
        clusters: of each image; None draws images.
        seed: of the draws.
    """
    sums, counts = _totals(groups, clusters)
    means = _bootstrap(sums, counts, seed)
    whole = _divide(sums.sum(0), counts.sum(0))
    found = []
    for number, values in enumerate(groups):
        low, high = _percentiles(means[:, number])
        known = int(np.count_nonzero(~np.isnan(values)))
        found.append(Mean(float(whole[number]), low, high, known, values.size - known))
    return found


def differences(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    clusters: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Difference]:
    """What A's means exceed B's by, paired by image.

    The interval is that of a bootstrap which draws the same clusters for both; the p-value that of
    10 000 random exchanges of A and B in whole clusters, two-sided.

    Args:
        first, second: the groups of A and of B: arrays (images, columns), images in one order.
        clusters: of each image; None takes each image for itself.
        seed: of the draws.
    """
    a, b = _totals(first, clusters), _totals(second, clusters)
    drawn = _bootstrap(*a, seed) - _bootstrap(*b, seed)
    seen = _divide(a[0].sum(0), a[1].sum(0)) - _divide(b[0].sum(0), b[1].sum(0))
    beyond = np.zeros(len(first))
    draw = np.random.default_rng(seed)
    stacked = np.stack([np.stack(a), np.stack(b)])  # (2, sums | counts, clusters, groups)
    middle, half = stacked.mean(0).sum(1), (stacked[0] - stacked[1]) / 2
    for _ in range(_SWAPS):
        signs = draw.integers(2, size=half.shape[1]) * 2 - 1
        shift = np.tensordot(half, signs, axes=(1, 0))  # (sums | counts, groups)
        one, other = middle + shift, middle - shift
        swapped = _divide(one[0], one[1]) - _divide(other[0], other[1])
        beyond += np.abs(swapped) >= np.abs(seen) - 1e-12
    found = []
    for number, (left, right) in enumerate(zip(first, second, strict=True)):
        low, high = _percentiles(drawn[:, number])
        gap = _row_means(left) - _row_means(right)
        p = (beyond[number] + 1) / (_SWAPS + 1)
        found.append(
            Difference(
                float(seen[number]), low, high, p, int((gap > 0).sum()), int((gap < 0).sum())
            )
        )
    return found


def _totals(
    groups: Sequence[np.ndarray], clusters: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and numbers of the known values of each cluster, (clusters, groups)."""
    sums = np.stack([np.nansum(values, axis=1) for values in groups], 1)
    counts = np.stack([(~np.isnan(values)).sum(axis=1) for values in groups], 1).astype(float)
    if clusters is None:
        return sums, counts
    names, member = np.unique(np.array(clusters), return_inverse=True)
    joined = [np.zeros((len(names), sums.shape[1])) for _ in range(2)]
    for total, values in zip(joined, (sums, counts), strict=True):
        np.add.at(total, member, values)
    return joined[0], joined[1]


def _bootstrap(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """The means of RESAMPLES draws of clusters, (RESAMPLES, groups)."""
    draw, number = np.random.default_rng(seed), len(sums)
    means = np.empty((RESAMPLES, sums.shape[1]))
    for step in range(RESAMPLES):
        times = np.bincount(draw.integers(number, size=number), minlength=number)
        means[step] = _divide(times @ sums, times @ counts)
    return means


def _divide(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    known = means[~np.isnan(means)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def _row_means(values: np.ndarray) -> np.ndarray:
    return _divide(np.nansum(values, axis=1), (~np.isnan(values)).sum(axis=1))

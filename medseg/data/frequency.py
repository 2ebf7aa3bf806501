"""How often each class occurs, as weights for a loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .files import parallel, read_mask
from .table import Sample, Table


def median_frequency_weights(table: Table, samples: Sequence[Sample]) -> tuple[float, ...]:
    """w_k = median(f) / f_k, divided by the mean of all w, so that they are 1 on average.

    f_k is the number of pixels of class k over the number of known pixels of the images that have
    it; the median is that of the classes that occur, and one that does not occur has w_k = 1 before
    the division.

    Args:
        table: gives the classes.
        samples: the training part.

    Returns:
        K weights.

    Source: median frequency balancing of Eigen and Fergus, ICCV 2015, arXiv:1411.4734.
    """

    def count(sample: Sample) -> np.ndarray:
        mask = read_mask(sample.mask, table)
        return np.bincount(mask[mask >= 0], minlength=len(table.names))

    counts = np.stack(parallel(count, samples)).astype(np.float64)  # (images, K)
    here = counts > 0
    area = (counts.sum(1, keepdims=True) * here).sum(0)  # (K,)
    seen = area > 0
    frequency = counts.sum(0)[seen] / area[seen]
    weights = np.ones(len(seen))
    weights[seen] = np.median(frequency) / frequency
    return tuple((weights / weights.mean()).tolist())

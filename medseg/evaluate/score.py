"""Images predicted and measured."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np

from ..data import Sample, read_mask
from ..errors import UserError
from ..evaluation import ImageScore, StyledScores, measure
from ..inference import FileImage, Predictor, Slab
from .samples import Chosen


def score_images(
    predictor: Predictor,
    chosen: Chosen,
    tolerance: float,
    spacing: float,
    style: StyledScores | None = None,
) -> list[ImageScore]:
    """Scores each image at its own resolution, in the order of the table.

    Args:
        predictor: shows the images to the network.
        chosen: the images.
        tolerance, spacing: as `measure`'s.
        style: also collects the figures of a published program.

    Raises:
        UserError: a file cannot be used.
    """
    table, classes = chosen.table, len(chosen.table.names)
    scores = []
    for sample, labels in _predicted(predictor, chosen):
        mask = read_mask(sample.mask, table)
        if mask.shape != labels.shape:
            raise UserError(
                f"{sample.image} is {labels.shape[1]}x{labels.shape[0]} pixels, but its mask "
                f"{sample.mask} is {mask.shape[1]}x{mask.shape[0]}: make them the same size.",
                code=3,
            )
        measures = tuple(measure(labels, mask, classes, tolerance, spacing))
        name = sample.image.relative_to(_home(sample, chosen)).as_posix()
        scores.append(ImageScore(name, sample.group, sample.cluster, measures))
        if style is not None:
            style.add(labels, mask)
    return scores


def _predicted(predictor: Predictor, chosen: Chosen) -> Iterator[tuple[Sample, np.ndarray]]:
    """The samples with their labels (H, W)."""
    samples = chosen.table.samples
    images = (FileImage(sample.image, chosen.table.channels) for sample in samples)
    with closing(predictor.stream(images, _labels)) as found:
        for sample, (_, labels) in zip(samples, found, strict=True):
            yield sample, labels.result()


def _labels(image: FileImage, slabs: Iterator[Slab]) -> np.ndarray:
    return np.concatenate([slab.labels for slab in slabs])


def _home(sample: Sample, chosen: Chosen):
    root = chosen.table.root
    images = root / "images"
    return images if sample.image.is_relative_to(images) else root

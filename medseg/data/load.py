"""A folder of images and masks becomes a checked ``Table``, or one sentence says what to mend."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import UserError
from .classes import class_table
from .clusters import Clusters
from .files import (
    first_of,
    parallel,
    present_values,
    quote,
    read_image,
    read_mask_values,
)
from .rows import find_csv, pair_by_stem, read_rows, refuse_empty_part
from .splits import draw_folds, draw_split, refuse_divided
from .table import Sample, Table


def load_table(
    root: Path,
    csv: Path | None = None,
    classes: int | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    *,
    ignore: int | None = None,
    group_by: str | None = None,
    folds: int | None = None,
    fold: int = 0,
) -> Table:
    """Finds, pairs, splits and checks the files of ``root/images`` and ``root/masks``.

    Files are paired by stem, or by the rows of ``csv``, or of ``root/split.csv`` (columns image,
    mask, split, and group if known; names count from ``images`` and ``masks``, else from ``root``).
    Without a CSV, a hash of seed and stem draws ``val_fraction`` of the pairs for validation. Mask
    values become classes in ascending order: those of ``root/classes.json`` (value -> name), else
    those that occur; the lowest is the background. Every image and mask is read once, so that
    nothing is left to fail during training.

    The column group is a label, such as the cell type: scores are told by it and folds hold like
    parts of each. What belongs together, such as the images of a patient, is ``group_by``'s to say:
    no split and no fold divides it.

    Args:
        root: the data folder.
        csv: another CSV, from the working directory or from ``root``.
        classes: how many classes there must be, background included; None takes what is found.
        val_fraction: part for validation where no CSV says, between 0 and 1.
        seed: of that draw, and of the folds.
        ignore: mask value of pixels that nobody knows; it is no class.
        group_by: column of the CSV, or regular expression on file names (``Clusters``).
        folds: divide train and val anew into so many parts; None keeps the split.
        fold: which of them validates, from 0.

    Raises:
        UserError: anything in the folder that cannot be trained on; code 3, or 2 for a wrong flag.
    """
    root = Path(root)
    clusters = Clusters(group_by)
    table_file, samples = _pairs(root, csv, clusters)
    if folds is not None:
        samples = draw_folds(samples, folds, fold, seed)
    elif table_file is None:
        samples = draw_split(samples, val_fraction, seed)
    else:
        refuse_empty_part(table_file, samples)
        refuse_divided(table_file, samples)
    channels, found = _inspect(samples)
    found = [[value for value in values if value != ignore] for values in found]
    refuse_single_class(root, samples, found)
    values, names = class_table(root, samples, found, classes, ignore)
    refuse_blank_val(root, samples, found, values[0])
    return Table(root, tuple(samples), values, names, channels, ignore)


def _pairs(root: Path, csv: Path | None, clusters: Clusters) -> tuple[Path | None, list[Sample]]:
    """The table that pairs the files, if there is one, and the pairs."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"the data folder {root} {what}: name a folder with images/ and masks/.", 3)
    path = find_csv(root, csv)
    return path, pair_by_stem(root, clusters) if path is None else read_rows(root, path, clusters)


def _inspect(samples: list[Sample]) -> tuple[int, list[list[int]]]:
    """Reads every file; the channels of the set and the values of each mask."""

    def look(sample: Sample) -> tuple[int, list[int]] | UserError:
        try:
            image, mask = read_pair(sample)
        except UserError as error:
            return error
        return image.shape[2], present_values(mask)

    seen = parallel(look, samples)
    errors = [item for item in seen if isinstance(item, UserError)]
    if errors:
        sentence = str(errors[0]).removesuffix(".")
        raise UserError(f"{sentence}{first_of(len(errors))}.", code=3)
    good = [item for item in seen if not isinstance(item, UserError)]
    return max(channels for channels, _ in good), [values for _, values in good]


def read_pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, C) and mask values (H, W) as they are in the files.

    Raises:
        UserError: one cannot be used, or they differ in size.
    """
    image, mask = read_image(sample.image, upright=True), read_mask_values(sample.mask)
    if image.shape[:2] != mask.shape:
        raise UserError(
            f"{sample.image} is {image.shape[1]}x{image.shape[0]} pixels, but its mask "
            f"{sample.mask} is {mask.shape[1]}x{mask.shape[0]}: make them the same size.",
            code=3,
        )
    return image, mask


def refuse_single_class(root: Path, samples: list[Sample], found: list[list[int]]) -> None:
    """Refuses training masks of one value, ``found`` being those of each mask.

    Raises:
        UserError: they are such.
    """
    pairs = zip(samples, found, strict=True)
    values = sorted(_union(present for sample, present in pairs if sample.split == "train"))
    if len(values) < 2:
        raise UserError(
            f"every training mask in {root / 'masks'} holds {quote(values)} and nothing else: "
            "check that they are the right files, there is nothing to learn.",
            code=3,
        )


def refuse_blank_val(
    root: Path, samples: list[Sample], found: list[list[int]], background: int
) -> None:
    """Refuses val masks of background alone, ``found`` being the values of each mask.

    Raises:
        UserError: they are such.
    """
    pairs = zip(samples, found, strict=True)
    if not _union(present for sample, present in pairs if sample.split == "val") - {background}:
        raise UserError(
            f"every val mask in {root / 'masks'} holds background and nothing else: there is "
            "nothing to score; take other images as val in split.csv, or another --seed.",
            code=3,
        )


def _union(lists: Iterable[list[int]]) -> set[int]:
    return {value for values in lists for value in values}

"""The scores of a data set: a row for each image, means with intervals, the data set as one."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .intervals import Mean, differences, intervals
from .measures import MEASURES, Measures, pooled


@dataclass(frozen=True)
class ImageScore:
    """The figures of one image."""

    image: str
    group: str  # a label, such as the cell type
    cluster: str  # what it belongs to, such as a patient; "": it stands alone
    measures: tuple[Measures, ...]  # of class 1, 2, ...


@dataclass(frozen=True)
class Values:
    """What a comparison needs of a data set's scores.

    Args:
        images: their names, none twice.
        clusters: of each image, "" where it stands alone.
        names: of class 1, 2, ...
        values: (images, classes, MEASURES), NaN where a value was left out.
    """

    images: tuple[str, ...]
    clusters: tuple[str, ...]
    names: tuple[str, ...]
    values: np.ndarray


def class_columns(names: Sequence[str]) -> list[str]:
    """A word for the columns of each class in a CSV; no two are alike."""
    words: list[str] = []
    for k, name in enumerate(names, 1):
        word = re.sub(r"\W+", "_", name).strip("_")
        while word in words:
            word = f"{word}_{k}"
        words.append(word)
    return words


def values_of(scores: Sequence[ImageScore], names: Sequence[str]) -> Values:
    """The scores as arrays; ``names`` are those of class 1, 2, ..."""
    rows = [[m.values() for m in score.measures] for score in scores]
    values = np.array(rows, dtype=np.float64).reshape(len(scores), len(names), len(MEASURES))
    return Values(
        tuple(score.image for score in scores),
        tuple(score.cluster for score in scores),
        tuple(names),
        values,
    )


def table_rows(scores: Sequence[ImageScore], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of the table of images; an empty cell is a value left out."""
    words = class_columns(names)
    clusters = any(score.cluster for score in scores)
    return [
        {"image": score.image, "group": score.group}
        | ({"cluster": score.cluster} if clusters else {})
        | {
            f"{measure}_{word}": value
            for number, measure in enumerate(MEASURES)
            for word, value in zip(words, (m.values()[number] for m in score.measures), strict=True)
        }
        for score in scores
    ]


def read_table(path: Path) -> Values:
    """Reads such a table again.

    Raises:
        UserError: it is none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
        head = list(rows[0])
        words = [name[5:] for name in head if name.startswith("dice_")]
        values = np.array(
            [[[_cell(row[f"{m}_{word}"]) for m in MEASURES] for word in words] for row in rows]
        )
        images = tuple(row["image"] for row in rows)
        if not words or len(set(images)) != len(images):
            raise ValueError("no class, or an image is there twice")
    except (OSError, ValueError, KeyError, IndexError, TypeError, csv.Error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"--compare {path}: is no table of medseg evaluate ({reason}); name its evaluation.csv "
            "or a trained run.",
            code=3,
        ) from None
    return Values(images, tuple(row.get("cluster") or "" for row in rows), tuple(words), values)


def summarise_all(scores: Sequence[ImageScore], names: Sequence[str]) -> dict[str, Any]:
    """Means with intervals over all foreground classes, over each, and by group; and as one."""
    found = values_of(scores, names)
    clusters = _clusters(found.clusters)
    pools = pooled([score.measures for score in scores])
    document: dict[str, Any] = {
        "images": len(scores),
        "clusters": len(set(clusters)) if clusters else None,
        "mean": _by_measure(found.values, clusters),
        "classes": {
            name: _by_measure(found.values[:, k : k + 1], clusters) for k, name in enumerate(names)
        },
        "dataset": {
            "mean": {m: _mean_of([pool[m] for pool in pools]) for m in MEASURES[:4]},
            "classes": dict(zip(names, pools, strict=True)),
        },
    }
    groups = sorted({score.group for score in scores} - {""})
    if len(groups) > 1:
        document["groups"] = {
            group: _of_group(found, [score.group == group for score in scores]) for group in groups
        }
    return document


def compare(first: Values, second: Values) -> dict[str, Any]:
    """What the means of A exceed those of B by, on the images of both.

    Raises:
        UserError: they have no image in common, or other classes.
    """
    if first.names != second.names:
        raise UserError(
            f"--compare: the classes of A are {', '.join(first.names)}, those of B "
            f"{', '.join(second.names)}: compare networks of the same classes.",
            code=3,
        )
    shared = [image for image in first.images if image in set(second.images)]
    if not shared:
        raise UserError("--compare: A and B have no image in common; score the same data.", 3)
    places = [[values.images.index(image) for image in shared] for values in (first, second)]
    a, b = first.values[places[0]], second.values[places[1]]
    clusters = _clusters([first.clusters[place] for place in places[0]])
    count = len(MEASURES)
    groups = [[v[:, :, m] for m in range(count)] for v in (a, b)]
    if len(first.names) > 1:
        for k in range(len(first.names)):
            for v, group in zip((a, b), groups, strict=True):
                group.extend(v[:, k : k + 1, m] for m in range(count))
    found = [asdict(one) for one in differences(groups[0], groups[1], clusters)]
    blocks = [
        dict(zip(MEASURES, found[i : i + count], strict=True)) for i in range(0, len(found), count)
    ]
    classes = blocks[1:] or blocks
    return {
        "images": len(shared),
        "only_in_a": len(first.images) - len(shared),
        "only_in_b": len(second.images) - len(shared),
        "clusters": len(set(clusters)) if clusters else None,
        "mean": blocks[0],
        "classes": dict(zip(first.names, classes, strict=True)),
    }


def _cell(text: str | None) -> float:
    return float(text) if text else math.nan


def _clusters(clusters: Sequence[str]) -> list[str] | None:
    """Cluster of each image, itself where it stands alone; None where all do."""
    if not any(clusters):
        return None
    return [name or f"\0{number}" for number, name in enumerate(clusters)]


def _by_measure(values: np.ndarray, clusters: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    means = intervals([values[:, :, m] for m in range(len(MEASURES))], clusters)
    return {name: asdict(mean) for name, mean in zip(MEASURES, means, strict=True)}


def _of_group(found: Values, chosen: Sequence[bool]) -> dict[str, Any]:
    clusters = _clusters([c for c, here in zip(found.clusters, chosen, strict=True) if here])
    values = found.values[np.array(chosen)]
    mean: Mean = intervals([values[:, :, 0]], clusters)[0]
    return {"images": len(values), "dice": asdict(mean)}


def _mean_of(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan

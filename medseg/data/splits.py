"""Which samples train and which validate; those of one cluster are never divided."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from .table import Sample


def draw_split(samples: Sequence[Sample], val_fraction: float, seed: int) -> list[Sample]:
    """The clusters in order of a hash of (seed, name): the first ones that fit validate.

    Raises:
        UserError: there are fewer than two clusters.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    units = _units(samples, seed)
    if len(units) < 2:
        raise UserError(_too_few(samples, "add one at least, to validate on"), 3)
    count = min(max(1, round(len(samples) * val_fraction)), len(samples) - 1)
    chosen: list[int] = []
    for unit in units:
        if len(chosen) + len(unit) <= count:
            chosen += unit
    chosen = chosen or min(units, key=len)
    return _with_val(samples, set(chosen))


def draw_folds(samples: Sequence[Sample], folds: int, fold: int, seed: int) -> list[Sample]:
    """Divides train and val anew: one of ``folds`` parts validates, the others train.

    The parts depend on seed and names, not on ``fold``; every sample but those of the test part
    validates in exactly one. Clusters go, the largest first and those of one size in order of a
    hash of (seed, name), to the part that has least of their groups, then to the smallest.

    Args:
        samples: those of the test part stay there.
        folds: how many parts.
        fold: the one that validates, from 0.
        seed: of the hash.

    Raises:
        UserError: there are fewer clusters than parts.
    """
    free = [index for index, sample in enumerate(samples) if sample.split != "test"]
    units = [[free[place] for place in unit] for unit in _units([samples[i] for i in free], seed)]
    if len(units) < folds:
        raise UserError(f"--folds {folds}: {_too_few(samples, 'take fewer folds')}")
    groups: list[Counter[str]] = [Counter() for _ in range(folds)]
    parts: list[list[int]] = [[] for _ in range(folds)]
    for unit in sorted(units, key=len, reverse=True):
        kinds = Counter(samples[index].group for index in unit)

        def load(part: int, kinds: Counter[str] = kinds) -> tuple[int, int]:
            return sum(n * groups[part][kind] for kind, n in kinds.items()), len(parts[part])

        place = min(range(folds), key=load)
        parts[place] += unit
        groups[place] += kinds
    return _with_val(samples, set(parts[fold]))


def refuse_divided(path: Path, samples: Sequence[Sample]) -> None:
    """Refuses a split that has one cluster in two parts.

    Raises:
        UserError: it does.
    """
    parts: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.cluster:
            parts[sample.cluster].add(sample.split)
    divided = [name for name, found in parts.items() if len(found) > 1]
    if divided:
        others = f" (the first of {len(divided)} such groups)" if len(divided) > 1 else ""
        found = " and in ".join(sorted(parts[divided[0]]))
        raise UserError(
            f"{path} has {divided[0]}{others} of --group_by in {found}, so that scores would "
            "flatter: put all of its images into one part, or let --folds divide anew.",
            3,
        )


def _units(samples: Sequence[Sample], seed: int) -> list[list[int]]:
    """Places of the samples that stay together, in order of a hash of seed and name."""
    units: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        alone = (sample.image.stem, str(sample.image))
        units[(sample.cluster,) if sample.cluster else alone].append(index)

    def rank(name: tuple[str, ...]) -> tuple[bytes, tuple[str, ...]]:
        return hashlib.sha256(f"{seed}:{name[0]}".encode()).digest(), name

    return [units[name] for name in sorted(units, key=rank)]


def _too_few(samples: Sequence[Sample], remedy: str) -> str:
    folder = samples[0].image.parent
    known = {sample.cluster for sample in samples if sample.split != "test"}
    if known == {""}:
        count = sum(sample.split != "test" for sample in samples)
        what = "a single image" if count == 1 else f"{count} images to divide"
    else:
        what = "images of a single group" if len(known) == 1 else f"{len(known)} groups of images"
    return f"{folder} holds {what}: {remedy}."


def _with_val(samples: Sequence[Sample], val: set[int]) -> list[Sample]:
    return [
        sample
        if sample.split == "test"
        else replace(sample, split="val" if index in val else "train")
        for index, sample in enumerate(samples)
    ]

"""How much of each class there is, and the loss that such a set asks for."""

from collections.abc import Sequence
from dataclasses import dataclass

from .facts import Facts

_RARE, _EVEN = 0.005, 0.2  # share of pixels of the rarest class


@dataclass(frozen=True)
class Share:
    """One class in one part of the split."""

    pixels: int
    share: float  # of the pixels with a class
    images: int  # that have it


@dataclass(frozen=True)
class ClassLine:
    """One class: its mask value, and how much of it each part has."""

    index: int
    value: int
    name: str
    parts: dict[str, Share]


def class_lines(
    facts: Sequence[Facts], values: Sequence[int], names: Sequence[str]
) -> list[ClassLine]:
    """Returns the classes in their order.

    Args:
        facts: of all pairs.
        values: the mask value of class 0, 1, ...
        names: of class 0, 1, ...
    """
    splits = [part for part in ("train", "val", "test") if _part(facts, part)]
    totals = {
        split: sum(one.counts.get(value, 0) for one in _part(facts, split) for value in values)
        for split in splits
    }
    lines = []
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        parts = {}
        for split in splits:
            counts = [one.counts.get(value, 0) for one in _part(facts, split)]
            pixels = sum(counts)
            share = pixels / max(1, totals[split])
            parts[split] = Share(pixels, share, sum(count > 0 for count in counts))
        lines.append(ClassLine(index, value, name, parts))
    return lines


def _part(facts: Sequence[Facts], split: str) -> list[Facts]:
    return [one for one in facts if one.sample.split == split]


def suggest_loss(lines: Sequence[ClassLine]) -> tuple[dict[str, str], str]:
    """Returns flags of the training, and why: by the rarest class that the training part has."""
    present = [line for line in lines if line.parts["train"].pixels]
    rarest = min(present, key=lambda line: line.parts["train"].share)
    share = rarest.parts["train"].share
    words = f"{rarest.name} has {100 * share:.2g} % of the training pixels"
    if share >= _EVEN:
        return {"loss": "ce"}, f"{words}, and no class has fewer: cross entropy sees them all"
    flags = {"loss": "dice_ce"}
    words += ": Dice counts each class the same, however rare"
    if share < _RARE:
        flags["class_weights"] = "median"
        words += ", and weights let cross entropy see it too"
    return flags, words

"""Which mask value is which class."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import Refuse, UserError, stop
from .files import first_of, quote
from .table import Sample

MOST_FOUND = 32  # more values than this, without classes.json, are a photograph and not a mask
MOST_CLASSES = 255  # a class index fits in a byte, and one byte value means "no class"


def class_table(
    root: Path,
    samples: list[Sample],
    found: list[list[int]],
    classes: int | None,
    ignore: int | None,
    refuse: Refuse = stop,
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Mask values and names of class 0, 1, ...; every value found belongs to one.

    Args:
        root: folder that may hold classes.json.
        samples: the pairs of the set.
        found: the values that occur in the mask of each, without ``ignore``.
        classes: how many there must be; None takes what is known.
        ignore: a mask value that is no class, even if classes.json names it.
        refuse: hears of each mask with a value that has no class, and by default raises.

    Raises:
        UserError: classes.json is not {value: name}, a value has no class, or the count differs.
    """
    if classes is not None and not 2 <= classes <= MOST_CLASSES:
        raise UserError(f"--classes {classes}: take 2 to {MOST_CLASSES}, background included.", 2)
    path = root / "classes.json"
    named = _read_classes(path, ignore) if path.exists() else None
    if named is None:
        values = _values_found(samples, found, classes, ignore)
        return values, ("background", *(f"class {value}" for value in values[1:]))
    if classes not in (None, len(named)):
        raise UserError(
            f"--classes {classes}: {path} names {len(named)} classes; leave the flag out.",
            code=2,
        )
    _refuse_unknown(path, named, samples, found, refuse)
    return tuple(named), tuple(named.values())


def _read_classes(path: Path, ignore: int | None) -> dict[int, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        named = {int(value): name.strip() for value, name in content.items()}
        " ".join(named.values()).encode()  # half a surrogate pair is no text
    except (OSError, ValueError, AttributeError, RecursionError):
        named = {}
    named.pop(-1 if ignore is None else ignore, None)
    if not all(0 <= value <= 65535 and name for value, name in named.items()):
        named = {}
    if not 2 <= len(named) == len(set(named.values())) <= MOST_CLASSES:
        raise UserError(
            f"{path} must map 2 to {MOST_CLASSES} mask values to different class names, as in "
            '{"0": "background", "255": "nucleus"}: correct it or remove it.',
            code=3,
        )
    return dict(sorted(named.items()))


def _refuse_unknown(
    path: Path,
    named: dict[int, str],
    samples: list[Sample],
    found: list[list[int]],
    refuse: Refuse,
) -> None:
    strange = [
        (sample.mask, unknown)
        for sample, values in zip(samples, found, strict=True)
        if (unknown := [value for value in values if value not in named])
    ]
    for mask, unknown in strange:
        words = (
            f"{mask}{first_of(len(strange))} has {quote(unknown)}, but {path} lists "
            f"{quote(named)}: correct the mask or add the class."
        )
        refuse(UserError(words, 3))


def _values_found(
    samples: list[Sample], found: list[list[int]], classes: int | None, ignore: int | None
) -> tuple[int, ...]:
    """The values that occur, or 0 .. classes - 1 where all lie in there."""
    values = sorted({value for present in found for value in present})
    masks = samples[0].mask.parent
    if classes is None and len(values) > MOST_FOUND:
        worst = max(zip(found, samples, strict=True), key=lambda pair: len(pair[0]))[1].mask
        raise UserError(
            f"{worst} and the other masks hold {len(values)} values, too many for classes: "
            "save masks without loss (PNG), or name the values in classes.json.",
            code=3,
        )
    if classes is None or len(values) == classes:
        return tuple(values)
    if values[-1] < classes and ignore not in range(classes):
        return tuple(range(classes))
    raise UserError(
        f"--classes {classes}: the masks in {masks} hold {quote(values)}; "
        "correct the flag, or name the values in classes.json.",
        code=2,
    )

"""The score table: one line over all foreground classes, one for each class."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..metrics import iou_from_dice, summarise


@dataclass(frozen=True)
class ScoreLine:
    """Means of one class, or of all, with 95 % intervals (low, high)."""

    name: str
    dice: float
    dice_interval: tuple[float, float]
    iou: float
    iou_interval: tuple[float, float]
    values: int  # that the means are of
    left_out: int  # images with the class neither in the mask nor in the prediction


def score_lines(rows: Sequence[Sequence[float | None]], names: Sequence[str]) -> list[ScoreLine]:
    """Returns the table's lines.

    Args:
        rows: the Dice of each image in class 1, 2, ...; None is left out.
        names: of class 1, 2, ...
    """
    lines = [_line("all classes", rows)]
    if len(names) == 1:
        return [_line(names[0], rows)]
    return lines + [_line(name, [[row[k]] for row in rows]) for k, name in enumerate(names)]


def _line(name: str, rows: Sequence[Sequence[float | None]]) -> ScoreLine:
    dice = summarise(rows)
    iou = summarise([[None if v is None else iou_from_dice(v) for v in row] for row in rows])
    left_out = sum(dice.left_out)
    values = sum(len(row) for row in rows) - left_out
    return ScoreLine(
        name, dice.dice, (dice.low, dice.high), iou.dice, (iou.low, iou.high), values, left_out
    )

"""Fills the template of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .. import look
from ..metrics import DEFINITION
from .figures import dice_figure, loss_figure, spread_figure
from .outlines import Picture
from .scores import ScoreLine, score_lines


@dataclass
class Report:
    """What the page tells."""

    title: str  # the run's name
    config: Mapping[str, Any]
    facts: Mapping[str, Any]  # environment.json, with "ops", "device", "huge_pages", "seconds"
    data: Mapping[str, Any]  # "name", "train", "val"
    names: Sequence[str]  # of class 1, 2, ...
    columns: Mapping[str, str]  # class name -> column of the history
    history: Sequence[Mapping[str, Any]]
    scores: Sequence[Sequence[float | None]]  # Dice of each val image
    best_epoch: int
    best: Sequence[Picture] = field(default_factory=list)
    worst: Sequence[Picture] = field(default_factory=list)
    stopped: str | None = None  # why training ended early

    @cached_property
    def lines(self) -> list[ScoreLine]:
        """The score table."""
        return score_lines(self.scores, self.names)


def render(report: Report) -> str:
    """Returns the page: one HTML text, styles and pictures inside."""
    seconds = [row["seconds"] for row in report.history]
    return look.render(
        __name__.rpartition(".")[0],
        "page.html.j2",
        report=report,
        colours=look.class_colours(len(report.names)),
        figures={
            "Loss": loss_figure(report.history),
            "Dice on the val part": dice_figure(report.history, report.columns),
            "Every val image": spread_figure(report.scores, report.names),
        },
        definition=DEFINITION,
        epoch_seconds=sorted(seconds)[len(seconds) // 2],
    )

"""Fills the template of the report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .. import look
from ..metrics import DEFINITION
from .figures import dice_figure, loss_figure, spread_figure
from .outlines import Picture, mean_of
from .scores import ScoreLine, score_lines

MOST_LINES = 2000  # of the table of images
MOST_CLASSES = 24  # of the confusion matrix


@dataclass(frozen=True)
class Speed:
    """One batch of the run, forward and backward, with the fused ops and in plain PyTorch."""

    shape: tuple[int, ...]
    fused_ms: float
    plain_ms: float
    fused_bytes: int  # kept for the backward pass, beyond the weights
    plain_bytes: int


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
    images: Sequence[tuple[str, str]]  # name and group of each val image
    scores: Sequence[Sequence[float | None]]  # Dice of each
    best_epoch: int
    best: Sequence[Picture] = field(default_factory=list)
    worst: Sequence[Picture] = field(default_factory=list)
    stopped: str | None = None  # why training ended early
    background: str = "background"
    confusion: np.ndarray | None = None  # (K, K) pixels: row mask, column prediction
    speed: Speed | None = None

    @cached_property
    def lines(self) -> list[ScoreLine]:
        """The score table."""
        return score_lines(self.scores, self.names)

    @cached_property
    def image_lines(self) -> list[dict[str, Any]]:
        """The table of images, the worst first; of very many the worst ones only."""
        shown = {picture.name for picture in [*self.worst, *self.best]}
        lines = [
            {"name": name, "group": group, "dice": dice, "mean": mean_of(dice)}
            for (name, group), dice in zip(self.images, self.scores, strict=True)
        ]
        for line in lines:
            line["shown"] = line["name"] in shown
        lines.sort(key=lambda line: (math.isnan(line["mean"]), line["mean"]))
        return lines[:MOST_LINES]

    @cached_property
    def confusion_lines(self) -> list[tuple[str, int, list[float]]]:
        """(class, pixels, share of them predicted as each class); none of too many classes."""
        if self.confusion is None or len(self.confusion) > MOST_CLASSES:
            return []
        return [
            (name, int(row.sum()), (row / max(1, row.sum())).tolist())
            for name, row in zip([self.background, *self.names], self.confusion, strict=True)
        ]


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
        sortable=True,
    )

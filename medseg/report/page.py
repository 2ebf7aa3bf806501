"""Fills the template of the report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from ..metrics import DEFINITION
from .figures import BRIGHT, COLOURS, dice_figure, loss_figure, spread_figure
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
    from jinja2 import Environment, StrictUndefined

    home = files(__name__.rpartition(".")[0])
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["plain"] = _plain
    environment.filters["score"] = _score
    template = environment.from_string((home / "page.html.j2").read_text(encoding="utf-8"))
    seconds = [row["seconds"] for row in report.history]
    return template.render(
        report=report,
        style=Markup((home / "style.css").read_text(encoding="utf-8")),
        colours=[(COLOURS[k % 8], BRIGHT[k % 8]) for k in range(len(report.names))],
        figures={
            "Loss": loss_figure(report.history),
            "Dice on the val part": dice_figure(report.history, report.columns),
            "Every val image": spread_figure(report.scores, report.names),
        },
        definition=DEFINITION,
        epoch_seconds=sorted(seconds)[len(seconds) // 2],
    )


def _plain(value: Any) -> str:
    """A setting or fact in words."""
    if value is None or value == [] or value == {}:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return " ".join(str(v) for v in value)
    return value if isinstance(value, str) else json.dumps(value)


def _score(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"

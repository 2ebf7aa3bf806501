"""The page of a check: the findings, the classes, a contact sheet with the masks drawn in."""

import os
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from .. import look
from ..data import read_image
from ..data.files import read_mask_values
from ..findings import by_level, shortened
from ..report import outlined
from .check import Checked
from .facts import Facts

_MOST = 60  # pictures of the sheet
_SIDE, _QUALITY = 200, 75


@dataclass(frozen=True)
class Cell:
    """One picture of the sheet."""

    facts: Facts
    picture: Markup
    marked: bool  # a finding names it


def write_page(done: Checked, path: Path) -> None:
    """Writes the page, whole or not at all.

    Raises:
        UserError: the disk is full or read-only.
    """
    from ..runs import atomic

    with atomic(path) as beside:
        beside.write_text(render(done), encoding="utf-8")


def render(done: Checked) -> str:
    """Returns the page: one HTML text, styles and pictures inside."""
    return look.render(
        __package__ or "",
        "page.html.j2",
        done=done,
        name=done.options.root.resolve().name,
        findings=shortened(by_level(done.findings))[::-1],
        colours=look.class_colours(len(done.classes) - 1),
        parts=list(done.classes[0].parts) if done.classes else [],
        cells=[_cell(done, one) for one in chosen(done)],
        sortable=True,
    )


def chosen(done: Checked) -> list[Facts]:
    """The pairs of the sheet: those that findings name, then others at even distances."""
    named = [one for one in done.facts if one.name in _marked(done)][: _MOST // 2]
    known = {id(one) for one in named}
    others = [one for one in done.facts if id(one) not in known]
    room = min(_MOST - len(named), len(others))
    return named + [others[place * len(others) // room] for place in range(room)]


def _marked(done: Checked) -> set[str]:
    return {
        os.fspath(name)
        for finding in done.findings
        if finding.level in ("warning", "error")
        for name in finding.files
    }


def _cell(done: Checked, one: Facts) -> Cell:
    mask = read_mask_values(one.sample.mask)
    layers = {f"mask c{line.index}": mask == line.value for line in done.classes[1:]}
    picture = outlined(read_image(one.sample.image), layers, _SIDE, _QUALITY)
    return Cell(one, picture, one.name in _marked(done))

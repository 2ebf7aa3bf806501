"""The figures on the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from ..evaluation import MEASURES

if TYPE_CHECKING:
    from ..console import Journal

_HALVES = MEASURES[:4], MEASURES[4:]  # all of them side by side are too wide for 80 columns
_HEADS = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "nsd": "NSD"}


def show(document: dict[str, Any], journal: "Journal", out: Path | None) -> None:
    """Prints the document of `evaluate`."""
    if "a" in document:
        _show_comparison(document, journal)
    else:
        _show_scores(document, journal)
    if out is not None:
        journal.say(f"written to {out}")


def _show_scores(document: dict[str, Any], journal: "Journal") -> None:
    drawn = f" in {document['clusters']} clusters" if document["clusters"] else ""
    title = f"{document['images']} images{drawn} ({document['split']}), means with 95 % intervals"
    for measures in _HALVES:
        table = _table(title, measures, last="left out")
        for name, row in {"all classes": document["mean"], **document["classes"]}.items():
            cells = [_with_interval(row[m]) for m in measures]
            table.add_row(name, *cells, str(row[measures[0]]["left_out"]))
        journal.show(table)
        title = None
    pooled = document["dataset"]
    table = _table("All images taken as one", _HALVES[0])
    for name, row in {"all classes": pooled["mean"], **pooled["classes"]}.items():
        table.add_row(name, *(_number(row[m]) for m in _HALVES[0]))
    journal.show(table)
    if "groups" in document:
        table = _table("Mean Dice by group", ("Dice",), "group", "images")
        for name, row in document["groups"].items():
            table.add_row(name, _with_interval(row["dice"]), str(row["images"]))
        journal.show(table)
    if "published" in document:
        published = document["published"]
        journal.say(f"as {published['style']} scores: {published['source']}")
        for name, value in published["figures"].items():
            journal.say(f"  {name:<16} {_number(value)}")


def _show_comparison(document: dict[str, Any], journal: "Journal") -> None:
    journal.say(f"A  {document['a']}")
    journal.say(f"B  {document['b']}")
    left = document["only_in_a"] + document["only_in_b"]
    title = f"A less B on {document['images']} images, with 95 % interval and p"
    for measures in _HALVES:
        table = _table(title, measures)
        for name, row in {"all classes": document["mean"], **document["classes"]}.items():
            cells = [f"{_with_interval(row[m])}\np {row[m]['p']:.4f}" for m in measures]
            table.add_row(name, *cells)
        journal.show(table)
        title = None
    if left:
        journal.say(f"{left} images are in one of the two only, and left out")


def _table(
    title: str | None, measures: tuple[str, ...], first: str = "class", last: str | None = None
) -> Table:
    table = Table(
        title=title,
        box=box.SIMPLE,
        title_style="bold",
        title_justify="left",
        padding=(0, 1, 0, 0),  # 80 columns are enough
    )
    table.add_column(first)
    for name in measures:
        table.add_column(_HEADS.get(name, name), justify="right", no_wrap=True)
    if last is not None:
        table.add_column(last, justify="right")
    return table


def _with_interval(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return "-"
    return f"{_number(row['mean'])}\n{_number(row['low'], 3)}..{_number(row['high'], 3)}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

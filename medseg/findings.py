"""What doctor and data check say: one sentence, and what mends it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

Level = Literal["fine", "note", "warning", "error"]
LEVELS = ("fine", "note", "warning", "error")
_MARKS = {
    "fine": "[green]fine[/]",
    "note": "[cyan]note[/]",
    "warning": "[yellow]warning[/]",
    "error": "[bold red]error[/]",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    `fine` needs nothing; a `note` costs speed or is a choice; a `warning` can end a training, slow
    it, or flatter or spoil its scores; with an `error` training does not run, or its numbers are
    wrong.
    """

    level: Level
    topic: str
    says: str
    remedy: str | None = None  # where there is something to mend and `says` does not tell how
    files: tuple[str, ...] = ()  # that it is about


def by_level(found: Iterable[Finding]) -> list[Finding]:
    """The same, the worst last."""
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def fits(found: Iterable[Finding]) -> bool:
    """Whether none is an error."""
    return all(finding.level != "error" for finding in found)


def shortened(found: Sequence[Finding], most: int = 5) -> list[Finding]:
    """At most so many of a level and topic; the last one tells how many more there are."""
    kept: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        kept.setdefault((finding.level, finding.topic), []).append(finding)
    short: list[Finding] = []
    for (level, topic), group in kept.items():
        if len(group) > most:
            rest = len(group) - most + 1
            says = f"and {rest} more of this kind; --json lists them all"
            group = [*group[: most - 1], Finding(level, topic, says)]  # pyright: ignore
        short += group
    return short


def findings_table(found: Sequence[Finding]) -> "Table":
    """The findings for a terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE, title="Findings", title_style="bold", title_justify="left")
    table.add_column("")
    table.add_column("what", no_wrap=True)
    table.add_column("finding", overflow="fold")
    for one in shortened(by_level(found)):
        words = escape(one.says)
        if one.remedy:
            words += f"\n[bold]→ {escape(one.remedy)}[/]"
        table.add_row(_MARKS[one.level], escape(one.topic), words)
    return table

"""What `fuse` and `optimize` say they did, as tables."""

import io
from dataclasses import dataclass, field


@dataclass
class Cost:
    """Milliseconds of a call and the most memory that it holds, in MB of 2^20 bytes."""

    ms: float
    mb: float


@dataclass
class FusedBlock:
    """A block that is fused: its path in the model, its class, form and backend; with ``verify``
    what all its calls in one run cost before and after."""

    path: str
    kind: str
    form: str
    backend: str
    before: Cost | None = None
    after: Cost | None = None


@dataclass
class SkippedBlock:
    """A block that was left alone, and why."""

    path: str
    kind: str
    reason: str


@dataclass
class Report:
    """What `fuse` did; printed as a table.

    Attributes:
        fused: the blocks that are fused now.
        skipped: those that were left alone.
        before, after: with ``verify`` what a run of the whole model costs.
        step: the run that was timed, "inference" or "training step".
        channels_last: whether images are brought to that layout on a CPU.
    """

    fused: list[FusedBlock] = field(default_factory=list)
    skipped: list[SkippedBlock] = field(default_factory=list)
    before: Cost | None = None
    after: Cost | None = None
    step: str = "inference"
    channels_last: bool = False

    def __str__(self) -> str:
        text = ""
        if not self.fused and not self.skipped:
            text = "Nothing to fuse: the model has no attention block that medseg knows.\n"
        if self.fused:
            text = _table(f"Fused {_count(self.fused)}", *self._fused_rows())
        if self.skipped:
            rows = [(s.path, s.kind, s.reason) for s in self.skipped]
            text += _table(f"Left alone {_count(self.skipped)}", ("block", "class", "why"), rows)
        if self.skipped and not self.fused:
            unchanged = "" if self.channels_last else ", and nothing has changed"
            text += f"Nothing was fused{unchanged}.\n"
        if self.channels_last:
            text += "On a CPU its maps are channels_last.\n"
        if self.before is not None and self.after is not None:
            times, share = self.before.ms / self.after.ms, 1 - self.after.mb / self.before.mb
            text += (
                f"{self.step} of the whole model: {self.before.ms:.1f} ms before, "
                f"{self.after.ms:.1f} after, {times:.2f} times as fast; "
                f"{self.before.mb:.0f} MB before, {self.after.mb:.0f} after ({-share:+.0%})\n"
            )
        return text.rstrip("\n")

    __repr__ = __str__

    def _fused_rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        head = ("block", "class", "form", "backend")
        rows = [(f.path, f.kind, f.form, f.backend) for f in self.fused]
        if all(f.before is None for f in self.fused):
            return head, rows
        costs = [((f.before, f.after) if f.before and f.after else None) for f in self.fused]
        cells = [
            (f"{c[0].ms:.2f}", f"{c[1].ms:.2f}", f"{c[0].mb:.1f}", f"{c[1].mb:.1f}") if c else _IDLE
            for c in costs
        ]
        rows = [(*row, *cell) for row, cell in zip(rows, cells, strict=True)]
        return (*head, "ms before", "after", "MB before", "after"), rows


@dataclass
class Step:
    """A step of `optimize`: what it is, what a run costs with it in milliseconds, how far outputs
    are from the first ones, and why it was undone if it was."""

    name: str
    ms: float | None
    error: float | None
    undone: str | None = None


@dataclass
class OptimizeReport:
    """What `optimize` did; printed as a table.

    Attributes:
        before: milliseconds of a run of the model as it was.
        after: and as it is.
        steps: what was tried, in order.
        fusion: the report of `fuse`.
    """

    before: float
    after: float
    steps: list[Step]
    fusion: Report

    def __str__(self) -> str:
        rows = [("as it was", f"{self.before:.1f}", "", "")]
        for s in self.steps:
            ms = "" if s.ms is None else f"{s.ms:.1f}"
            error = "" if s.error is None else f"{s.error:.1e}"
            rows.append((s.name, ms, error, f"undone: {s.undone}" if s.undone else "kept"))
        text = _table("Inference", ("step", "ms", "relative error", ""), rows)
        return f"{text}{self.before / self.after:.2f} times as fast"

    __repr__ = __str__


_IDLE = ("not run", "", "", "")


def _count(blocks: list) -> str:
    return f"{len(blocks)} block{'' if len(blocks) == 1 else 's'}"


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in head:
        number = name.startswith(("ms", "MB", "after", "relative"))
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=120, color_system=None, markup=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())

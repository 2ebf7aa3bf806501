"""The words of a check on the terminal; they are those of its page."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..findings import findings_table
from ..look import percent
from .check import Checked

_SIZES = 5  # told; of more, how many there are


def show(console: Console, done: Checked) -> None:
    """Prints what there is, the classes, and the findings, the worst last."""
    parts = ", ".join(f"{count} {part}" for part, count in done.parts.items()) or "no pairs"
    console.print(escape(f"{done.options.root}: {parts}"))
    if done.facts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in done.kinds.items())
        sizes = [f"{count} of {size}" for size, count in done.sizes.items()]
        more = f" and {len(sizes) - _SIZES} more sizes" if len(sizes) > _SIZES else ""
        console.print(escape(f"images: {kinds}; {', '.join(sizes[:_SIZES])}{more}"))
    if done.classes:
        console.print(_classes(done))
    if done.loss:
        flags = " ".join(f"--{flag} {value}" for flag, value in done.loss.items())
        console.print(escape(f"suggested: {flags} ({done.because})"))
    if done.findings:
        console.print(findings_table(done.findings))
    verdict = "a training would start" if done.fits else "a training would refuse it"
    says = f"{verdict}; {_count(done, 'error')}, {_count(done, 'warning')}"
    console.print(says, style="bold" if done.fits else "bold red")


def _count(done: Checked, level: str) -> str:
    number = sum(one.level == level for one in done.findings)
    return f"{number} {level}{'' if number == 1 else 's'}"


def _classes(done: Checked) -> Table:
    table = Table(box=box.SIMPLE, title="Classes", title_style="bold", title_justify="left")
    table.add_column("class")
    table.add_column("mask value", justify="right")
    for part in done.classes[0].parts:
        table.add_column(f"pixels, {part}", justify="right")
        table.add_column(f"images, {part}", justify="right")
    for line in done.classes:
        cells = [
            cell
            for share in line.parts.values()
            for cell in (percent(share.share), str(share.images))
        ]
        table.add_row(escape(line.name), str(line.value), *cells)
    return table

"""The doctor's words on the terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..findings import Finding, findings_table
from .ops import Row


def show(console: Console, facts: dict[str, Any], rows: list[Row], found: list[Finding]) -> None:
    """Prints what there is, what each op takes, and what to mend; what is worst comes last."""
    versions = ", ".join(
        f"{name} {known or 'missing'}" for name, known in facts["versions"].items()
    )
    console.print(f"medseg {facts['medseg']}, Python {facts['python']}, {facts['system']}")
    console.print(escape(versions))
    for device in facts["devices"]:
        rest = ", ".join(
            f"{key} {value}" for key, value in device.items() if key != "kind" and value
        )
        console.print(escape(f"{device['kind']}: {rest.removeprefix('name ')}"))
    if rows:
        console.print(_ops(rows))
        console.print("off: from float64, beside plain PyTorch; ms: of forward and backward")
        for line in _why_not(rows):
            console.print(line, markup=False)
        console.print()
    console.print(findings_table(found))


def _ops(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE, title="Ops", title_style="bold", title_justify="left")
    for head in ("op", "device", "takes"):
        table.add_column(head, no_wrap=True)
    for head in ("off", "plain", "ms", "plain"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in [row for row in rows if row.taken or row.trial]:
        trial = row.trial or {}
        name = row.backend if row.taken else f"({row.backend})"
        gaps = [_shown(trial.get(key), ".0e") for key in ("error", "plain")]
        times = [_shown(trial.get(key), ".2f") for key in ("ms", "plain_ms")]
        table.add_row(row.op, row.device, name, *gaps, *times)
    return table


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _why_not(rows: list[Row]) -> list[str]:
    """Each reason once, with the ops that it holds for."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.why_not:
            reasons.setdefault(row.why_not, []).append(row.op)
    every = {row.op for row in rows}
    return [
        f"not taken: {why} ({'all ops' if set(ops) == every else ', '.join(ops)})"
        for why, ops in reasons.items()
    ]

"""The page of a results file; `python -m bench.report` draws them again for all of results/.

One file that opens anywhere: styles and pictures are inside, nothing is fetched.
"""

import json
import sys
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from bench.cases import LARGE, TABLE
from bench.charts import KINDS, Rows, ratios, roofline
from bench.results import FOLDER, FUSED, YARDSTICKS
from medseg import look

SHORT = {"nchw": "NCHW", "channels_last": "channels_last"}
FORMS = {  # of whole networks, by contender
    "fused": "float32",
    "fused_cl": "float32, channels_last, batch norms folded",
    "fused_bf16": "bfloat16, channels_last",
}
GOALS = {"clones": "clones, at most", "saved": "% of x kept, at most", "share": "% of the floor"}


def main(arguments: Sequence[str]) -> None:
    """Draws the files named, or all of results/."""
    for path in [Path(a) for a in arguments] or sorted(FOLDER.glob("*.json")):
        print(draw(path))


def draw(path: Path) -> Path:
    """Writes the page beside a results file; returns where."""
    target = path.with_suffix(".html")
    target.write_text(render(json.loads(path.read_text())), encoding="utf-8")
    return target


def render(report: dict[str, Any]) -> str:
    """Returns the page of a results file."""
    rows = report["rows"]
    contests = [Contest(group) for group in _groups(rows, "op")]
    return look.render(
        "bench",
        "page.html.j2",
        report=report,
        colours=[],
        ms=_milliseconds,
        runs=_runs(rows),
        tiles=_tiles(contests),
        goals=[g for c in contests for g in c.goals],
        bars=_bars(contests),
        pictures=_pictures(report, contests),
        ops=[(op, [c for c in contests if c.op == op]) for op in _ops(contests)],
        models=[_model(group) for group in _groups(rows, "model")],
        host=[_host(group) for group in _groups(rows, "host")],
    )


class Contest:
    """The rows of one case, by contender."""

    def __init__(self, rows: Rows) -> None:
        first = rows[0]
        self.case, self.op, self.step = first["case"], first["op"], first["step"]
        self.layout, self.dtype, self.shape = first["layout"], first["dtype"], first["shape"]
        options = "".join(f", {k} {v}" for k, v in first["options"].items())
        self.size = " x ".join(str(s) for s in self.shape) + options
        self.rows = {r["contender"]: r for r in rows}
        ours = [r for r in rows if r["contender"] in FUSED]
        self.best = min(ours, key=lambda r: r["median_ms"]) if ours else None
        self.large = tuple(self.shape) == LARGE and not options
        judged = (self.best or {}).get("goals", [])
        self.goals = [g | {"words": self._words(g), "about": self} for g in judged]

    @property
    def contenders(self) -> Rows:
        """Without the yardsticks."""
        return [r for r in self.rows.values() if r["contender"] not in YARDSTICKS]

    @staticmethod
    def _words(goal: dict[str, Any]) -> str:
        return GOALS.get(goal["goal"], f"times faster than {goal['goal']}, at least")


def _groups(rows: Rows, kind: str) -> list[Rows]:
    """Rows of a kind by case, ops in the order of the table."""
    found: dict[str, Rows] = {}
    for r in (r for r in rows if r["kind"] == kind):
        found.setdefault(r["case"], []).append(r)
    order = list(TABLE)
    return sorted(found.values(), key=lambda g: order.index(g[0]["op"]) if "op" in g[0] else 0)


def _ops(contests: list[Contest]) -> list[str]:
    return list(dict.fromkeys(c.op for c in contests))


def _runs(rows: Rows) -> str:
    """Where the rows come from: dates and versions of PyTorch."""
    dates = sorted({r["date"] for r in rows})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    versions = " and ".join(sorted({r["torch"] for r in rows}))
    huge = " and ".join(sorted({"on" if r["huge_pages"] == "1" else "off" for r in rows}))
    return f"PyTorch {versions} · {span} · huge pages {huge}"


def _tiles(contests: list[Contest]) -> list[tuple[str, str]]:
    """Headlines: a number and what it is of."""
    goals = [g for c in contests for g in c.goals]
    met = sum(g["met"] for g in goals)
    found = [(f"{met} of {len(goals)}", f"goals reached, in {len(contests)} cases")]
    for rival, words in (("eager", "plain PyTorch"), ("compile", "torch.compile")):
        values = [c.best[f"vs_{rival}"] for c in contests if c.best and f"vs_{rival}" in c.best]
        if values:
            mean = exp(sum(map(log, values)) / len(values))
            found.append((f"{mean:.1f} x", f"as fast as {words}, geometric mean of {len(values)}"))
    shares = [c.best["share"] for c in contests if c.best and c.large and not _half(c)]
    if shares:
        words = f"of copy speed, median of {len(shares)} large float32 cases"
        found.append((f"{median(shares):.0f} %", words))
    return found


def _half(contest: Contest) -> bool:
    return contest.dtype != "float32"


def _bars(contests: list[Contest]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Bars of the large cases, by layout and dtype: (title, cards)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for c in (c for c in contests if c.large):
        slowest = max(r["median_ms"] for r in c.contenders)
        bars = [
            {
                "name": r["contender"],
                "kind": KINDS.get(r["contender"], "peer"),
                "width": 100 * r["median_ms"] / slowest,
                "row": r,
            }
            for r in c.contenders
        ]
        title = f"{SHORT[c.layout]}, {c.dtype}"
        found.setdefault(title, []).append(
            {"title": f"{c.op.replace('_', ' ')}, {c.step}", "bars": bars}
        )
    return list(found.items())


def _pictures(report: dict[str, Any], contests: list[Contest]) -> dict[str, Any]:
    ops = _ops(contests)
    colours = {op: k % 8 + 1 for k, op in enumerate(TABLE)}
    found: dict[str, Any] = {"colours": {op: colours[op] for op in ops}}
    large = [r for c in contests if c.large for r in c.contenders]
    if large:
        copy = median(c.rows["copy_"]["GBps"] for c in contests if c.large)
        found["roofline"] = roofline(large, copy, report["matmul_gflops"], colours)
    ours = [c.best for c in contests if c.best]
    for rival in ("eager", "compile"):
        rows = [r for r in ours if f"vs_{rival}" in r]
        if rows:
            shown = [op for op in ops if any(r["op"] == op for r in rows)]
            found[rival] = ratios(rows, rival, shown, colours)
    return found


def _model(group: Rows) -> dict[str, Any]:
    rows = {r["contender"]: r for r in group}
    ours = [(form, rows[key]) for key, form in FORMS.items() if key in rows]
    return {"first": group[0], "rows": rows, "ours": ours}


def _host(group: Rows) -> dict[str, Any]:
    costs = {r["contender"]: r["us"] for r in group}
    ours = {name: us for name, us in costs.items() if name in FUSED}
    return {"first": group[0], "costs": costs, "ours": ours}


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


if __name__ == "__main__":
    main(sys.argv[1:])

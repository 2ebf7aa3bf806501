"""The pictures of the page, as inline SVG in the page's own colours."""

from collections.abc import Iterable, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Any

from markupsafe import Markup

Rows = list[dict[str, Any]]
WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44


class Axes:
    """Two logarithmic axes with a grid, and what is drawn on them."""

    def __init__(self, xs: Iterable[float], ys: Iterable[float], labels: tuple[str, str]) -> None:
        self.x, self.y = _decades(xs), _decades(ys)
        self.parts: list[str] = []
        self._grid(labels)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = (log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A polyline."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*p) for p in points))
        self.parts.append(f'<polyline class="{kind}" points="{path}"/>')

    def mark(self, x: float, y: float, kind: str, title: str) -> None:
        """A dot that tells what it is when pointed at."""
        px, py = self.place(x, y)
        self.parts.append(
            f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="5">'
            f"<title>{escape(title)}</title></circle>"
        )

    def text(self, x: float, y: float, words: str, anchor: str = "start") -> None:
        """Words at a point of the axes."""
        px, py = self.place(x, y)
        self.parts.append(_text(px, py, words, anchor))

    def svg(self, title: str) -> Markup:
        """The picture."""
        return Markup(
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
            f"{''.join(self.parts)}</svg>"
        )

    def _grid(self, labels: tuple[str, str]) -> None:
        for power in range(self.x[0], self.x[1] + 1):
            px, _ = self.place(10.0**power, 10.0 ** self.y[0])
            self.parts.append(f'<path class="grid" d="M{px:.1f},{TOP}V{HEIGHT - BOTTOM}"/>')
            self.parts.append(_text(px, HEIGHT - BOTTOM + 16, _tick(power), "middle"))
        for power in range(self.y[0], self.y[1] + 1):
            _, py = self.place(10.0 ** self.x[0], 10.0**power)
            self.parts.append(f'<path class="grid" d="M{LEFT},{py:.1f}H{WIDTH - RIGHT}"/>')
            self.parts.append(_text(LEFT - 7, py + 4, _tick(power), "end"))
        middle = (HEIGHT - BOTTOM + TOP) / 2
        self.parts.append(_text((WIDTH + LEFT) / 2, HEIGHT - 6, labels[0], "middle"))
        self.parts.append(
            f'<text x="14" y="{middle}" text-anchor="middle" '
            f'transform="rotate(-90 14 {middle})">{escape(labels[1])}</text>'
        )


def _decades(values: Iterable[float]) -> tuple[int, int]:
    found = [log10(v) for v in values]
    low, high = floor(min(found)), ceil(max(found))
    return low, max(high, low + 1)


def _tick(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def roofline(rows: Rows, copy: float, matmul: float, colours: dict[str, int]) -> Markup:
    """Operations a second over operations a byte of the floor, under the roof that was measured.

    Args:
        rows: of a map that no cache holds.
        copy: GB/s, the slope of the roof.
        matmul: Gflop/s, its flat part.
        colours: op -> number of its colour.
    """
    points = [(r["flop"] / r["floor_bytes"], r["flop"] / r["median_ms"] / 1e6, r) for r in rows]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = 10 ** floor(log10(min(xs))), 10 ** ceil(log10(max(*xs, matmul / copy)))
    axes = Axes((low, high), (*ys, low * copy, 2 * matmul), ("flop a byte of the floor", "Gflop/s"))
    ridge = matmul / copy
    axes.line([(low, low * copy), (ridge, matmul), (high, matmul)], "roof")
    axes.text(low * 1.1, low * copy * 4, f"copy, {copy:.1f} GB/s")
    axes.text(high / 1.1, matmul * 1.3, f"matrix product, {matmul:.0f} Gflop/s", "end")
    for x, y, r in points:
        kind = f"c{colours[r['op']]} {KINDS.get(r['contender'], 'peer')}"
        title = f"{r['case']}\n{r['contender']}: {r['median_ms']:.2f} ms, {r['share']:.0f} %"
        axes.mark(x, y, kind, title)
    return axes.svg("Roofline")


KINDS = {"eager": "eager", "compile": "compile", "cpu": "fused", "cuda": "fused", "triton": "fused"}


def ratios(rows: Rows, rival: str, ops: Sequence[str], colours: dict[str, int]) -> Markup:
    """How many times faster than a rival each case is: a line of dots for each op."""
    key = f"vs_{rival}"
    top = max(r[key] for r in rows)
    low, high = min(0.8, *(r[key] for r in rows)) * 0.9, top * 1.15
    step, height = 30, 30 * len(ops) + 40
    wide = WIDTH - 130

    def place(value: float) -> float:
        return 110 + (log10(value) - log10(low)) / (log10(high) - log10(low)) * wide

    parts = []
    for tick in (t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low <= t <= high):
        kind = "one" if tick == 1 else "grid"
        parts.append(f'<path class="{kind}" d="M{place(tick):.1f},6V{height - 30}"/>')
        parts.append(_text(place(tick), height - 12, f"{tick:g} x", "middle"))
    for k, op in enumerate(ops):
        y = 22 + k * step
        parts.append(_text(100, y + 4, op.replace("_", " "), "end"))
        for r in (r for r in rows if r["op"] == op):
            title = escape(f"{r['case']}: {r[key]:.2f} x {rival}")
            parts.append(
                f'<circle class="c{colours[op]} fused" cx="{place(r[key]):.1f}" cy="{y}" r="4.5">'
                f"<title>{title}</title></circle>"
            )
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Times faster than {rival}">'
        f"{''.join(parts)}</svg>"
    )

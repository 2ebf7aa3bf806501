"""The curves of a run and the spread of its scores, drawn by matplotlib as SVG."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ..look import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRAIN, _VAL = "#7c8798", "#d1495b"
_INK = "#123456"  # stands for the page's text colour until the SVG is on the page
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$"
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}

History = Sequence[Mapping[str, Any]]


def loss_figure(history: History) -> Markup:
    """Returns the losses by epoch, for the page."""
    return _on_page("loss", 1, lambda axes: _draw_loss(axes[0], history))


def dice_figure(history: History, columns: Mapping[str, str]) -> Markup:
    """Returns the val Dice by epoch, for the page.

    Args:
        history: rows of metrics.csv.
        columns: class name -> its column.
    """
    return _on_page("dice", 1, lambda axes: _draw_dice(axes[0], history, columns))


def spread_figure(rows: Sequence[Sequence[float | None]], names: Sequence[str]) -> Markup:
    """Returns one dot for each image and class, with the mean, for the page."""
    return _on_page("spread", 1, lambda axes: _draw_spread(axes[0], rows, names))


def curves_file(history: History, columns: Mapping[str, str]) -> str:
    """Returns losses and Dice by epoch as an SVG file of its own, black on white."""

    def draw(axes: "Sequence[Axes]") -> None:
        _draw_loss(axes[0], history)
        _draw_dice(axes[1], history, columns)

    return _svg("curves", 2, draw, "white").replace(_INK, "#222222")


def _draw_loss(axis: "Axes", history: History) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) == 1 else None
    axis.plot(epochs, [r["loss"] for r in history], color=_TRAIN, label="train", marker=marker)
    axis.plot(epochs, [r["val_loss"] for r in history], color=_VAL, label="val", marker=marker)
    axis.set(xlabel="epoch", ylabel="loss")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.legend()


def _draw_dice(axis: "Axes", history: History, columns: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) == 1 else None
    for k, (name, column) in enumerate(columns.items()):
        values = [row[column] for row in history]
        colour = COLOURS[k % len(COLOURS)]
        axis.plot(epochs, values, color=colour, lw=1.2, label=name, marker=marker)
    if len(columns) > 1:
        mean = [row["dice"] for row in history]
        axis.plot(epochs, mean, color=_INK, lw=2, label="mean", marker=marker)
    axis.set(xlabel="epoch", ylabel="Dice on val", ylim=(0, 1))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.legend(loc="lower right")


def _draw_spread(
    axis: "Axes", rows: Sequence[Sequence[float | None]], names: Sequence[str]
) -> None:
    jitter = np.random.default_rng(0)
    for k in range(len(names)):
        values = [value for row in rows if (value := row[k]) is not None]
        places = k + jitter.uniform(-0.22, 0.22, len(values))
        colour = COLOURS[k % len(COLOURS)]
        axis.scatter(places, values, s=14, color=colour, alpha=0.65, linewidths=0)
        if values:
            axis.hlines(float(np.mean(values)), k - 0.32, k + 0.32, color=_INK, lw=1.6)
    axis.set(ylabel="Dice of an image", xlim=(-0.6, len(names) - 0.4))
    axis.set_xticks(range(len(names)), names)
    axis.grid(axis="x", visible=False)


def _svg(salt: str, count: int, draw: Any, background: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(3.9 * count, 2.9))
        axes = figure.subplots(1, count, squeeze=False)[0]
        draw(axes)
        figure.set_facecolor(background)
        for axis in axes:
            axis.set_facecolor("none")
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _on_page(salt: str, count: int, draw: Any) -> Markup:
    text = _svg(salt, count, draw, "none")
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{salt}-", text)  # single on the whole page
    return Markup(text.strip())

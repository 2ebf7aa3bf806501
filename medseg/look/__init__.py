"""The one look of all pages: stylesheet, base template, table sorting. Each page is one file."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

# of class 1, 2, ...: one for charts, and a bright one for outlines on images
COLOURS = ("#0f8b8d", "#d98200", "#6d5bd0", "#d1495b", "#3a8f4d", "#2f6fb7", "#a2549b", "#8a6d3b")
BRIGHT = ("#1df2e6", "#ffc61a", "#c3b1ff", "#ff7d90", "#7dff6a", "#6cc0ff", "#ff9df0", "#f2d39b")


def render(package: str, template: str, **values: Any) -> str:
    """Fills a template that extends ``base.html.j2``.

    Args:
        package: where the template lies.
        template: its file.
        values: what it tells; "colours" are those of its classes.

    Returns:
        The page: one HTML text with style, script and pictures inside, which asks nothing of the
        network and is told so by its Content-Security-Policy.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    home = Path(str(files(__name__)))
    environment = Environment(
        loader=FileSystemLoader([str(files(package)), str(home)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"plain": plain, "score": score, "percent": percent}
    style = stylesheet(values["colours"])
    script = (home / "sort.js").read_text(encoding="utf-8")
    page = environment.get_template(template)
    return page.render(style=Markup(style), sorting=Markup(script), **values)


def stylesheet(colours: Sequence[tuple[str, str]]) -> str:
    """The style of all pages, with the colours of a page's classes from `class_colours`."""
    text = (Path(str(files(__name__))) / "style.css").read_text(encoding="utf-8")
    lines = [f".c{k} {{ --c: {c}; --b: {b}; }}" for k, (c, b) in enumerate(colours, 1)]
    return "\n".join((text, *lines))


def class_colours(count: int) -> list[tuple[str, str]]:
    """(for charts, for outlines) of class 1 .. count."""
    return [(COLOURS[k % len(COLOURS)], BRIGHT[k % len(BRIGHT)]) for k in range(count)]


def plain(value: Any) -> str:
    """A setting or fact in words."""
    if value is None or value == [] or value == {}:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return " ".join(str(v) for v in value)
    return value if isinstance(value, str) else json.dumps(value)


def score(value: float | None) -> str:
    """Three decimals; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.3f}"


def percent(value: float) -> str:
    """A share, with a decimal more where it is small."""
    return f"{100 * value:.2f} %" if value < 0.01 else f"{100 * value:.1f} %"

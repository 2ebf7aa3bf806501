"""The page of a server: HTML, style and script, made once."""

from importlib.resources import files

from .. import look
from ..inference import Trained
from .config import ServeConfig


class Page:
    """Three texts, which come from one address: no other is asked for anything.

    Args:
        trained: the network.
        config: the server's settings, whose limits the page says.
    """

    def __init__(self, trained: Trained, config: ServeConfig) -> None:
        package = __package__ or ""
        here = files(package)
        colours = look.class_colours(len(trained.names) - 1)
        self.html = look.render(
            package, "page.html.j2", trained=trained, config=config, colours=colours
        )
        own = (here / "page.css").read_text(encoding="utf-8")
        self.style = f"{look.stylesheet(colours)}\n{own}"
        self.script = (here / "page.js").read_text(encoding="utf-8")

"""The words on the terminal."""

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from .formats import FORMATS

if TYPE_CHECKING:
    from ..console import Journal


def show(document: dict[str, Any], journal: "Journal") -> None:
    """Prints the document of `export`."""
    title = "The file against the network with its fused ops"
    table = Table(title=title, box=box.SIMPLE, title_style="bold", title_justify="left")
    for head in ("images", "height", "width", "largest difference", "allowed"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in document["checks"]:
        size = (str(row[key]) for key in ("images", "height", "width"))
        table.add_row(*size, f"{row['error']:.1e}", f"{row['allowed']:.1e}")
    journal.show(table)
    facts = document["facts"]
    journal.say(f"in   {facts['input']}")
    if facts["normalize"] != "none":
        journal.say(f"     its {facts['normalize']} normalisation is part of the file")
    journal.say(f"out  {facts['output']}")
    pairs = zip(facts["class_names"], facts["mask_values"], strict=True)
    named = ", ".join(f"{name} ({value})" for name, value in pairs)
    journal.say(f"     classes, with their mask values: {named}")
    megabytes = document["bytes"] / 1e6
    journal.say(f"{document['file']}: {FORMATS[document['format']].about}, {megabytes:.1f} MB")

"""`python -m medseg.models`: every network with its size, its cost, where it comes from."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from medseg.startup import settle

SIDE = 256  # height and width of the image that the multiplications are counted for


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the list.

    Args:
        argv: flags; None takes those of the process.

    Returns:
        0, or 2 where no name matches.
    """
    parser = argparse.ArgumentParser(
        prog="python -m medseg.models", description="Lists the networks of medseg."
    )
    parser.add_argument("pattern", nargs="?", default="*", help="names to list, e.g. '*_s'")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    flags = parser.parse_args(argv)
    settle()
    from ..document import print_document
    from . import list_models

    names = list_models(flags.pattern)
    if not names:
        known = ", ".join(list_models())
        print(f"error: no network is named {flags.pattern!r}; known: {known}.", file=sys.stderr)
        return 2
    facts = [facts_of(name) for name in names]
    if flags.json:
        print_document(facts)
    else:
        _show(facts)
    return 0


def facts_of(name: str) -> dict[str, Any]:
    """Size, cost and origin of a network as `create_model(name)` makes it; nothing is computed.

    Multiplications and additions are those of convolutions and matrix products, in inference on one
    image of 256 x 256, in plain PyTorch: the fused ops do no more.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from medseg.kernels import use_backend

    from . import create_model

    with torch.device("meta"), torch.no_grad(), use_backend("reference"):
        model = create_model(name).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, model.in_channels, SIDE, SIDE))
    return {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": counter.get_total_flops() // 2,
        "paper": model.paper,
        "year": model.year,
        "fused": list(model.fused),
    }


def _show(facts: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, caption=f"3 channels, 1 class; GMAC of one {SIDE}x{SIDE} image")
    for head in ("name", "parameters", "GMAC", "paper", "year", "fused"):
        right = head in ("parameters", "GMAC")
        overflow = "fold" if head == "paper" else "ellipsis"
        justify = "right" if right else "left"
        table.add_column(head, justify=justify, no_wrap=head != "paper", overflow=overflow)
    for row in facts:
        cells = [row["name"], f"{row['parameters']:,}", f"{row['macs'] / 1e9:.3f}", row["paper"]]
        table.add_row(*cells, str(row["year"]), "\n".join(row["fused"]))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())

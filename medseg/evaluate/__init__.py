"""`medseg evaluate`: scores of a trained network on a folder of images and masks."""

import sys
from collections.abc import Sequence

from ..startup import settle


def main(argv: Sequence[str] | None = None) -> int:
    """Scores a network, or compares two.

    Args:
        argv: the flags; None takes those of the process.

    Returns:
        The exit code: 0, 2 for a wrong flag, 3 for wrong data, 130 after Ctrl-C, 1 for anything
        else.
    """
    settle()
    from ..console import guarded
    from .run import evaluate, parse_flags

    flags = sys.argv[1:] if argv is None else argv
    return guarded(lambda journal: evaluate(parse_flags(flags), journal))

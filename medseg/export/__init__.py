"""`medseg export`: a trained network as a file that runs without medseg."""

import sys
from collections.abc import Sequence

from ..startup import settle


def main(argv: Sequence[str] | None = None) -> int:
    """Exports a network, and runs the file before it is called done.

    Args:
        argv: the flags; None takes those of the process.

    Returns:
        The exit code: 0, 2 for a wrong flag or a package that is missing, 3 for weights that cannot
        be used or a file that does not give the network's result, 130 after Ctrl-C, 1 for anything
        else.
    """
    settle()
    from ..console import guarded
    from .run import export, parse_flags

    flags = sys.argv[1:] if argv is None else argv
    return guarded(lambda journal: export(parse_flags(flags), journal))

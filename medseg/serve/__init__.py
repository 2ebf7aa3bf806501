"""`medseg serve RUN`: a page and an HTTP API that show images to a trained network."""

import sys
from collections.abc import Sequence

from ..startup import settle


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until it is stopped.

    Args:
        argv: a run folder or its weights, and flags; None takes those of the process.

    Returns:
        The exit code: 130 after Ctrl-C or SIGTERM, 2 for a wrong flag, 3 for weights that cannot
        be used, 1 for anything else.
    """
    settle()
    from ..console import guarded
    from .config import parse_flags
    from .run import serve

    flags = sys.argv[1:] if argv is None else argv
    return guarded(lambda journal: serve(parse_flags(flags), journal))

"""`medseg predict`: masks, pictures and polygons of images by a trained network."""

import sys
from collections.abc import Sequence

from ..startup import settle


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts a file or a folder.

    Args:
        argv: the flags; None takes those of the process.

    Returns:
        The exit code: 0, 2 for a wrong flag, 3 for files that cannot be used, 130 after Ctrl-C, 1
        for anything else.
    """
    settle()
    from ..console import guarded
    from .run import parse_flags, predict

    flags = sys.argv[1:] if argv is None else argv
    return guarded(lambda journal: predict(parse_flags(flags), journal))

"""What `--json` prints: one document on standard output, for machines."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


def print_document(document: Any) -> None:
    """Prints a document in ASCII, whatever the terminal takes; what is no number is null."""
    try:
        print(json.dumps(without_nan(document), indent=1), flush=True)
    except BrokenPipeError:  # who read it wants no more; Python's last flush would fail, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextlib.contextmanager
def one_document(wanted: bool) -> Iterator[Callable[[Any], None]]:
    """Yields what takes the document; it is printed once the block ends, however it does.

    Whatever else is printed inside goes to stderr, be it by a library or by another process.

    Args:
        wanted: whether --json is there; without it nothing is done.
    """
    if not wanted:
        yield lambda document: None
        return
    taken: list[Any] = []
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield taken.append
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        for document in taken:
            print_document(document)


def without_nan(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

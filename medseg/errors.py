"""The one error a person at the command line is meant to read, and the hint in many of them.

Imports nothing heavy: the commands read this file before PyTorch may be loaded.
"""

import difflib
from collections.abc import Callable, Collection


class UserError(ValueError):
    """Something the caller can mend, in one sentence: the flag or file, what came, the remedy.

    Args:
        message: the sentence, printed as it is, without a traceback.
        code: exit status; 2 = a flag, configuration, model or backend is wrong, 3 = the data is,
            or the run failed.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class OutputError(UserError):
    """A result cannot be written: the disk is full, or read-only. What comes next could not be."""


Refuse = Callable[
    [UserError], None
]  # hears an error; where it returns, the faulty item is left out


def stop(error: UserError) -> None:
    """Raises the error: the first one ends the work. Who wants them all passes another Refuse."""
    raise error


def did_you_mean(value: str, known: Collection[str], prefix: str = "") -> str:
    """Returns " (did you mean X?)" for the nearest known value, or nothing."""
    near = difflib.get_close_matches(value.lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""

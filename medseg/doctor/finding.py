"""What the doctor says: one sentence, and the one command that mends it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["fine", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    `fine` needs nothing; a `note` costs speed or a choice; a `warning` can end or slow a training;
    with an `error` training does not run, or its numbers are wrong.
    """

    level: Level
    topic: str
    says: str
    remedy: str | None = None  # the command, where there is something to mend

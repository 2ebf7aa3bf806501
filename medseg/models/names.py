"""Names of entries: as an error may show them, and brought from another program's to ours."""

import re
from collections.abc import Callable

from torch import Tensor

from medseg.errors import UserError

_LONGEST = 80
_LONGEST_REASON = 160


def shown(name: str) -> str:
    """A name out of a file as an error may carry it: printable, on one line and not too long."""
    text = name if name.isprintable() else repr(name[:_LONGEST])
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def told(error: Exception) -> str:
    """What another library says, on one printable line: it may quote the file."""
    words = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
    return re.sub(r"[^ -~]", " ", words[:_LONGEST_REASON]) or type(error).__name__


def renamed(state: dict[str, Tensor], name: Callable[[str], str]) -> dict[str, Tensor]:
    """The entries of a file under the names that ``name`` gives to its keys.

    Raises:
        UserError: two keys get one name, so that one of them would be lost.
    """
    keys: dict[str, str] = {}
    for key in state:
        other = keys.setdefault(name(key), key)
        if other != key:
            raise UserError(
                f"{shown(other)} and {shown(key)} are two names of {shown(name(key))}; "
                "leave one of them out of the file"
            )
    return {new: state[key] for new, key in keys.items()}

"""Files that a data folder may hold: regular ones, inside of it, with names that are text."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError


def refuse_odd_name(path: Path) -> None:
    """Refuses a file whose name is no text.

    Raises:
        UserError: it is none.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path.parent} holds {path.name!r}, whose name is no text in UTF-8: rename the file.",
            code=3,
        ) from None


def refuse_odd_file(root: Path, path: Path) -> None:
    """Refuses what is no image file of this folder, before anything is read from it.

    ``root``, ``root/images`` and ``root/masks`` may be links to elsewhere; a file in them may not,
    so that a folder from a stranger shows nothing but itself.

    Raises:
        UserError: the name is no text, a pipe or a folder bears it, or a link leads outside.
    """
    refuse_odd_name(path)
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        raise UserError(
            f"{path} is a link to a file that is not there: replace it or take it out.", 3
        ) from None
    if not real.is_file():
        raise UserError(f"{path} is no regular file: replace it or take it out.", 3)
    homes = {Path(os.path.realpath(root / part)) for part in ("", "images", "masks")}
    if not any(real.is_relative_to(home) for home in homes):
        raise UserError(
            f"{path} is a link to {real}, outside of {root}: put the file itself there, or make "
            f"{path.parent} a link to its folder.",
            code=3,
        )

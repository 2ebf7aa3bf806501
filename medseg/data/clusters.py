"""Which images belong together, by a column of split.csv or by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, did_you_mean


@dataclass(frozen=True)
class Clusters:
    """How ``--group_by`` tells what an image belongs to: a patient, a slide, a specimen.

    Args:
        text: name of a CSV column; or, if it has a parenthesis, a regular expression whose first
            group is found in the stem of the image's file; None: every image stands alone.

    Raises:
        UserError: the expression is none, or has no group.
    """

    text: str | None = None

    def __post_init__(self) -> None:
        """Refuses what is no regular expression."""
        if not self.by_name:
            return
        try:
            fine = re.compile(str(self.text)).groups >= 1
        except (re.error, RecursionError, OverflowError):
            fine = False
        if not fine:
            raise UserError(
                f"--group_by {self.text}: with a parenthesis it must be a regular expression whose "
                r"first group is the patient in the file's name, as in '^(p\d+)_'."
            )

    @property
    def by_name(self) -> bool:
        """Whether the file's name tells, and no column."""
        return self.text is not None and "(" in self.text

    def refuse_missing_column(self, where: Path, header: Sequence[str] | None) -> None:
        """Refuses a column that the CSV has not; ``header`` None: there is no CSV.

        Raises:
            UserError: the column is missing.
        """
        if self.text is None or self.by_name or self.text in (header or ()):
            return
        if header is None:
            raise UserError(
                f"--group_by {self.text}: names a column, but {where} has no split.csv: add it, "
                r"or give a regular expression on the file names, as in '^(p\d+)_'."
            )
        hint = did_you_mean(self.text, header)
        raise UserError(
            f"--group_by {self.text}: {where} has no such column{hint}; it has {','.join(header)}."
        )

    def of(self, image: Path, row: dict[str, str | None], where: str) -> str:
        """The cluster of an image.

        Args:
            image: its file.
            row: the cells of its line; empty without a CSV.
            where: that line, for the sentence.

        Raises:
            UserError: the cell is empty, or the name does not match.
        """
        if self.text is None:
            return ""
        if not self.by_name:
            cell = (row.get(self.text) or "").strip()
            if not cell:
                raise UserError(
                    f'{where} has nothing in the column "{self.text}" of --group_by: fill it in.', 3
                )
            return cell
        match = re.search(self.text, image.stem)
        if not match or not match[1]:
            raise UserError(
                f"--group_by {self.text}: finds nothing in the name of {image}; correct the "
                "expression, or name a column of split.csv."
            )
        return match[1]

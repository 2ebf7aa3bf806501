"""`medseg data check DIR`: all that is wrong or doubtful in a data folder, at once."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.startup import settle

if TYPE_CHECKING:  # imported once settle() is done
    from ..console import Journal


def main(argv: Sequence[str] | None = None) -> int:
    """Checks a folder and prints what it finds.

    Args:
        argv: `check`, the folder and flags; None takes those of the process.

    Returns:
        0; 2 for a wrong flag; 3 where a training would refuse the folder.
    """
    settle()
    flags = _flags(argv)
    from ..console import guarded

    fits: list[bool] = []
    code = guarded(lambda journal: fits.append(_check(flags, journal)))
    return code if code or all(fits) else 3


def _check(flags: argparse.Namespace, journal: "Journal") -> bool:
    from ..document import print_document
    from .check import Options, check, unseen

    options = Options(
        Path(flags.dir),
        Path(flags.csv) if flags.csv else None,
        flags.classes,
        flags.seed,
        flags.ignore_index,
        flags.group_by,
    )
    done = check(options, unseen if flags.json else journal.progress)
    if flags.page:
        from .page import write_page

        write_page(done, Path(flags.page))
    if flags.json:
        print_document(done.as_dict())
        return done.fits
    from .show import show

    show(journal.console, done)
    if flags.page:
        journal.say(f"page: {flags.page}")
    return done.fits


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="medseg data", description="Looks after data folders.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser(
        "check",
        help="say all that is wrong or doubtful in a data folder",
        description="Reads every image and mask as a training would, and says all that is wrong or "
        "doubtful: pairs, sizes, depth, mask values, class frequencies, empty masks, copies.",
    )
    check.add_argument("dir", metavar="DIR", help="folder with images/ and masks/")
    check.add_argument("--csv", help="table image,mask,split,group; none: split.csv of the folder")
    check.add_argument("--classes", type=int, help="classes with the background")
    check.add_argument("--seed", type=int, default=0, help="of the split where no table says it")
    check.add_argument(
        "--ignore_index", "--ignore-index", type=int, help="mask value of pixels that nobody knows"
    )
    check.add_argument(
        "--group_by", "--group-by", help="column of the table, or expression on file names"
    )
    check.add_argument("--page", metavar="FILE", help="write an HTML page with a contact sheet")
    check.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

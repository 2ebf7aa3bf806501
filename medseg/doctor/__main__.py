"""`medseg doctor`: what this machine has, what each op takes and why, and what to mend."""

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.startup import settle

if TYPE_CHECKING:  # imported once settle() is done
    from argparse import Namespace

    from ..findings import Finding
    from .ops import Row


def main(argv: Sequence[str] | None = None) -> int:
    """Looks at the machine and prints what it finds.

    Args:
        argv: flags; None takes those of the process.

    Returns:
        0; 2 for a wrong flag; 3 where a training would not run or its numbers be wrong.
    """
    settle()
    try:
        return _look(_flags(argv))
    except ModuleNotFoundError as error:  # without these there is nothing to look with
        print(f"error: {error.name} is not installed: pip install {error.name}.", file=sys.stderr)
        return 3


def _look(flags: "Namespace") -> int:
    facts, rows, findings = examine(flags)
    from ..document import print_document
    from ..findings import by_level, fits

    healthy = fits(findings)
    if flags.json:
        document = {**facts, "ops": [row.as_dict() for row in rows]}
        document |= {"findings": [asdict(one) for one in by_level(findings)], "healthy": healthy}
        print_document(document)
    else:
        from rich.console import Console

        from .show import show

        show(Console(highlight=False), facts, rows, findings)
    return 0 if healthy else 3


def examine(flags: "Namespace") -> tuple[dict[str, Any], "list[Row]", "list[Finding]"]:
    """Returns the facts, the ops on all backends, and the findings."""
    from . import packages

    needed = packages.requirements()
    findings = packages.check_packages(needed)
    facts: dict[str, Any] = {
        "medseg": "checkout",
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": packages.versions(needed),
        "devices": [],
    }
    broken = {one.topic for one in findings if one.level == "error"}
    if "torch" in broken:
        return facts, [], findings
    from ..runs import installed_version
    from . import machine, ops

    facts["medseg"] = installed_version("medseg") or "checkout"
    facts["devices"] = machine.devices()
    rows, told = ops.survey()
    findings += [*told, *ops.check_built(rows), *ops.run_all(rows), *machine.check_gpu()]
    findings += [machine.check_threads(), machine.check_huge_pages()]
    findings += [machine.check_shm(flags.workers, flags.batch, flags.size)]
    findings += [machine.check_disk(Path(flags.out), flags.model), *machine.check_compilers()]
    return facts, rows, findings


def _flags(argv: Sequence[str] | None) -> "Namespace":
    import argparse
    import os

    parser = argparse.ArgumentParser(
        prog="medseg doctor",
        description="Says what this machine has, which backend each op takes and why not the "
        "others, runs each of them, and names the command that mends what is wrong.",
    )
    readers = min(4, os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    about = {
        "workers": (readers, "processes reading images, that /dev/shm must have room for"),
        "batch": (8, "images a step, for the same"),
        "size": (128, "height and width the network sees, for the same"),
        "model": ("dra_net_s", "network that the disk must have room for"),
        "out": ("runs", "folder for run folders, whose disk is looked at"),
    }
    for name, (default, text) in about.items():
        words = f"{text} ({default})"
        parser.add_argument(f"--{name}", type=type(default), default=default, help=words)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

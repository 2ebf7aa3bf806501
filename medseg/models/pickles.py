"""Looking through the pickles of a .pth file, without running them: their size and their names.

PyTorch's restricted reader is written in Python and takes a second or so for a million opcodes, so
a small file could keep it busy for minutes. PyTorch packs without compression, and the pickle
beside the numbers is short; a file that is otherwise is refused before it is read.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

_PICKLES = 5  # a file older than PyTorch 1.6 is this many pickles in a row, then numbers
_MOST_OPCODES = 1 << 20
_MOST_ENTRIES = 1 << 16  # of a zip
_ZIP = b"PK\3\4"


class Unfit(Exception):
    """What in a file is too large or not to be read, in the words that follow its name."""


def check_size(path: Path) -> None:
    """Refuses, by `Unfit`, a file whose pickles would take long to read."""
    for opcodes, _ in enumerate(_opcodes(path), 1):
        if opcodes > _MOST_OPCODES:
            raise Unfit(
                f"holds more than {_MOST_OPCODES} steps of pickle beside its numbers; save the "
                "state_dict() alone"
            )


def foreign_names(path: Path) -> set[str]:
    """Names in a file that PyTorch's restricted reader refuses; the file is listed, not run."""
    if _is_zip(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    found = [str(arg) for name, arg in _opcodes(path) if name == "GLOBAL"]
    return {re.sub("^__builtin__ ", "builtins ", name).replace(" ", ".") for name in found}


def _is_zip(path: Path) -> bool:
    """Whether PyTorch takes a file for a zip."""
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _opcodes(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, argument) of all opcodes in the pickles of a file."""
    if not _is_zip(path):
        with path.open("rb") as file:
            for _ in range(_PICKLES):
                yield from _of_pickle(file)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _check_entries(entries, path.stat().st_size)
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                with archive.open(entry) as file:
                    yield from _of_pickle(file)


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > _MOST_ENTRIES:
        raise Unfit(f"has {len(entries)} entries, more than {_MOST_ENTRIES}")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise Unfit("holds a TorchScript program; torch.jit.load it and save its state_dict()")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise Unfit("is compressed, which PyTorch does not do; save it anew")
    if sum(entry.file_size for entry in entries) > size:
        raise Unfit("has entries that are larger than the file")


def _of_pickle(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    for opcode, argument, _ in pickletools.genops(file):
        yield opcode.name, argument

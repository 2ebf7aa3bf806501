"""Data folders to break: small ones with random pixels, and copies of a part of the real sets."""

import shutil
from pathlib import Path

import pytest

from tests.data.conftest import Folder, folder, one_thread, real, small

__all__ = ["folder", "one_thread", "real", "small"]  # fixtures
PAIRS = 30  # of a real set


@pytest.fixture
def part(real, tmp_path):
    """A copy of the first and last pairs of a real set, to be broken: its folder and rows."""
    rows = [line.split(",") for line in (real / "split.csv").read_text().splitlines()[1:]]
    step = max(1, len(rows) // PAIRS)
    rows = rows[::step][:PAIRS]
    copy = Folder(tmp_path / real.name)
    for image, mask, *_ in rows:
        shutil.copy(real / "images" / image, copy.root / "images")
        shutil.copy(real / "masks" / mask, copy.root / "masks")
    shutil.copy(real / "classes.json", copy.root)
    return copy, rows


def write_rows(root: Path, rows: list[list[str]]) -> None:
    """split.csv of these rows."""
    lines = ["image,mask,split,group", *(",".join(row) for row in rows)]
    (root / "split.csv").write_text("\n".join(lines) + "\n")

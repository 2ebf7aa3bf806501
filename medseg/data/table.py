"""What a data set is: pairs of files, the part each belongs to, and what the mask values mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One image and its mask."""

    image: Path
    mask: Path
    split: str  # "train", "val" or "test"; training looks at the first two
    group: str  # free text, such as the cell type; "" where nothing is known
    cluster: str = ""  # what may not be divided, such as the patient; "": the image stands alone


@dataclass(frozen=True)
class Table:
    """A checked data set: every file in it was read once, every mask value has a class."""

    root: Path
    samples: tuple[Sample, ...]
    values: tuple[int, ...]  # the mask value of class 0, 1, ...; class 0 is the background
    names: tuple[str, ...]  # the name of class 0, 1, ...
    channels: int  # 1 where every image is gray, else 3
    ignore: int | None = None  # the mask value of pixels that nobody knows

    def part(self, split: str) -> list[Sample]:
        """The samples of one split, in the order of the table."""
        return [sample for sample in self.samples if sample.split == split]

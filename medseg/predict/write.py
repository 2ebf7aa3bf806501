"""One prediction, written to any number of files in one pass over its rows."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..inference import Slab, Trained
from ..inference.tiles import Rows
from .shown import Shown
from .writers import Part, Writer, open_writer


def write_files(
    image: Rows, slabs: Iterable[Slab], writers: Mapping[Path, type[Writer]], trained: Trained
) -> np.ndarray:
    """Writes what the network saw in an image.

    Args:
        image: what was shown to it.
        slabs: its answer, from top to bottom.
        writers: each file, and what writes it.
        trained: the network.

    Returns:
        Pixels of each class, (K,) int64.

    Raises:
        UserError: a file cannot be written.
    """
    shown = Shown(image) if any(make.shows for make in writers.values()) else None
    counts = np.zeros(len(trained.names), np.int64)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(open_writer(make, path, image.height, image.width, trained))
            for path, make in writers.items()
        ]
        for slab in slabs:
            labels = slab.labels
            below = slab.top + len(labels)
            pixels = None if shown is None else shown.rows(slab.top, below)
            part = Part(slab.top, labels, slab.probabilities, pixels)
            for writer in opened:
                writer.add(part)
            counts += np.bincount(labels.ravel(), minlength=len(counts))
    return counts

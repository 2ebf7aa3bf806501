"""The numbers of every epoch for TensorBoard."""

import math
from typing import Any

from ..runs import RunFolder


class Board:
    """Writes scalars below `tensorboard/` in a run folder.

    Args:
        run: the folder.
        epoch: what was written after it, by a run that is gone on with, counts no more.
    """

    def __init__(self, run: RunFolder, epoch: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=epoch + 1)

    def add(self, line: dict[str, Any]) -> None:
        """Writes a row of metrics.csv."""
        for name, value in line.items():
            if name != "epoch" and math.isfinite(value):
                self._writer.add_scalar(name, value, line["epoch"])
        self._writer.flush()

"""A training that can start, and what it says of itself in its files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from ..config import TrainConfig
from ..data import Table
from ..engine import Engine, Scored
from ..evaluation import class_columns
from ..metrics import iou_from_dice


@dataclass
class Job:
    """A training that can start."""

    config: TrainConfig
    table: Table
    fabric: Fabric
    network: nn.Module
    ops: dict[str, str]  # op -> the backend it uses, in words
    state: dict[str, Any] | None  # of the run to go on with

    @property
    def data_name(self) -> str:
        """The name of the data set's folder."""
        return self.table.root.resolve().name

    @property
    def options(self) -> dict[str, Any]:
        """The options of the network that its weights or its outputs depend on."""
        deep = {"deep_supervision": True} if self.config.deep_supervision else {}
        return self.config.model_options | deep

    @property
    def device_name(self) -> str:
        """The device, and how many processes use one like it."""
        device = self.fabric.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        return f"{name} x {self.fabric.world_size}" if self.fabric.world_size > 1 else name

    @property
    def dice_columns(self) -> list[str]:
        """The columns of class 1, 2, ... in metrics.csv and scores.csv; no two are alike."""
        return [f"dice_{word}" for word in class_columns(self.table.names[1:])]

    def split_rows(self) -> list[dict[str, str]]:
        """The rows of split.csv, for `--csv` with the same data folder."""
        clusters = any(sample.cluster for sample in self.table.samples)
        return [
            {
                "image": _relative(sample.image, self.table.root, "images"),
                "mask": _relative(sample.mask, self.table.root, "masks"),
                "split": sample.split,
                "group": sample.group,
            }
            | ({"cluster": sample.cluster} if clusters else {})
            for sample in self.table.samples
        ]

    def score_rows(self, scored: Sequence[Scored]) -> list[dict[str, Any]]:
        """The rows of scores.csv; an empty cell is a value left out."""
        return [
            {"image": row.image, "group": sample.group}
            | dict(zip(self.dice_columns, row.dice, strict=True))
            | {
                "iou" + column[4:]: None if value is None else iou_from_dice(value)
                for column, value in zip(self.dice_columns, row.dice, strict=True)
            }
            for row, sample in zip(scored, self.table.part("val"), strict=True)
        ]

    def weights_metadata(self, engine: Engine) -> dict[str, Any]:
        """What best.safetensors says of itself: enough to rebuild the network and use it."""
        return {
            "format": "pt",
            "medseg": "1",
            "model": self.config.model,
            "in_channels": self.table.channels,
            "classes": len(self.table.names),
            "size": self.config.size,
            "patches": self.config.patches is not None,
            "class_names": list(self.table.names),
            "mask_values": list(self.table.values),
            "options": self.options,
            "normalize": self.config.normalize,
            "epoch": engine.best_epoch,
            "dice": engine.best,
        } | ({"window": self.config.size} if self.config.patches is not None else {})


def _relative(path: Path, root: Path, folder: str) -> str:
    for base in (root / folder, root):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return str(path)

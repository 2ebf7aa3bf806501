"""The train and the val part, opened as a training's flags say."""

import os

from lightning_fabric import Fabric

from ..config import TrainConfig
from ..data import (
    Augmentation,
    SegmentationSet,
    Table,
    build_augmentation,
    median_frequency_weights,
)


def open_sets(
    config: TrainConfig, table: Table, fabric: Fabric
) -> tuple[SegmentationSet, SegmentationSet]:
    """Opens the train and the val part; --cache is shared by them and the machine's processes."""
    parts = table.part("train"), table.part("val")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", fabric.world_size))
    each = config.cache * 1e9 / processes / sum(len(part) for part in parts)
    train, val = (
        SegmentationSet(table, part, config.size, int(each * len(part))) for part in parts
    )
    return train, val


def augmentation(config: TrainConfig) -> Augmentation | None:
    """What --augment does to a batch; with --ignore_index, pixels moved in are unknown."""
    if not config.augment:
        return None
    return build_augmentation(config.size, ignore=config.ignore_index is not None)


def class_weights(config: TrainConfig, table: Table) -> tuple[float, ...] | None:
    """The weights of the classes in the loss, from the train part; None if not asked for."""
    if config.class_weights == "none":
        return None
    return median_frequency_weights(table, table.part("train"))

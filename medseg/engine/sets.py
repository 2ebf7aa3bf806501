"""The train and the val part, opened as a training's flags say."""

import os

from lightning_fabric import Fabric

from ..config import TrainConfig
from ..data import (
    Augmentation,
    PatchSet,
    SegmentationSet,
    Table,
    build_augmentation,
    median_frequency_weights,
)
from ..errors import UserError
from ..losses import Loss
from .scoring import Scorer
from .windows import WindowScorer

_LOSS_PATCHES = 4  # of each val image, for the val loss; the scores are of whole images

Set = SegmentationSet | PatchSet


def open_sets(config: TrainConfig, table: Table, fabric: Fabric) -> tuple[Set, Set]:
    """Opens the train and the val part; --cache is shared by them and the machine's processes."""
    parts = table.part("train"), table.part("val")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", fabric.world_size))
    each = config.cache * 1e9 / processes / sum(len(part) for part in parts)
    budgets = [int(each * len(part)) for part in parts]
    rescales = config.rescale_range, None  # val images are seen as they are
    if config.patches is None:
        train, val = (
            SegmentationSet(table, part, config.size, budget, rescale, config.seed)
            for part, budget, rescale in zip(parts, budgets, rescales, strict=True)
        )
    else:
        assert isinstance(config.patches, int)  # `prepare` has counted
        counts = config.patches, min(config.patches, _LOSS_PATCHES)
        train, val = (
            PatchSet(
                table, part, config.size, count, config.foreground, config.seed, budget, rescale
            )
            for part, count, budget, rescale in zip(parts, counts, budgets, rescales, strict=True)
        )
    return train, val


def open_scorer(config: TrainConfig, val: Set, fabric: Fabric, loss: Loss) -> Scorer:
    """What scores networks on the val part, as they were shown the train part."""
    if isinstance(val, PatchSet):
        return WindowScorer(val, fabric, loss, config.images, config.normalize)
    return Scorer(val, fabric, loss, config.images, config.normalize)


def augmentation(config: TrainConfig) -> Augmentation | None:
    """What --augment does to a batch; with --ignore_index, pixels moved in are unknown."""
    if not config.augment:
        return None
    return build_augmentation(config.size, ignore=config.ignore_index is not None)


def class_weights(config: TrainConfig, table: Table) -> tuple[float, ...] | None:
    """The weights of the classes in the loss; None if not asked for.

    Raises:
        UserError: there are more or fewer than classes.
    """
    if config.class_weights == "none":
        return None
    if (numbers := config.class_numbers) is not None:
        if len(numbers) != len(table.names):
            raise UserError(
                f"--class_weights {config.class_weights}: must be {len(table.names)} numbers, for "
                f"{', '.join(table.names)}."
            )
        return numbers
    return median_frequency_weights(table, table.part("train"))


def describe_sets(
    config: TrainConfig, table: Table, train: Set, val: Set, weights: tuple[float, ...] | None
) -> list[str]:
    """Lines for the log on what the flags about data have led to."""
    lines = []
    if isinstance(train, PatchSet):
        lines.append(
            f"patches  {train.patches} of each image an epoch, {train.foreground:.0%} of them "
            "centred on a foreground class"
        )
    if weights is not None:
        pairs = zip(table.names, weights, strict=True)
        lines.append("weights  " + ", ".join(f"{name} {weight:.3g}" for name, weight in pairs))
    kept, count = train.kept + val.kept, len(train.samples) + len(val.samples)
    if kept < count:
        lines.append(
            f"cache    {kept} of {count} images lie in memory, the others are read each time: "
            f"--cache {config.cache:g} GB, or half of the free memory, holds no more"
        )
    return lines

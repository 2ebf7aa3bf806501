"""The val part, scored at the original resolution of its images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ..data import PatchSet, SegmentationSet, read_mask, to_labels, to_original
from ..data.normalize import normalize
from ..losses import Loss
from ..metrics import image_scores


@dataclass(frozen=True)
class Scored:
    """The Dice of one image in class 1, 2, ...; None where neither mask nor prediction has it."""

    image: str
    dice: list[float | None]


@dataclass(frozen=True)
class Scorer:
    """Scores networks on one set, each image scaled into a square.

    Args:
        data: the val part.
        fabric: launched; its processes share the images, none gets one twice.
        loss: from `build_loss`.
        batch: images a forward pass.
        normalize: as in the config.
    """

    data: SegmentationSet | PatchSet
    fabric: Fabric
    loss: Loss
    batch: int
    normalize: str = "none"

    def score(self, network: nn.Module) -> tuple[list[Scored], float]:
        """Scores each image at its original size; every process does its share.

        Returns:
            The scores in the order of the table, the same in every process, and the mean loss.
        """
        share: list[tuple[int, Scored, float]] = []
        mine = range(self.fabric.global_rank, len(self.data), self.fabric.world_size)
        for index, logits, target in self._logits(network, mine):
            loss = float(self.loss(logits[None], target[None]))
            sample = self.data.samples[index]
            mask = read_mask(sample.mask, self.data.table)
            dice = image_scores(labels_at(logits, mask.shape), mask, len(self.data.table.names))
            share.append((index, Scored(sample.image.name, dice), loss))
        return self._together(share)

    def predict(self, network: nn.Module, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns the predicted class of every pixel of some images."""
        masks = (self.data.samples[index].mask for index in indices)
        shapes = [read_mask(mask, self.data.table).shape for mask in masks]
        return [
            labels_at(logits, shape)
            for (_, logits, _), shape in zip(self._logits(network, indices), shapes, strict=True)
        ]

    @torch.no_grad()
    def _logits(
        self, network: nn.Module, indices: Sequence[int]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (index, logits (K, size, size), target (size, size))."""
        network.eval()
        for start in range(0, len(indices), self.batch):
            chosen = indices[start : start + self.batch]
            items: list[Any] = [self.data[i] for i in chosen]
            logits = self._forward(network, torch.stack([item["image"] for item in items]))
            for index, item, one in zip(chosen, items, logits, strict=True):
                yield index, one, item["mask"].to(one.device)

    def _forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """(N, C, size, size) in 0..1 -> float32 logits (N, K, size, size)."""
        images = normalize(images.to(self.fabric.device), self.normalize)
        with self.fabric.autocast():
            return network(images).float()

    def _together(self, share: list[tuple[int, Scored, float]]) -> tuple[list[Scored], float]:
        """The (place, scores, loss) of all processes: the scores by place, the mean loss."""
        shares: list[Any] = [share]
        if self.fabric.world_size > 1:
            shares = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(shares, share)
        rows = sorted((row for part in shares for row in part), key=lambda row: row[0])
        return [row[1] for row in rows], float(np.mean([row[2] for row in rows]))


def labels_at(logits: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the class of every pixel, (H, W) uint8, at the size of the file."""
    return to_labels(to_original(logits, *shape))

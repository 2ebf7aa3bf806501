"""The val part of a network that was shown patches: windows slide over whole images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import PatchSet, read_image, read_mask
from ..inference import Pixels, View, slabs
from ..metrics import image_scores
from .scoring import Scored, Scorer


@dataclass(frozen=True)
class WindowScorer(Scorer):
    """Scores networks on the images of a `PatchSet`, each at its own resolution.

    The scores are of all windows together; the loss is the mean over the patches of the set, which
    are the same in every epoch. Arguments as of `Scorer`.
    """

    data: PatchSet

    @torch.no_grad()
    def score(self, network: nn.Module) -> tuple[list[Scored], float]:
        """Scores as `Scorer.score` does."""
        network.eval()
        share: list[tuple[int, Scored, float]] = []
        for index in range(self.fabric.global_rank, len(self.data.samples), self.fabric.world_size):
            sample = self.data.samples[index]
            mask = read_mask(sample.mask, self.data.table)
            dice = image_scores(self._labels(network, index), mask, len(self.data.table.names))
            share.append((index, Scored(sample.image.name, dice), self._loss(network, index)))
        return self._together(share)

    @torch.no_grad()
    def predict(self, network: nn.Module, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns the predicted class of every pixel of some images."""
        network.eval()
        return [self._labels(network, index) for index in indices]

    def _labels(self, network: nn.Module, index: int) -> np.ndarray:
        pixels = read_image(self.data.samples[index].image, self.data.table.channels)
        view = View(self.data.size, window=self.data.size, patches=True)

        def forward(squares: Tensor) -> Tensor:
            return self._forward(network, squares)

        found = slabs(Pixels(pixels), forward, view, batch=self.batch)
        return np.concatenate([slab.labels for slab in found])

    def _loss(self, network: nn.Module, index: int) -> float:
        count = self.data.patches
        items: list[Any] = [self.data[index * count + number] for number in range(count)]
        images, masks = (torch.stack([item[key] for item in items]) for key in ("image", "mask"))
        logits = self._forward(network, images)
        return float(self.loss(logits, masks.to(logits.device)))

"""Averaged weights: those of all steps, later ones counting more."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """A copy of a network that every step draws a little towards it.

    average = d * average + (1 - d) * weights with d = min(decay, (1 + n) / (10 + n)) after n steps,
    so that the first weights are soon forgotten. Running statistics are averaged as well.

    Args:
        network: on its device.
        decay: 0 to 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the weights of the network after one more step."""
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mine, theirs in zip(_tensors(self.network), _tensors(network), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, weight)
            else:
                mine.copy_(theirs)
        self.steps += 1


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]

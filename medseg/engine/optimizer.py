"""The optimizers by name."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..config import TrainConfig


def build_optimizer(config: TrainConfig, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that `config` names, on weights that are on their device.

    On a CPU it goes through the weights once a step, not once an operation; a GPU's own way is
    kept, since fused optimizers there refuse clipping with scaled gradients.
    """
    weights = list(weights)
    about: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if weights[0].device.type == "cpu":
        about["fused"] = True
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, momentum=config.momentum, **about)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    return kinds[config.optimizer](weights, **about)

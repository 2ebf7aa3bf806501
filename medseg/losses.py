"""Losses by name: MONAI's, in float32 at any precision, blind to pixels labelled -1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError

IGNORE = -1  # the label of pixels that nobody knows; the data writes it, every loss leaves it out

Loss = Callable[[Tensor, Tensor], Tensor]


def build_loss(name: str, classes: int) -> Loss:
    """The loss called ``name``: (logits (N, K, H, W), target int64 (N, H, W)) -> float32 scalar.

    dice: 1 - Dice of the softmax, over the whole batch, mean over all classes.
    ce: cross entropy, mean over the known pixels.
    dice_ce: their sum.
    focal: cross entropy times (1 - p)^2, mean over the known pixels.

    Args:
        name: one of ``LOSSES``.
        classes: K, background included.

    Raises:
        UserError: ``name`` is unknown.
        ValueError: ``classes`` is below 2.
    """
    if name not in LOSSES:
        raise UserError(f"--loss {name}: unknown; known: {', '.join(LOSSES)}.", code=2)
    if classes < 2:
        raise ValueError(f"classes must be at least 2, background included, got {classes}")
    loss = LOSSES[name]()

    def call(output: Any, target: Tensor) -> Tensor:
        logits, aux = output if isinstance(output, tuple) else (output, ())
        with torch.autocast(logits.device.type, enabled=False):
            total = loss(logits.float(), target)
            for each in aux:
                total = total + loss(each.float(), target)
            return total

    return call


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    total = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)


def _dice() -> Loss:
    from monai.losses.dice import DiceLoss

    dice = DiceLoss(softmax=True, to_onehot_y=True, batch=True, ignore_index=IGNORE)
    return lambda logits, target: dice(logits, target[:, None])


def _dice_ce() -> Loss:
    dice = _dice()
    return lambda logits, target: dice(logits, target) + _cross_entropy(logits, target)


def _focal() -> Loss:
    from monai.losses.focal_loss import FocalLoss

    focal = FocalLoss(use_softmax=True, to_onehot_y=True, ignore_index=IGNORE)
    return lambda logits, target: focal(logits, target[:, None])


LOSSES: dict[str, Callable[[], Loss]] = {
    "dice": _dice,
    "ce": lambda: _cross_entropy,
    "dice_ce": _dice_ce,
    "focal": _focal,
}

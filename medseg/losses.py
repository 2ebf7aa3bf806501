"""Losses by name: MONAI's and the networks' own, in float32 at any precision, blind to label -1.

dice: 1 - Dice of the softmax, over the whole batch, mean over all classes.
ce: cross entropy, mean over the known pixels.
dice_ce: their sum.
focal: cross entropy times (1 - p)^2, mean over the known pixels.
bce: binary cross entropy of each class against the rest, mean over known pixels and classes.
dra_net: cross entropy, as "ce".
dpsau2_net: 1 - (2 I + 1) / (S + 1) over the whole batch; of the softmax, mean over all classes, or
    with K = 1 of the sigmoid.
drrmsan: as "bce", with probabilities clipped to 1e-7 .. 1 - 1e-7.
hpddrnet: `ohem_cross_entropy`.

Weights of classes: each class's term of the Dice and each pixel's term of the focal loss are
multiplied by its own; the cross entropy is the weighted mean, sum(w l) / sum(w); hpddrnet takes
them as published. The other losses take none.

Those of the networks bear their names. Their sources are the specifications' readings of the
authors' code: DRA-Net (github.com/W-JFenf/DRA-Net), DPSAU2-Net (github.com/WKSalt/DPSAU2-Net),
DRRMSAN (github.com/Jimut123/drrmsan_tests) and HPDDRNet (github.com/fanjuchen/HPDDRNet).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError

IGNORE = -1  # the label of pixels that nobody knows; the data writes it, every loss leaves it out
AUX_WEIGHT = 0.4  # of each auxiliary output, where the published loss has no weight of its own
AUX_WEIGHTS = {"hpddrnet": 0.6, "drrmsan": 1.0}
_CLIP = 1e-7  # Keras keeps probabilities this far from 0 and 1

Loss = Callable[[Any, Tensor], Tensor]


def build_loss(name: str, classes: int, class_weight: Sequence[float] | None = None) -> Loss:
    """The loss called ``name``: (output, target int64 (N, H, W)) -> scalar.

    The output is logits (N, K, H, W), or a pair of those and a tuple of auxiliary logits of the
    same shape, as networks with deep supervision return in training: then each auxiliary one is
    added with weight 0.6 in "hpddrnet", 1 in "drrmsan" and 0.4 in all others. Logits in half
    precision are widened to float32 first, autocast or not.

    Args:
        name: one of ``LOSSES``; the head of this file says what they are.
        classes: K, background included; 1 for logits of a foreground alone, which only bce,
            dpsau2_net and drrmsan can take.
        class_weight: K factors of the classes; None for none.

    Raises:
        UserError: ``name`` is unknown, or takes no weights.
        ValueError: ``classes`` is below 2, or for those three below 1. The loss of one class
            raises it for a target on the CPU that has values above 1, as masks of 0 and 255 do;
            on a GPU nobody looks, which would be waiting for it.
    """
    loss, weight = _chosen(name, classes, class_weight), AUX_WEIGHTS.get(name, AUX_WEIGHT)

    def call(output: Any, target: Tensor) -> Tensor:
        if classes == 1:
            _refuse_many_values(target)
        logits, aux = output if isinstance(output, tuple) else (output, ())
        with torch.autocast(logits.device.type, enabled=False):
            total = loss(_wide(logits), target)
            for each in aux:
                total = total + weight * loss(_wide(each), target)
            return total

    return call


def _chosen(name: str, classes: int, class_weight: Sequence[float] | None) -> Loss:
    """The loss of one map of logits."""
    if name not in LOSSES:
        raise UserError(f"--loss {name}: unknown; known: {', '.join(LOSSES)}.", code=2)
    least = 1 if name in _BINARY else 2
    if classes < least:
        raise ValueError(
            f"classes must be at least {least} for {name}, "
            f"{'background included' if least == 2 else 'the foreground'}, got {classes}"
        )
    if class_weight is None:
        return LOSSES[name](classes)
    refuse_weights(name)
    if len(class_weight) != classes:
        raise ValueError(f"class_weight must have {classes} values, got {len(class_weight)}")
    return _WEIGHTED[name](classes, torch.tensor(class_weight, dtype=torch.float32))


def _refuse_many_values(target: Tensor) -> None:
    if target.device.type == "cpu" and target.numel() and (most := target.max().item()) > 1:
        raise ValueError(
            f"target must hold 0, 1 and -1 (unknown) for a loss of one class, got the value {most}:"
            " take (mask > 0).long() of a mask of 0 and 255"
        )


def refuse_weights(name: str) -> None:
    """Refuses weights of classes for a loss that has no place for them.

    Raises:
        UserError: it has none.
    """
    if name not in _WEIGHTED:
        raise UserError(
            f"--class_weights: --loss {name} takes none; those that do: {', '.join(_WEIGHTED)}."
        )


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    threshold: float = 0.9,
    min_kept: int = 131072,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Cross entropy, mean over the pixels whose own class got the least probability.

    With p the probability of the true class, over the known pixels of the batch: those with
    p < max(the p of rank min_kept, threshold) count, each the same whatever its class weight.

    Args:
        logits: (N, K, H, W).
        target: int64 (N, H, W), -1 where unknown.
        threshold: at most this sure is a pixel that always counts.
        min_kept: at least so many pixels count, if there are so many.
        class_weight: (K,), factors of the cross entropy; HPDDRNet's for grains, pores and clay are
            (0.8373, 0.918, 0.866).

    Returns:
        Scalar; 0 where no pixel is known or below the bound.
    """
    losses = F.cross_entropy(
        logits, target, weight=class_weight, ignore_index=IGNORE, reduction="none"
    )
    with torch.no_grad():
        known = target != IGNORE
        own = logits.softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
        own = own.masked_fill(~known, math.inf)
        rank = (known.sum() - 1).clamp(0, min_kept)
        bound = own.flatten().sort().values[rank].clamp(min=threshold)
        kept = known & (own < bound)
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype is torch.float64 else logits.float()


def _cross_entropy(weight: Tensor | None = None) -> Loss:
    def call(logits: Tensor, target: Tensor) -> Tensor:
        factors = None if weight is None else weight.to(logits)
        total = F.cross_entropy(logits, target, factors, ignore_index=IGNORE, reduction="sum")
        known = target != IGNORE
        if factors is None:
            return total / known.sum().clamp(min=1)
        mass = (factors[target.clamp(min=0)] * known).sum()
        return total / mass.clamp(min=torch.finfo(mass.dtype).tiny)

    return call


def _binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Class by class against the rest; with one class, against 0."""
    known = (target != IGNORE)[:, None]
    classes = torch.arange(logits.shape[1], device=target.device)[:, None, None]
    planes = target[:, None] == (classes if logits.shape[1] > 1 else classes + 1)
    losses = F.binary_cross_entropy_with_logits(logits, planes.to(logits), reduction="none")
    losses = losses.masked_fill(~known, 0)
    return losses.sum() / (known.sum() * logits.shape[1]).clamp(min=1)


def _clipped(logits: Tensor, target: Tensor) -> Tensor:
    limit = math.log((1 - _CLIP) / _CLIP)
    return _binary_cross_entropy(logits.clamp(-limit, limit), target)


def _dice(classes: int, weight: Tensor | None = None, smooth: float = 1e-5) -> Loss:
    from monai.losses.dice import DiceLoss

    several = classes > 1
    dice = DiceLoss(
        softmax=several,
        sigmoid=not several,
        to_onehot_y=several,
        batch=True,
        ignore_index=IGNORE,
        smooth_nr=smooth,
        smooth_dr=smooth,
        weight=weight,
    )
    return lambda logits, target: dice(logits, target[:, None])


def _dice_ce(classes: int, weight: Tensor | None = None) -> Loss:
    dice, entropy = _dice(classes, weight), _cross_entropy(weight)
    return lambda logits, target: dice(logits, target) + entropy(logits, target)


def _focal(classes: int, weight: Tensor | None = None) -> Loss:
    from monai.losses.focal_loss import FocalLoss

    focal = FocalLoss(use_softmax=True, to_onehot_y=True, ignore_index=IGNORE, weight=weight)
    return lambda logits, target: focal(logits, target[:, None])


def _ohem(weight: Tensor) -> Loss:
    return lambda logits, target: ohem_cross_entropy(logits, target, class_weight=weight.to(logits))


LOSSES: dict[str, Callable[[int], Loss]] = {
    "dice": _dice,
    "ce": lambda classes: _cross_entropy(),
    "dice_ce": _dice_ce,
    "focal": _focal,
    "bce": lambda classes: _binary_cross_entropy,
    "dra_net": lambda classes: _cross_entropy(),
    "dpsau2_net": lambda classes: _dice(classes, smooth=1.0),
    "drrmsan": lambda classes: _clipped,
    "hpddrnet": lambda classes: ohem_cross_entropy,
}
_WEIGHTED: dict[str, Callable[[int, Tensor], Loss]] = {
    "dice": _dice,
    "ce": lambda classes, weight: _cross_entropy(weight),
    "dice_ce": _dice_ce,
    "focal": _focal,
    "hpddrnet": lambda classes, weight: _ohem(weight),
}
_BINARY = ("bce", "dpsau2_net", "drrmsan")

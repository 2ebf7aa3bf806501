"""The learning rate of every step, from numbers that a checkpoint holds anyway."""

import math
from collections.abc import Sequence

from ..config import TrainConfig


def learning_rate(
    config: TrainConfig, step: int, steps: int, total: int, val_losses: Sequence[float] = ()
) -> float:
    """The rate of a step: a linear warm-up to the peak, then what the schedule says.

    cosine: half a cosine; poly: (1 - part of the steps done) ** power; both end at lr_end * lr.
    step: times gamma after every step_size epochs. plateau: times gamma whenever step_size epochs
    in a row brought no lower val loss, not below lr_end * lr. constant: the peak.

    Args:
        config: gives lr and the fields named above.
        step: 1, 2, ..., total.
        steps: of an epoch.
        total: steps of the training.
        val_losses: of the epochs until now, for plateau.
    """
    warm = round(config.warmup * total)
    if step <= warm:
        return config.lr * step / warm
    factor, end = 1.0, config.lr_end
    if config.schedule == "cosine":
        done = (step - warm) / max(1, total - warm)
        factor = end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "poly":
        done = (step - 1 - warm) / max(1, total - warm)
        factor = end + (1 - end) * (1 - done) ** config.power
    elif config.schedule == "step":
        factor = config.gamma ** ((step - 1) // steps // config.step_size)
    elif config.schedule == "plateau":
        factor = max(end, config.gamma ** plateaus(val_losses, config.step_size))
    return config.lr * factor


def plateaus(losses: Sequence[float], patience: int) -> int:
    """How many times `patience` losses in a row were not below the least before them."""
    least, waited, count = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < least else waited + 1
        least = min(least, loss)
        if waited == patience:
            count, waited = count + 1, 0
    return count

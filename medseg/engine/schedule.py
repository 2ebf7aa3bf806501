"""The learning rate of every step."""

import math

_WARM_UP = 0.05  # of all steps
_FLOOR = 0.01  # of the peak learning rate, at the end


def learning_rate(peak: float, step: int, total: int) -> float:
    """The rate of step 1..total: a linear warm-up, then half a cosine down to 1 % of the peak."""
    warm = max(1, round(_WARM_UP * total))
    if step <= warm:
        return peak * step / warm
    done = (step - warm) / max(1, total - warm)
    return peak * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))

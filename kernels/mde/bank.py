"""The smoothing masks of the MDE filter: one table for the reference and every launcher.

Everything here is plain Python in double precision; a launcher rounds once, at the end.
"""

import functools
import itertools
import math
from collections.abc import Sequence

BANKS = ("binomial", "opencv", "gauss", "box", "cross")
FAST_SCALE = 7  # the largest scale of the fast backends
_OPENCV = {3: (1, 2, 1), 5: (1, 4, 6, 4, 1), 7: (2, 7, 14, 18, 14, 7, 2)}

Quadrant = tuple[tuple[float, ...], ...]


def widths(scales: Sequence[int]) -> tuple[int, ...]:
    """``scales`` as a tuple; refuses what is no sequence of integers."""
    if not isinstance(scales, Sequence) or not all(isinstance(k, int) for k in scales):
        raise ValueError(f"scales must be a sequence of integers, got {scales!r}")
    return tuple(scales)


def check_bank(scales: tuple[int, ...], bank: str) -> None:
    """Refuses scales that do not rise or are even, and a bank that is unknown at these scales."""
    if not scales or any(k < 3 or k % 2 == 0 for k in scales):
        raise ValueError(f"scales must be odd and at least 3, got {scales}")
    if any(a >= b for a, b in itertools.pairwise(scales)):
        raise ValueError(f"scales must rise, got {scales}")
    name = bank.partition("(")[0] if isinstance(bank, str) else None
    if name not in BANKS or (name != bank and name != "gauss"):
        raise ValueError(f"bank must be one of {', '.join(BANKS)}, got {bank!r}")
    allowed = {"opencv": (3, 5, 7), "cross": (3,)}.get(name, scales)
    if any(k not in allowed for k in scales):
        raise ValueError(f"bank {name} has the scales {allowed}, got {scales}")
    if name == "gauss":
        _sigmas(scales, bank)


# What torch.compiler.assume_constant_result does, without its import of torch._dynamo.
check_bank._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _sigmas(scales: tuple[int, ...], bank: str) -> tuple[float, ...]:
    """The widths of ``gauss`` (OpenCV's rule) or those written in ``gauss(0.8,1.1,1.4)``."""
    if bank == "gauss":
        return tuple(0.3 * ((k - 1) / 2 - 1) + 0.8 for k in scales)
    try:
        sigmas = tuple(float(s) for s in bank.removeprefix("gauss(").removesuffix(")").split(","))
    except ValueError:
        sigmas = ()
    fits = len(sigmas) == len(scales) and all(0.001 <= s <= 1000 for s in sigmas)  # no NaN
    if not fits or not bank.endswith(")"):
        raise ValueError(
            f"bank gauss(...) must name {len(scales)} widths from 0.001 to 1000, one a scale, "
            f"got {bank!r}"
        )
    return sigmas


def row(scale: int, bank: str, sigma: float = 0.0) -> tuple[float, ...]:
    """The 1-D row of a separable mask: ``scale`` values that sum to 1; not for ``cross``."""
    if bank == "binomial":
        weights = [float(math.comb(scale - 1, i)) for i in range(scale)]
    elif bank == "opencv":
        weights = [float(w) for w in _OPENCV[scale]]
    elif bank == "box":
        weights = [1.0] * scale
    else:
        weights = [math.exp(-((i - scale // 2) ** 2) / (2 * sigma**2)) for i in range(scale)]
    total = sum(weights)
    return tuple(w / total for w in weights)


def quadrants(scales: tuple[int, ...], bank: str) -> tuple[Quadrant, ...]:
    """Masks G_0 (the unit impulse), G_1, ..., G_S as quadrants from the centre.

    ``quadrants(...)[j][dy][dx]`` is the weight of G_j at the offsets (+-dy, +-dx); all quadrants
    are (p + 1) x (p + 1) with p = max(scales) // 2, filled up by zeros, and symmetric.
    """
    return _quadrants(scales, bank)


quadrants._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@functools.cache
def _quadrants(scales: tuple[int, ...], bank: str) -> tuple[Quadrant, ...]:
    size = max(scales) // 2 + 1
    impulse = tuple(tuple(float(dy == dx == 0) for dx in range(size)) for dy in range(size))
    sigmas = _sigmas(scales, bank) if bank.startswith("gauss") else (0.0,) * len(scales)
    found = [impulse]
    for k, sigma in zip(scales, sigmas, strict=True):
        if bank == "cross":
            mask = [[0.2, 0.2], [0.2, 0.0]]
        elif bank == "box":  # 1 / k^2 itself: the product of two roundings would not be
            mask = [[1.0 / k**2] * (k // 2 + 1)] * (k // 2 + 1)
        else:
            half = row(k, bank.partition("(")[0], sigma)[k // 2 :]
            mask = [[a * b for b in half] for a in half]
        found.append(tuple(_filled(mask[dy] if dy < len(mask) else [], size) for dy in range(size)))
    return tuple(found)


def _filled(values: list[float], size: int) -> tuple[float, ...]:
    return tuple(values) + (0.0,) * (size - len(values))

"""What every op asks of its arguments, checked once at the Python door."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_map(x: Tensor, name: str = "x") -> None:
    """Refuses what is no float map (N, C, H, W)."""
    if x.dim() != 4:
        raise ValueError(f"{name} must be (N, C, H, W), got {tuple(x.shape)}")
    if x.dtype not in FLOATS:
        raise ValueError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")


def fit(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    shapes: Sequence[tuple],
    optional: Sequence[int] = (),
) -> bool:
    """Whether `check_parameters` and the shapes have nothing to say; the quick way to know it.

    None fits at the places in ``optional`` alone.
    """
    if parameters[0] is None:
        return False
    device, dtype = x.device, parameters[0].dtype
    if dtype is not x.dtype and dtype is not torch.float32:
        return False
    for place, (given, shape) in enumerate(zip(parameters, shapes, strict=True)):
        if given is None:
            if place not in optional:
                return False
        elif given.dtype is not dtype or given.shape != shape or given.device != device:
            return False
    return True


def check_parameters(x: Tensor, parameters: dict[str, Tensor | None]) -> None:
    """Refuses parameters that are not beside ``x`` or of mixed dtypes.

    The first, which cannot be None, has the dtype of ``x`` or float32, the others its dtype.
    """
    first, leader = next(iter(parameters.items()))
    dtype = leader.dtype  # pyright: ignore[reportOptionalMemberAccess]
    device = x.device  # asked once: making the object is what costs
    if dtype is not x.dtype and dtype is not torch.float32:
        raise ValueError(f"{first} must be {x.dtype} like x or float32, got {dtype}")
    for name, given in parameters.items():
        if given is None:
            continue
        if given.dtype is not dtype:
            raise ValueError(f"{name} must be {dtype} like {first}, got {given.dtype}")
        if given.device != device:
            raise ValueError(f"{name} must be on {device} like x, got {given.device}")

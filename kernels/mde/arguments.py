"""What the MDE filter asks of its arguments, and how it brings their dtypes together."""

import torch
from torch import Tensor

from .._arguments import FLOATS, check_map
from .bank import check_bank

PADS = ("zero", "reflect")


def check_input(
    x: Tensor, gains: Tensor, scales: tuple[int, ...], bank: str, pad: str, name: str = "x"
) -> None:
    """Refuses a map, gains or options that do not go together."""
    check_map(x, name)
    if not x.numel() and 0 in x.shape[1:]:
        raise ValueError(f"{name} must have C, H and W of at least 1, got {tuple(x.shape)}")
    check_bank(scales, bank)
    shape = tuple(gains.shape)
    if len(shape) != 2 or shape[0] not in (1, x.shape[1]) or shape[1] != len(scales) + 1:
        raise ValueError(
            f"gains must be ({x.shape[1]}, {len(scales) + 1}) or (1, {len(scales) + 1}), "
            f"got {shape}"
        )
    if gains.dtype is not torch.float32 and (gains.dtype, x.dtype) != (torch.float64,) * 2:
        raise ValueError(f"gains must be torch.float32 beside {x.dtype}, got {gains.dtype}")
    if gains.device != x.device:
        raise ValueError(f"gains must be on {x.device} like {name}, got {gains.device}")
    if pad not in PADS:
        raise ValueError(f"pad must be one of {', '.join(PADS)}, got {pad!r}")
    smallest = max(scales) // 2 + 1
    if pad == "reflect" and (x.shape[2] < smallest or x.shape[3] < smallest):
        raise ValueError(
            f"{name} must have H and W of at least {smallest} to reflect, got {tuple(x.shape)}"
        )


def check_up(up: Tensor, skip: Tensor) -> None:
    """Refuses a map of the decoder that does not fit beside ``skip``."""
    check_map(up, "up")
    n, _, h, w = skip.shape
    if (up.shape[0], up.shape[2], up.shape[3]) != (n, h, w):
        raise ValueError(f"up must be ({n}, C, {h}, {w}) like skip, got {tuple(up.shape)}")
    if up.dtype is not skip.dtype:
        raise ValueError(f"up must be {skip.dtype} like skip, got {up.dtype}")
    if up.device != skip.device:
        raise ValueError(f"up must be on {skip.device} like skip, got {up.device}")


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``; meta has none."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def same_dtype(up: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider dtype under autocast, which leaves some maps in float32; else as given."""
    mixed = up.dtype is not skip.dtype and {up.dtype, skip.dtype} <= set(FLOATS)
    if not mixed or up.device != skip.device or not autocasts(skip):
        return up, skip
    dtype = torch.promote_types(up.dtype, skip.dtype)
    return up.to(dtype), skip.to(dtype)

"""What autocast leaves of different dtypes, brought together for `mde_concat`."""

import torch
from torch import Tensor

from .._arguments import FLOATS


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

"""The MDE filter in plain PyTorch: the truth the fast backends are measured against."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._backend import without_autocast
from .bank import Quadrant, quadrants


def mde_reference(
    x: Tensor,
    gains: Tensor,
    scales: Sequence[int] = (3, 5, 7),
    bank: str = "binomial",
    pad: str = "zero",
) -> Tensor:
    """y = sum_j a_j (s_j - s_j+1) + a_r s_S with s_0 = x, s_j = G_j * x: a gain for every band.

    Written in taps, y = t_0 x + sum_j t_j s_j with t_0 = a_0, t_j = a_j - a_j-1, so that equal
    gains give x back exactly. One branch a scale, in float32 (float64 for float64 ``x``),
    under autocast too.

    Args:
        x: feature map (N, C, H, W), any float dtype, any device.
        gains: (C, S + 1) or (1, S + 1); the last column is the gain of the residual.
        scales: S odd widths of the masks, rising.
        bank: "binomial", "opencv", "gauss", "gauss(0.8,1.1,1.4)", "box" or "cross".
        pad: "zero", or "reflect" without repeating the edge.

    Source: the bands are ours; Zunair and Ben Hamza, "Sharp U-Net", 2021, arXiv:2107.12461, is
    the case of one scale.
    """
    wide = x.to(torch.float64 if x.dtype is torch.float64 else torch.float32)
    taps = gains.to(wide.dtype)
    taps = torch.cat([taps[:, :1], taps.diff(dim=1)], dim=1)  # (C or 1, S + 1)
    out = wide * taps[:, 0, None, None]
    with without_autocast(x):
        for j, mask in enumerate(quadrants(tuple(scales), bank)[1:], 1):
            out = out + smooth(wide, mask, scales[j - 1] // 2, pad) * taps[:, j, None, None]
    return out.to(x.dtype)


def smooth(x: Tensor, mask: Quadrant, p: int, pad: str) -> Tensor:
    """Correlates each channel with the (2 p + 1)^2 mask of a quadrant."""
    offsets = [abs(i) for i in range(-p, p + 1)]
    square = [[mask[dy][dx] for dx in offsets] for dy in offsets]
    weight = torch.tensor(square, dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    if pad == "reflect":
        x, p = F.pad(x, (p, p, p, p), mode="reflect"), 0
    return F.conv2d(x, weight.expand(channels, 1, -1, -1), padding=p, groups=channels)

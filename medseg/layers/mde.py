"""The MDE spatial filter as a module."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medseg.kernels import mde_concat, mde_filter
from medseg.kernels.mde.arguments import PADS
from medseg.kernels.mde.bank import check_bank, widths


class Preset(NamedTuple):
    """Gains of the bands from fine to coarse and of the residual, with the masks they go with."""

    gains: tuple[float, ...]
    scales: tuple[int, ...] = (3, 5, 7)
    bank: str = "binomial"


_OUTLINE = Preset((9, 0), (3,), "box")
PRESETS = {
    "identity": Preset((1, 1, 1, 1)),
    "mde": Preset((0.5, 2, 1.5, 1)),
    "mde_soft": Preset((0.5, 1.5, 1.25, 1)),
    "mde_strong": Preset((0.5, 2, 2, 1)),
    "unsharp": Preset((2, 5 / 3, 4 / 3, 1)),
    "sharp8": _OUTLINE,  # Sharp U-Net
    "sharp9": Preset((10, 1), (3,), "box"),
    "sharp5": Preset((6, 1), (3,), "cross"),
    "blur": Preset((0, 1), (3,)),
    "mde1": _OUTLINE,  # "multi-scale" read as one filter at every level of the network
}


class MDEFilter(nn.Module):
    """Weighs the bands of a map, on its way over a skip connection: denoises and enhances.

    ``forward(x)`` filters; ``forward(skip, up)`` is ``cat([up, filtered skip], 1)`` in one pass.
    The gains are fixed unless ``learn_gains``: no parameters, and nothing is kept for the backward.

    With ``shrink`` the finest band d, before its gain, loses all that is small, channel by channel:
    sign(d) * max(|d| - tau, 0). Then the filter is not linear; it takes two fused filters and
    keeps the finest band for the backward.

    Args:
        channels: width of the map.
        preset: "identity", "mde", "mde_soft", "mde_strong", "unsharp", "sharp8" (Sharp U-Net),
            "sharp9", "sharp5", "blur" or "mde1".
        gains: those of the bands and of the residual, in place of the preset's.
        scales, bank: masks, in place of the preset's; as in `mde_filter`.
        pad: "zero" or "reflect".
        learn_gains: gains (and tau) are parameters, one of each a channel.
        shrink: first value of tau; None leaves the filter linear.

    Raises:
        ValueError: an argument is unknown or out of range, or the gains do not fit the scales.

    Source: our reading of Wang et al., "E-DU", 2022, doi:10.1016/j.compbiomed.2022.106206.
    """

    gains: Tensor
    tau: Any  # Tensor (C or 1, 1), or None: no threshold

    def __init__(
        self,
        channels: int,
        preset: str = "mde",
        *,
        gains: Sequence[float] | None = None,
        scales: Sequence[int] | None = None,
        bank: str | None = None,
        pad: str = "zero",
        learn_gains: bool = False,
        shrink: float | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        if pad not in PADS:
            raise ValueError(f"pad must be one of {', '.join(PADS)}, got {pad!r}")
        if shrink is not None and not 0 <= shrink < math.inf:
            raise ValueError(f"shrink must be a number of at least 0, got {shrink}")
        chosen = PRESETS[preset]
        self.scales = chosen.scales if scales is None else widths(scales)
        self.bank, self.pad = chosen.bank if bank is None else bank, pad
        check_bank(self.scales, self.bank)
        values = chosen.gains if gains is None else tuple(gains)
        if len(values) != len(self.scales) + 1:
            raise ValueError(
                f"gains must be {len(self.scales) + 1} with these scales, got {values}"
            )
        if not all(map(math.isfinite, values)):
            raise ValueError(f"gains must be finite numbers, got {values}")
        self._keep("gains", torch.tensor([values], dtype=torch.float32), channels, learn_gains)
        tau = None if shrink is None else torch.full((1, 1), float(shrink))
        self._keep("tau", tau, channels, learn_gains)

    def _keep(self, name: str, row: Tensor | None, channels: int, learn: bool) -> None:
        if learn and row is not None:
            self.register_parameter(name, nn.Parameter(row.repeat(channels, 1)))
        else:
            self.register_buffer(name, row)

    def forward(self, x: Tensor, up: Tensor | None = None) -> Tensor:
        """x: (N, C, H, W), up: (N, C_up, H, W); returns (N, C, H, W), or (N, C_up + C, H, W)."""
        gains, masks = _wide(self.gains, x), (self.scales, self.bank, self.pad)
        if self.tau is None:
            return mde_filter(x, gains, *masks) if up is None else mde_concat(up, x, gains, *masks)
        out = self._shrunk(x, gains)
        return out if up is None else torch.cat([up, out], dim=1)

    def _shrunk(self, x: Tensor, gains: Tensor) -> Tensor:
        rest = torch.cat([torch.zeros_like(gains[:, :1]), gains[:, 1:]], dim=1)
        finest = gains.new_tensor([[1.0, 0.0]])
        band = mde_filter(x, finest, self.scales[:1], _first(self.bank), self.pad)
        tau = _wide(self.tau, x).clamp_min(0)[:, :, None]  # (C or 1, 1, 1)
        soft = band - torch.clamp(band, -tau, tau)
        smooth = mde_filter(x, rest, self.scales, self.bank, self.pad)
        return (smooth + gains[:, :1, None] * soft).to(x.dtype)

    def extra_repr(self) -> str:
        return f"scales={self.scales}, bank={self.bank!r}, pad={self.pad!r}"


def two_branch_gains(
    smooth: Sequence[float], enhance: Sequence[float], alpha: Sequence[float]
) -> tuple[float, ...]:
    """Gains of the filter sum_k u_k s_k + v_k (x + alpha_k (x - s_k)), k over the scales.

    The first branch of a scale smooths, the second enhances, and u and v mix them. This has three
    numbers a scale for one degree of freedom, so it is a way to choose gains and not to learn them.

    Args:
        smooth: u, the weight of the smoothed map of each scale.
        enhance: v, the weight of the sharpened one.
        alpha: how much is sharpened.

    Raises:
        ValueError: the three differ in length or are empty.
    """
    if not len(smooth) == len(enhance) == len(alpha) > 0:
        raise ValueError(
            f"smooth, enhance and alpha must name one value a scale, got {len(smooth)}, "
            f"{len(enhance)} and {len(alpha)}"
        )
    triples = list(zip(smooth, enhance, alpha, strict=True))
    taps = [sum(v * (1 + a) for _, v, a in triples), *(u - v * a for u, v, a in triples)]
    return tuple(itertools.accumulate(taps))


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """float32 (float64 beside such a map), whatever ``module.half()`` has made of them."""
    if values.dtype is torch.float64 and x.dtype is torch.float64:
        return values
    return values.float()


def _first(bank: str) -> str:
    """The bank of the smallest scale alone."""
    return bank.partition(",")[0] + ")" if "," in bank else bank

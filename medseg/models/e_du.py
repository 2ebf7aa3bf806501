"""E-DU: a U-Net of dense blocks whose skip connections pass through a fixed spatial filter.

Paper: Wang et al., "E-DU: Deep neural network for multimodal medical image segmentation based on
semantic gap compensation", Computers in Biology and Medicine, 2022,
doi:10.1016/j.compbiomed.2022.106206. No code of the authors is public.

All that we could read is the abstract and a README: a Dense U-Net, and in place of each plain skip
connection "MDE", a depthwise spatial enhancement filter that denoises and enhances at several
scales. Coefficients, widths, layers and the parameter count of the paper are not known, so every
number here is ours and no result of this network may be called the paper's. The filter follows
Sharp U-Net (arXiv:2107.12461, MIT; its filter is the preset "sharp8"), the dense blocks FD-UNet
(arXiv:1808.10848).
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import UserError
from medseg.layers import MDEFilter

from .blocks import ConvNorm, Up, resize
from .network import Network, Outputs, check_choice, check_count
from .registry import register

_LAYERS = 4  # of a dense block; together they add as many channels as it gets


@register("e_du")
@register("e_du_s", width=32)
class EDU(Network):
    """E-DU (e_du; e_du_s is half as wide).

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        width: channels of the first level, a multiple of 8; each deeper one has twice as many.
        depth: how often the encoder halves the map.
        attention: "none" takes the filters out: a plain Dense U-Net.
        deep_supervision: in training return `Outputs`, whose aux are 1x1 heads on the deeper levels
            of the decoder.
        preset, gains, scales, bank, pad, learn_gains, shrink: of the filters, as in `MDEFilter`.
        transition: a 1x1 convolution in front of every pooling, behind the skip connection.

    Raises:
        UserError: an option is out of range, or the filter's do not go together.
    """

    paper = "Wang et al., Computers in Biology and Medicine"
    year = 2022
    fused = ("mde_concat",)
    per_class = ("head.", "side.")
    filled_by: ClassVar = {"preset": "mde.gains", "gains": "mde.gains", "shrink": "mde.tau"}

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1,
        width: int = 64,
        depth: int = 4,
        attention: Literal["fused", "none"] = "fused",
        deep_supervision: bool = False,
        preset: str = "mde",
        gains: Sequence[float] | None = None,
        scales: Sequence[int] | None = None,
        bank: str | None = None,
        pad: str = "zero",
        learn_gains: bool = False,
        shrink: float | None = None,
        transition: bool = False,
    ) -> None:
        super().__init__(in_channels, classes)
        _check_options(width, depth, attention)
        filters = {
            "preset": preset, "gains": gains, "scales": scales, "bank": bank, "pad": pad,
            "learn_gains": learn_gains, "shrink": shrink,
        }  # fmt: skip
        self.depth, self.size_multiple = depth, 1 << depth
        self.deep_supervision = deep_supervision
        widths = [width << level for level in range(depth + 1)]
        self.stem = ConvNorm(in_channels, width // 2, bias=False)
        for level, channels in enumerate(widths[:-1], 1):
            mde = None if attention == "none" else _filter(channels, filters)
            self.add_module(f"enc{level}", Encoder(channels, transition))
            self.add_module(f"dec{level}", Decoder(channels, mde))
            self.least_size = _least_side(mde) << (level - 1)
        self.bottleneck = DenseBlock(widths[-1])
        self.head = nn.Conv2d(width, classes, 1)
        deeper = widths[1:-1] if deep_supervision else ()
        self.side = nn.ModuleList(nn.Conv2d(wide, classes, 1) for wide in deeper)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """x: (N, in_channels, H, W); returns logits (N, classes, H, W), or `Outputs`."""
        x, crop = self.fit(x)
        x = self.stem(x)
        skips, maps = [], []
        for level in range(1, self.depth + 1):
            skip, x = self.get_submodule(f"enc{level}")(x)
            skips.append(skip)
        x = self.bottleneck(x)
        for level in range(self.depth, 0, -1):
            x = self.get_submodule(f"dec{level}")(x, skips.pop())
            maps.insert(0, x)
        logits = self.head(x)
        if not self.training or not self.deep_supervision:
            return crop(logits)
        aux = (resize(head(y), logits) for head, y in zip(self.side, maps[1:], strict=True))
        return crop(Outputs(logits, tuple(aux)))

    @classmethod
    def made_with(cls, state: dict[str, Tensor]) -> dict[str, int]:
        """Channels, classes, width and depth, if the first and the last layer are there."""
        first, head = state.get("stem.conv.weight"), state.get("head.weight")
        if first is None or head is None or first.dim() != 4 or head.dim() != 4:
            return {}
        levels = {found[1] for key in state if (found := re.match(r"enc(\d+)\.", key))}
        return {
            "in_channels": first.shape[1],
            "classes": head.shape[0],
            "width": 2 * first.shape[0],
            "depth": len(levels),
        }


class DenseBlock(nn.Module):
    """Doubles its channels: four layers, each sees all before it and adds an eighth of the output.

    A layer is a 1x1 convolution to the width of the block's input and a 3x3 one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside, growth = channels // 2, channels // (2 * _LAYERS)
        self.layers = nn.ModuleList(
            nn.Sequential(
                ConvNorm(inside + i * growth, inside, 1, bias=False),
                ConvNorm(inside, growth, bias=False),
            )
            for i in range(_LAYERS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels / 2, H, W); returns (N, channels, H, W)."""
        for layer in self.layers:
            x = torch.cat((x, layer(x)), 1)
        return x


class Encoder(nn.Module):
    """One level down: a dense block, then, unless it has a 1x1 convolution, nothing but a pool."""

    def __init__(self, channels: int, transition: bool) -> None:
        super().__init__()
        self.dense = DenseBlock(channels)
        self.transition = ConvNorm(channels, channels, 1, bias=False) if transition else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (N, channels / 2, H, W); returns skip (N, channels, H, W) and it at half the size."""
        skip = self.dense(x)
        y = skip if self.transition is None else self.transition(skip)
        return skip, F.max_pool2d(y, 2, ceil_mode=True)


class Decoder(nn.Module):
    """One level up: the upsampled map and the filtered skip, side by side, into a dense block."""

    def __init__(self, channels: int, mde: MDEFilter | None) -> None:
        super().__init__()
        self.up = Up(2 * channels, channels, bias=False)
        self.mde = mde
        self.reduce = ConvNorm(2 * channels, channels // 2, 1, bias=False)
        self.dense = DenseBlock(channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x: (N, 2 * channels, H, W), skip: (N, channels, 2H, 2W); returns the shape of skip."""
        up = self.up(x)
        both = torch.cat((up, skip), 1) if self.mde is None else self.mde(skip, up)
        return self.dense(self.reduce(both))


def _filter(channels: int, options: dict[str, Any]) -> MDEFilter:
    try:
        return MDEFilter(channels, **options)
    except ValueError as error:
        raise UserError(str(error)) from error


def _least_side(mde: MDEFilter | None) -> int:
    """The least height or width of a map that the filter can take."""
    return max(mde.scales) // 2 + 1 if mde is not None and mde.pad == "reflect" else 1


def _check_options(width: int, depth: int, attention: str) -> None:
    check_count("width", width)
    check_count("depth", depth)
    check_choice("attention", attention, ("fused", "none"))
    if width % (2 * _LAYERS):
        raise UserError(f"width must be a multiple of {2 * _LAYERS}, got {width}")

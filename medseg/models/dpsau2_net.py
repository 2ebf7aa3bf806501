"""DPSAU2-Net: a U-Net whose every stage is a small U-Net, with split attention between the stages.

Paper: "Enhanced U2-Net with Residual Depthwise Separable and Split-Attention Blocks for Precise
Medical Image Segmentation", The Visual Computer; it builds on U-2-Net (arXiv:2005.09007).
Code of the authors: https://github.com/WKSalt/DPSAU2-Net (no licence); this file was written from a
description of it and agrees with its outputs, gradients and running statistics.

It computes what the authors' code does: the batch norm of each attention gate sees one number a
channel and image, so that training needs two images or more, and only the fused map is supervised
(`deep_supervision` returns the six side maps too). Not carried over: the second convolution and
batch norm of each attention block, which never run (5,501,568 of its 66,198,925 parameters).
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import UserError
from medseg.layers import SplitAttention

from .blocks import ConvNorm, concat, resize
from .names import renamed
from .network import Network, Outputs, check_choice, check_count
from .registry import register

_UNITS = {"conv_s1": "conv", "bn_s1": "bn", "0": "conv", "1": "bn"}
_PATHS = {"depthwise": "dw", "pointwise": "pw"}
_BLOCK = {"0": "reduce.conv", "1": "reduce.bn", "3": "split", "4": "expand.conv", "5": "expand.bn"}
# Where the authors' modules are here; their attention blocks count on into the decoder, upwards.
_PLACES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"stage(\d)d\.", lambda m: f"dec{m[1]}."),
    (r"stage(\d)\.", lambda m: f"enc{m[1]}."),
    (r"spl([1-5])\.block\.([01345])\.", lambda m: f"enc_sa{m[1]}.{_BLOCK[m[2]]}."),
    (
        r"spl([6-9]|10)\.block\.([01345])\.",
        lambda m: f"dec_sa{11 - int(m[1])}.{_BLOCK[m[2]]}.",
    ),
    (r"side(\d)\.", lambda m: f"side.{m[1]}."),
    (r"outconv\.", lambda m: "fuse."),
)
_INSIDE: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"rebnconvin\.(conv_s1|bn_s1)\.", lambda m: f"entry.{_UNITS[m[1]]}."),
    (r"(depthwise|pointwise)\.([01])\.", lambda m: f"{_PATHS[m[1]]}.{_UNITS[m[2]]}."),
    (r"rebnconv(\d)\.(conv_s1|bn_s1)\.", lambda m: f"down.{m[1]}.{_UNITS[m[2]]}."),
    (r"rebnconv(\d)d\.(conv_s1|bn_s1)\.", lambda m: f"up.{m[1]}.{_UNITS[m[2]]}."),
)
DEAD = r"spl\d+\.block\.3\.(conv2|bn2)\."  # layers of the authors that never run


@register("dpsau2_net")
@register("dpsau2_net_s", width=16)
class DPSAU2Net(Network):
    """DPSAU2-Net (dpsau2_net; dpsau2_net_s is a quarter as wide).

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        width: channels of the first stage, a multiple of 4; the next ones double, up to 8 times.
        depth: stages of the encoder, 3 to 6; the last two do not pool inside.
        attention: "fused", or "none" to leave the attention blocks between the stages out.
        deep_supervision: in training return the side maps of all stages beside the fused one.

    Raises:
        UserError: an option is out of range.
    """

    paper = "The Visual Computer; github.com/WKSalt/DPSAU2-Net"
    year = 2025
    fused = ("split_attention",)
    per_class = ("side.", "fuse.")

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1,
        width: int = 64,
        depth: int = 6,
        attention: Literal["fused", "none"] = "fused",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(in_channels, classes)
        _check_options(width, depth, attention)
        self.depth, self.deep_supervision = depth, deep_supervision
        encoder, decoder = _plan(in_channels, width, depth)
        between = AttentionBlock if attention == "fused" else nn.Identity
        for n, stage in enumerate(encoder, 1):
            self.add_module(f"enc{n}", Stage(*stage))
            if n < depth:
                self.add_module(f"enc_sa{n}", between(stage.channels))
        for n, (stage, skip) in enumerate(zip(decoder, encoder, strict=False), 1):
            self.add_module(f"dec_sa{n}", between(stage.channels_in - skip.channels))
            self.add_module(f"dec{n}", Stage(*stage))
        sides = [stage.channels for stage in (*decoder, encoder[-1])]
        self.side = nn.ModuleDict(
            {str(n): nn.Conv2d(wide, classes, 3, padding=1) for n, wide in enumerate(sides, 1)}
        )
        self.fuse = nn.Conv2d(depth * classes, classes, 1)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """x: (N, in_channels, H, W), N at least 2 in training; returns (N, classes, H, W)."""
        x, _ = self.fit(x)  # every size is legal
        size, skips, sides = (x.shape[2], x.shape[3]), [], []
        for n in range(1, self.depth):
            skips.append(self.get_submodule(f"enc{n}")(x))
            x = self.get_submodule(f"enc_sa{n}")(F.max_pool2d(skips[-1], 2, ceil_mode=True))
        x = self.get_submodule(f"enc{self.depth}")(x)
        sides.append(self.side[str(self.depth)](x))
        for n in range(self.depth - 1, 0, -1):
            skip = skips.pop()
            x = self.get_submodule(f"dec_sa{n}")(resize(x, skip))
            x = self.get_submodule(f"dec{n}")(concat(x, skip))
            sides.append(self.side[str(n)](x))
        sides = [resize(side, size) for side in reversed(sides)]
        logits = self.fuse(concat(*sides))
        if self.training and self.deep_supervision:
            return Outputs(logits, tuple(sides))
        return logits

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the authors' names those of this class, and drops the layers they never run."""
        if not self.of_authors(state):
            return state
        alive = {key: value for key, value in state.items() if not re.match(DEAD, key)}
        return renamed(alive, clean_name)

    @classmethod
    def of_authors(cls, state: dict[str, Tensor]) -> bool:
        """Whether the first attention block has the authors' name."""
        return "spl1.block.3.fc1.weight" in state

    @classmethod
    def made_with(cls, state: dict[str, Tensor]) -> dict[str, int]:
        """Channels, classes, width and depth, if the first and the last layer are there."""
        first, last = state.get("enc1.entry.conv.weight"), state.get("fuse.weight")
        if first is None or last is None or first.dim() != 4 or last.dim() != 4 or not len(last):
            return {}
        width, in_channels = first.shape[:2]
        classes, maps = last.shape[:2]
        return {
            "in_channels": in_channels,
            "classes": classes,
            "width": width,
            "depth": maps // classes,
        }


class _Shape(NamedTuple):
    channels_in: int
    middle: int
    channels: int
    levels: int
    pools: bool


def _plan(in_channels: int, width: int, depth: int) -> tuple[list[_Shape], list[_Shape]]:
    """The stages of the encoder and of the decoder, from the top."""
    down = [width << min(n, depth - 3) for n in range(depth)]
    up = [width, *down[: depth - 2]]
    below = [*up[1:], down[-1]]
    levels = [*range(7, 9 - depth, -1), 4, 4]
    encoder, decoder = [], []
    for n, channels in enumerate(down):
        pools = n < depth - 2
        middle = max(channels // 4, width // 2) if pools else channels // 2
        before = down[n - 1] if n else in_channels
        encoder.append(_Shape(before, middle, channels, levels[n], pools))
    for n, channels in enumerate(up):
        middle = channels // 2 if n else channels // 4
        pools = n < depth - 2
        decoder.append(_Shape(below[n] + down[n], middle, channels, levels[n], pools))
    return encoder, decoder


class Stage(nn.Module):
    """A convolution, a depthwise separable one, and around both a small U-Net with a residual.

    Args:
        channels_in, middle, channels: width of the input, of the small U-Net and of the output.
        levels: of the small U-Net.
        pools: whether it halves the map from the second level to the last but one; else it dilates
            its convolutions, twice as far each level.
    """

    def __init__(
        self, channels_in: int, middle: int, channels: int, levels: int, pools: bool
    ) -> None:
        super().__init__()
        self.levels, self.pools = levels, pools
        self.entry = ConvNorm(channels_in, channels)
        self.dw = ConvNorm(channels, channels, 7, groups=channels)
        self.pw = ConvNorm(channels, channels, 1)
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        for k in range(1, levels + 1):
            dilation = (2 if k == levels else 1) if pools else 1 << (k - 1)
            before = channels if k == 1 else middle
            self.down[str(k)] = ConvNorm(before, middle, dilation=dilation)
            if k < levels:
                after = channels if k == 1 else middle
                self.up[str(k)] = ConvNorm(2 * middle, after, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, H, W)."""
        x = self.entry(x)
        x = y = self.pw(_add(self.dw(x), x))
        skips = []
        for k in range(1, self.levels):
            y = self.down[str(k)](F.max_pool2d(y, 2, ceil_mode=True) if self.pools and k > 1 else y)
            skips.append(y)
        y = self.down[str(self.levels)](y)
        for k in range(self.levels - 1, 0, -1):
            skip = skips.pop()
            y = self.up[str(k)](concat(resize(y, skip), skip))
        return _add(y, x)


class AttentionBlock(nn.Module):
    """A residual bottleneck around split attention: relu(x + expand(split(reduce(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ConvNorm(channels, channels, 1, bias=False)
        self.split = SplitAttention(channels, bias=True)
        self.expand = ConvNorm(channels, channels, 1, bias=False, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels, H, W); returns the same shape."""
        y = self.split(self.reduce(x))
        return F.relu(self.expand.plus(y, x), inplace=True)


def _add(y: Tensor, x: Tensor) -> Tensor:
    """y + x, in place where no ReLU needs y again."""
    return y + x if torch.is_grad_enabled() else y.add_(x)


def _check_options(width: int, depth: int, attention: str) -> None:
    check_count("width", width)
    check_choice("attention", attention, ("fused", "none"))
    if width % 4:
        raise UserError(f"width must be a multiple of 4, got {width}")
    if depth not in (3, 4, 5, 6):
        raise UserError(f"depth must be 3, 4, 5 or 6, got {depth!r}")


def clean_name(key: str) -> str:
    """The name in this file of an entry of the authors' state dict; a strange one stays."""
    name, rest = _begun(key, _PLACES)
    inside, rest = _begun(rest, _INSIDE) if key.startswith("stage") else ("", rest)
    return name + inside + rest


def _begun(
    key: str, names: tuple[tuple[str, Callable[[re.Match[str]], str]], ...]
) -> tuple[str, str]:
    for pattern, name in names:
        found = re.match(pattern, key)
        if found:
            return name(found), key[found.end() :]
    return "", key

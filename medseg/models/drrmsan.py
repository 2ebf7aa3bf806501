"""DRRMSAN: a MultiResUNet with attention gates, pooled copies of the image and four outputs.

Paper: Pal and Mj, "Improving multi-scale attention networks: Bayesian optimization for segmenting
medical images", The Imaging Science Journal, 2023. The article calls it MSAN, and BMSAN where the
shares of the four maps were optimised.
Code of the authors: https://github.com/Jimut123/drrmsan_tests (Keras, no licence); this file was
written from a description of it and agrees with its outputs, gradients and statistics.

Outputs are logits where the authors' are probabilities: their loss on the sigmoid of `Outputs` is
theirs, map by map and on the mixture. Ours are `classes` above 1, each mixed as if it were alone,
and options that mend what the authors' network suffers from: `gate_residual` (decoder features
reach the next level only as an attention map), `gate_bounded` (that map saturates at 1, without a
gradient) and `final_norm` (a batch norm in front of a sigmoid cannot become confident). A head that
their code never connects is left out. Heads at lower scales never enlarge the map they convolve.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import UserError
from medseg.layers import AttentionGate, MinPool

from .blocks import ConvNorm, enlarged_conv
from .drrmsan_keras import as_keras_starts, from_keras, keras_variant
from .network import Network, Outputs, check_choice, check_count
from .registry import register

_LEAST = {"msan1": 96, "msan2": 32, "msan3": 16, "none": 16}  # H and W that the gates need
_SHOWING = ("enc1.shortcut.conv.weight", "respath1.0.main.conv.weight", "final.conv.weight")


@register("drrmsan")
@register("drrmsan_s", width=8, norm_momentum=0.1)  # for short trainings
class DRRMSAN(Network):
    """DRRMSAN (drrmsan; drrmsan_s is a quarter as wide).

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        width: channels that the first level aims at (it has about 1.67 times as many); each deeper
            one has twice as many.
        attention: "msan1", which is the published one and "fused" too, "msan2" or "msan3" are the
            gates of `medseg.layers.AttentionGate`; "none" leaves the gates out, for ablation.
        deep_supervision: in training return `Outputs`, whose aux are the four maps that the logits
            mix: those of decoder levels 4, 3 and 2, and the last.
        alphas: the shares of these maps in the logits, at most 1 together.
        norm: batch norm; None for what is published: with msan1 (and "none"), not with the others.
        gate_residual: adds the decoder's features to what the gate makes of them.
        gate_bounded: takes the logarithm of the gate's score before its sigmoid.
        final_norm: batch norm on the last map as published; False gives it a bias instead.
        channel_order: "bgr" turns RGB images, for weights of the authors, who trained so.
        norm_momentum: of batch norms; Keras's 0.01 takes thousands of steps to follow the weights.

    Raises:
        UserError: an option is out of range.
    """

    paper = "Pal and Mj, The Imaging Science Journal"
    year = 2023
    fused = ("attention_gate",)
    per_class = ("final.", *(f"side{level}.head." for level in (2, 3, 4)))
    size_multiple = 16
    least_size = 96

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1,
        width: int = 32,
        attention: Literal["fused", "msan1", "msan2", "msan3", "none"] = "fused",
        deep_supervision: bool = True,
        alphas: Sequence[float] = (0.25, 0.25, 0.25, 0.25),
        norm: bool | None = None,
        gate_residual: bool = False,
        gate_bounded: bool = False,
        final_norm: bool = True,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        norm_momentum: float = 0.01,
    ) -> None:
        super().__init__(in_channels, classes)
        check_choice("attention", attention, ("fused", *_LEAST))
        _check_options(in_channels, width, alphas, channel_order)
        variant = "msan1" if attention == "fused" else attention
        norm = variant in ("msan1", "none") if norm is None else norm
        self.least_size = _LEAST[variant]
        self.deep_supervision, self.alphas = deep_supervision, tuple(map(float, alphas))
        self.gate_residual, self.channel_order = gate_residual, channel_order
        units = [width << level for level in range(5)]
        wide = [sum(_split(unit)) for unit in units]
        self._add_encoder(in_channels, units, wide, norm)
        for level in range(4, 0, -1):
            unit, wide_in = units[level - 1], wide[level - 1]
            steps = [Residual(wide_in if i == 0 else unit, unit, norm) for i in range(5 - level)]
            self.add_module(f"respath{level}", nn.Sequential(*steps))
            self.add_module(f"up{level}", nn.ConvTranspose2d(wide[level], unit, 2, stride=2))
            gate = None if variant == "none" else AttentionGate(unit, variant, gate_bounded)
            self.add_module(f"attn{level}", gate)
            self.add_module(f"dec{level}", MultiRes(2 * unit, unit, norm))
            if level > 1:
                self.add_module(f"side{level}", Side(wide_in, wide[level - 2], classes, level))
        last = norm and final_norm
        self.final = _conv_norm(wide[0], classes, 3, last, act=False, bias=not final_norm)
        self.apply(as_keras_starts)
        for norm_layer in (m for m in self.modules() if isinstance(m, Norm)):
            norm_layer.momentum = norm_momentum

    def _add_encoder(self, in_channels: int, units: list[int], wide: list[int], norm: bool) -> None:
        self.pools = nn.ModuleDict(
            {"avg": nn.AvgPool2d(2), "max": nn.MaxPool2d(2), "min": MinPool()}
        )
        self.enc1 = MultiRes(in_channels, units[0], norm)
        for level in range(1, 4):
            before, shares = wide[level - 1], _injected(wide[level - 1])
            self.add_module(
                f"down{level}", nn.Conv2d(before, before - sum(shares.values()), 3, 1, 1)
            )
            injected = {kind: nn.Conv2d(in_channels, n, 3, 1, 1) for kind, n in shares.items()}
            self.add_module(f"inject{level}", nn.ModuleDict(injected))
            self.add_module(f"enc{level + 1}", MultiRes(before, units[level], norm))
        self.enc5 = MultiRes(wide[3], units[4], norm)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """x: (N, in_channels, H, W); returns logits (N, classes, H, W), or `Outputs`."""
        x, crop = self.fit(x)
        maps = self.maps(x)
        logits = mixed(maps, self.alphas)
        if self.training and self.deep_supervision:
            return crop(Outputs(logits, maps))
        return crop(logits)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (N, in_channels, H, W) of a legal size; returns the four maps before their mixture.

        Each is logits (N, classes, H, W), in the order of ``alphas``.
        """
        x = x.flip(1) if self.channel_order == "bgr" else x
        y = self.enc1(x)
        skips, pooled = [y], {"avg": x, "max": x, "min": x}
        for level in range(1, 4):
            pooled = {kind: self.laid_out(pool(pooled[kind])) for kind, pool in self.pools.items()}
            inject = self.get_submodule(f"inject{level}")
            injected = [inject.get_submodule(kind)(copy) for kind, copy in pooled.items()]
            y = self.get_submodule(f"down{level}")(F.max_pool2d(y, 2))
            y = self.get_submodule(f"enc{level + 1}")(torch.cat((y, *injected), 1))
            skips.append(y)
        y = self.enc5(F.max_pool2d(y, 2))
        found = []
        for level in range(4, 0, -1):
            y = self._up(level, y, skips.pop())
            if level > 1:
                found.append(self.get_submodule(f"side{level}")(y))
        return (*found, self.final(y))

    def _up(self, level: int, x: Tensor, skip: Tensor) -> Tensor:
        """One level up: what the gate lets through beside the skip, in a MultiRes block."""
        d = self.get_submodule(f"up{level}")(x)
        k = self.get_submodule(f"respath{level}")(skip)
        gate = getattr(self, f"attn{level}")
        y = d if gate is None else gate(d, k) + d if self.gate_residual else gate(d, k)
        return self.get_submodule(f"dec{level}")(torch.cat((y, k), 1))

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names the layers of a Keras file, which `read_h5` read, as this class does."""
        return from_keras(state)

    @classmethod
    def of_authors(cls, state: dict[str, Tensor]) -> bool:
        """Whether it is of a Keras file with as many layers as one of the authors' networks."""
        return keras_variant(state) is not None

    @classmethod
    def made_with(cls, state: dict[str, Tensor]) -> dict[str, Any]:
        """Channels, classes, width, attention and norm, if the layers that show them are there."""
        shapes = [state[name].shape for name in _SHOWING if name in state]
        if len(shapes) != len(_SHOWING) or any(len(shape) != 4 for shape in shapes):
            return {}
        kinds = {"msan1": "attn4.dec.theta", "msan3": "attn4.skip1", "msan2": "attn4.dec1"}
        shown = [kind for kind, name in kinds.items() if f"{name}.weight" in state]
        return {
            "in_channels": shapes[0][1],
            "classes": shapes[2][0],
            "width": shapes[1][0],
            "attention": shown[0] if shown else "none",
            "norm": "enc1.bn_out.weight" in state,
        }


class MultiRes(nn.Module):
    """Three stacked convolutions side by side, added to a projection of their input.

    y = bn(relu(cb1x1(x) + bn([t1, t2, t3]))), each t a 3x3 convolution of the one before; the
    width of y is about 1.67 ``unit``.
    """

    def __init__(self, channels_in: int, unit: int, norm: bool) -> None:
        super().__init__()
        a, b, c = _split(unit)
        self.shortcut = _conv_norm(channels_in, a + b + c, 1, norm, act=False)
        self.conv3 = _conv_norm(channels_in, a, 3, norm)
        self.conv5 = _conv_norm(a, b, 3, norm)
        self.conv7 = _conv_norm(b, c, 3, norm)
        self.bn_cat = Norm(a + b + c) if norm else nn.Identity()
        self.bn_out = Norm(a + b + c) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, a + b + c, H, W)."""
        t1 = self.conv3(x)
        t2 = self.conv5(t1)
        y = self.bn_cat(torch.cat((t1, t2, self.conv7(t2)), 1))
        return self.bn_out(F.relu(self.shortcut.plus(x, y), inplace=True))


class Residual(nn.Module):
    """One step on the way of a skip: bn(relu(cb1x1(x) + cb3x3(x)))."""

    def __init__(self, channels_in: int, channels: int, norm: bool) -> None:
        super().__init__()
        self.shortcut = _conv_norm(channels_in, channels, 1, norm, act=False)
        self.main = _conv_norm(channels_in, channels, 3, norm)
        self.bn = Norm(channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, H, W)."""
        return self.bn(F.relu(self.shortcut.plus(x, self.main(x)), inplace=True))


class Side(nn.Module):
    """Logits at full size from decoder level ``level``: conv3x3, ReLU, enlarged, conv3x3."""

    def __init__(self, channels_in: int, channels: int, classes: int, level: int) -> None:
        super().__init__()
        self.feat = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.head = nn.Conv2d(channels, classes, 3, padding=1)
        self.scale = 1 << (level - 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, classes, scale * H, scale * W)."""
        y = F.relu(self.feat(x), inplace=True)
        return enlarged_conv(y, self.head.weight, self.head.bias, self.scale)


class Norm(nn.BatchNorm2d):
    """Batch norm with the numbers of Keras; behind a convolution it has no scale, only a bias."""

    def __init__(self, channels: int, scale: bool = True) -> None:
        super().__init__(channels, eps=1e-3)
        if not scale:
            self.weight = None


def mixed(maps: Sequence[Tensor], alphas: Sequence[float]) -> Tensor:
    """Logits of p = sum of alpha * sigmoid(map), which the authors call the mix.

    What the alphas lack of 1 counts against it. Stable where all maps are far from 0.
    """
    wide = [z if z.dtype is torch.float64 else z.float() for z in maps]
    logs = [math.log(alpha) if alpha > 0 else -math.inf for alpha in alphas]
    parts = list(zip(wide, logs, strict=True))
    counts = torch.stack([F.logsigmoid(z) + log for z, log in parts]).logsumexp(0)
    against = torch.stack([F.logsigmoid(-z) + log for z, log in parts]).logsumexp(0)
    lack = 1 - sum(alphas)
    if lack > 1e-6:
        against = torch.logaddexp(against, torch.full_like(against, math.log(lack)))
    return (counts - against).to(maps[-1].dtype)


def _conv_norm(
    channels_in: int, channels: int, kernel: int, norm: bool, act: bool = True, bias: bool = False
) -> ConvNorm:
    block = ConvNorm(channels_in, channels, kernel, bias=bias, act=act)
    block.add_module("bn", Norm(channels, scale=False) if norm else nn.Identity())
    return block


def _split(unit: int) -> tuple[int, int, int]:
    """Widths of the three convolutions of a MultiRes block."""
    wide = 1.67 * unit
    return int(wide * 0.167), int(wide * 0.333), int(wide * 0.5)


def _injected(channels: int) -> dict[str, int]:
    """How many of a level's channels come of the average, maximum and minimum of the image."""
    few = max(1, int(0.05 * channels))
    return {"avg": few, "max": few, "min": int(0.4 * channels)}


def _check_options(in_channels: int, width: int, alphas: Sequence[float], order: str) -> None:
    check_count("width", width, least=4)
    numbers = isinstance(alphas, Sequence) and all(isinstance(a, int | float) for a in alphas)
    if not numbers or len(alphas) != 4 or min(alphas) < 0 or not 0 < sum(alphas) <= 1 + 1e-6:
        raise UserError(f"alphas must be four numbers in 0..1, at most 1 together, got {alphas!r}")
    check_choice("channel_order", order, ("rgb", "bgr"))
    if order == "bgr" and in_channels != 3:
        raise UserError(f"channel_order='bgr' is for 3 channels, got in_channels={in_channels}")

"""DRA-Net: a five-level U-Net with channel attention going down and triplet attention coming up.

Paper: Wang et al., "DRA-Net: Improved U-net white blood cell segmentation network based on
residual dual attention", Digital Signal Processing, 2025, doi:10.1016/j.dsp.2025.105301.
Code of the authors: https://github.com/W-JFenf/DRA-Net (MIT); this file was written from a
description of it and agrees with its outputs, gradients and running statistics.

By default it computes what the authors' code does, which differs from their figure: one ECA of
three taps and with a bias serves all levels and the logits (figure: the adaptive rule, five taps),
and the top of the decoder has no triplet attention. Options build the figure's network. Not carried
over: the parameters of that unused top attention; images whose axes are confused by a reshape, and
division by 256 instead of 255 (`input_layout` and `input_divisor` bring both back, for weights that
were trained so).
"""

import re
from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import UserError
from medseg.layers import ECA, TripletAttention

from .blocks import Up, concat, resize
from .names import renamed
from .network import Network, Outputs, check_choice, check_count
from .one_pass import conv_norm
from .registry import register

# Where the authors' modules are here; their decoder levels count from 6, the deepest.
_DOUBLE = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}
_GATES = {"ChannelGateH": "gate_h", "ChannelGateW": "gate_w", "SpatialGate": "gate_c"}
_ORIGINAL: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"conv([1-5])\.conv\.([0134])\.", lambda m: f"enc{m[1]}.dconv.{_DOUBLE[m[2]]}."),
    (r"w([1-5])\.", lambda m: f"enc{m[1]}.proj."),
    (r"ecaa1\.conv\.", lambda m: "eca.conv."),
    (r"up([6-9])\.tranconv\.0\.", lambda m: f"dec{10 - int(m[1])}.up.deconv."),
    (r"up([6-9])\.tranconv\.1\.", lambda m: f"dec{10 - int(m[1])}.up.bn."),
    (r"conv([6-9])\.conv\.([0134])\.", lambda m: f"dec{10 - int(m[1])}.dconv.{_DOUBLE[m[2]]}."),
    (
        r"tr([6-9])\.(\w+)\.spatial\.",
        lambda m: f"dec{10 - int(m[1])}.attn.{_GATES.get(m[2], m[2])}.",
    ),
    (r"conv10\.", lambda m: "head."),
)


@register("dra_net")
@register("dra_net_s", width=16)
class DRANet(Network):
    """DRA-Net (dra_net; dra_net_s is a quarter as wide).

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        width: channels of the first level; each deeper one has twice as many.
        attention: "none" takes every attention block out, for ablation.
        deep_supervision: in training return `Outputs`, whose aux are 1x1 heads on the three
            deeper decoder levels; the authors have none.
        eca_kernel: taps of the channel attention, or "adaptive" for the paper's rule per level.
        eca_shared: one ECA for all levels and the logits; False gives each its own.
        gate_logits: whether the logits pass through ECA too.
        top_attention: triplet attention at the top of the decoder as well, as in the figure.
        input_layout: "nchw", or "reshape" for weights trained by the authors' script, which saw
            images whose (H, W, C) was reshaped, not transposed, to (C, H, W).
        input_divisor: 255 takes images as they come, in 0..1; 256 scales them by 255/256, as that
            script trained.

    Raises:
        UserError: an option is out of range.
    """

    paper = "Wang et al., Digital Signal Processing"
    year = 2025
    fused = ("eca_attention", "triplet_attention")
    per_class = ("head.", "side.", "eca.5.")
    size_multiple = 16

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1,
        width: int = 64,
        attention: Literal["fused", "none"] = "fused",
        deep_supervision: bool = False,
        eca_kernel: int | Literal["adaptive"] = 3,
        eca_shared: bool = True,
        gate_logits: bool = True,
        top_attention: bool = False,
        input_layout: Literal["nchw", "reshape"] = "nchw",
        input_divisor: int = 255,
    ) -> None:
        super().__init__(in_channels, classes)
        check_choice("attention", attention, ("fused", "none"))
        _check_options(width, eca_kernel, eca_shared, input_layout, input_divisor)
        attends = attention == "fused"
        self.gate_logits = gate_logits and attends
        self.input_layout, self.input_divisor = input_layout, input_divisor
        widths = [width << level for level in range(5)]
        self.enc1 = Encoder(in_channels, widths[0])
        self.enc2 = Encoder(widths[0], widths[1])
        self.enc3 = Encoder(widths[1], widths[2])
        self.enc4 = Encoder(widths[2], widths[3])
        self.enc5 = Encoder(widths[3], widths[4])
        self.dropout = nn.Dropout2d(0.5)
        self.dec4 = Decoder(widths[4], widths[3], attends)
        self.dec3 = Decoder(widths[3], widths[2], attends)
        self.dec2 = Decoder(widths[2], widths[1], attends)
        self.dec1 = Decoder(widths[1], widths[0], attends and top_attention)
        self.head = nn.Conv2d(widths[0], classes, 1)
        kernel = None if eca_kernel == "adaptive" else eca_kernel
        self.eca = None
        if attends and eca_shared:
            self.eca = ECA(kernel_size=kernel, bias=True)
        elif attends:
            gated = [*widths, classes] if gate_logits else widths
            self.eca = nn.ModuleList(ECA(channels, kernel, bias=True) for channels in gated)
        self.side = None
        if deep_supervision:
            self.side = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in widths[1:4])

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """x: (N, in_channels, H, W); returns logits (N, classes, H, W), or `Outputs`."""
        x, crop = self.fit(x)
        y, c1 = self._down(self.enc1, self._as_trained(x), 0)
        y, c2 = self._down(self.enc2, y, 1)
        y, c3 = self._down(self.enc3, y, 2)
        y, c4 = self._down(self.enc4, y, 3)
        # The pool has already been: it commutes with dropping or scaling whole channels.
        y, _ = self._down(self.enc5, self.dropout(y), 4, pool=1)
        y = self.dropout(y)
        d4 = self.dec4(y, c4)
        d3 = self.dec3(d4, c3)
        d2 = self.dec2(d3, c2)
        logits = self.head(self.dec1(d2, c1))
        if self.gate_logits:
            logits = self._gate(5)(logits)
        if self.side is None or not self.training:
            return crop(logits)
        aux = (resize(head(d), logits) for head, d in zip(self.side, (d2, d3, d4), strict=True))
        return crop(Outputs(logits, tuple(aux)))

    def _down(self, encoder: nn.Module, x: Tensor, level: int, pool: int = 2) -> tuple[Tensor, ...]:
        """(input of the next level, skip to the decoder): the gated, pooled sum and the sum."""
        projected, y = encoder(x)
        if self.eca is None:
            skip = projected + y
            return (F.max_pool2d(skip, 2) if pool == 2 else skip), skip
        return self._gate(level)(projected, y, pool)

    def _gate(self, level: int) -> nn.Module:
        eca: Any = self.eca
        return eca if isinstance(eca, ECA) else eca[level]

    def _as_trained(self, x: Tensor) -> Tensor:
        if self.input_layout == "reshape":
            x = x.permute(0, 2, 3, 1).reshape(x.shape)
        return x if self.input_divisor == 255 else x * (255 / self.input_divisor)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the authors' names those of this class, and drops the attention they never use."""
        if not self.of_authors(state):
            return state
        named = renamed(state, clean_name)
        if self.dec1.attn is None:
            named = {k: v for k, v in named.items() if not k.startswith("dec1.attn.")}
        return named

    @classmethod
    def of_authors(cls, state: dict[str, Tensor]) -> bool:
        """Whether the first ECA and the lowest upsampling have the authors' names."""
        return "ecaa1.conv.weight" in state and "up6.tranconv.0.weight" in state

    @classmethod
    def made_with(cls, state: dict[str, Tensor]) -> dict[str, int]:
        """Channels, classes and width, if the first and the last layer are there."""
        first, head = state.get("enc1.proj.weight"), state.get("head.weight")
        if first is None or head is None or first.dim() != 4 or head.dim() != 4:
            return {}
        return {"in_channels": first.shape[1], "classes": head.shape[0], "width": first.shape[0]}


class Encoder(nn.Module):
    """One level down: a 1x1 projection of its input and a double convolution, to be added."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.dconv = DoubleConv(channels_in, channels)
        self.proj = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (N, channels_in, H, W); returns two summands (N, channels, H, W)."""
        y = self.dconv(x)  # first: a projection kept meanwhile would raise the peak of memory
        return self.proj(x), y


class Decoder(nn.Module):
    """One level up: upsampled and skipped maps through a double convolution, then attention."""

    def __init__(self, channels_in: int, channels: int, attention: bool = True) -> None:
        super().__init__()
        self.up = Up(channels_in, channels)
        self.dconv = DoubleConv(2 * channels, channels)
        self.attn = TripletAttention() if attention else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x: (N, channels_in, H, W), skip: (N, channels, 2H, 2W); returns the shape of skip."""
        y = self.dconv(concat(self.up(x), skip))
        return y if self.attn is None else self.attn(y)


class DoubleConv(nn.Module):
    """Twice: 3x3 convolution with bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, H, W)."""
        return conv_norm(conv_norm(x, self.conv1, self.bn1), self.conv2, self.bn2)


def _check_options(
    width: int, eca_kernel: int | str, eca_shared: bool, input_layout: str, input_divisor: int
) -> None:
    check_count("width", width)
    odd = isinstance(eca_kernel, int) and eca_kernel > 0 and eca_kernel % 2 == 1
    if not odd and eca_kernel != "adaptive":
        raise UserError(f"eca_kernel must be an odd number or 'adaptive', got {eca_kernel!r}")
    if eca_kernel == "adaptive" and eca_shared:
        raise UserError(
            "eca_kernel='adaptive' gives each level its own taps, so add eca_shared=False"
        )
    check_choice("input_layout", input_layout, ("nchw", "reshape"))
    if input_divisor not in (255, 256):
        raise UserError(f"input_divisor must be 255 or 256, got {input_divisor!r}")


def clean_name(key: str) -> str:
    """The name in this file of an entry of the authors' state dict; a strange one stays."""
    for pattern, name in _ORIGINAL:
        found = re.match(pattern, key)
        if found:
            return name(found) + key[found.end() :]
    return key

"""HPDDRNet: DDRNet-23-slim with a gate on its context branch and position attention between.

"A High-Precision Dual-Branch Deep Residual Network for Enhanced SEM Image Segmentation", of which
only the code is at hand: https://github.com/fanjuchen/HPDDRNet (a fork of mmsegmentation 1.x, whose
files carry Apache-2.0 headers). This file was written from a description of that code and agrees
with its outputs, gradients and running statistics.

Their README puts ECA on the high-resolution and position attention on the low-resolution branch.
Their code, and this file, gate the context branch with ECA and send the high-resolution maps
through position attention on their way into it. That attention has no residual and starts near
zero, so at first nothing takes that way; `pa_residual=True` opens it. Not carried over: a third
ECA and a third position attention that never run (3,410,435 parameters), and the conversion of only
some norms to SyncBatchNorm. Their two heads answer at an eighth of the size and their loss resizes
both to the mask; here the network does, so that logits have the size of the image.
"""

import re
import warnings
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import UserError
from medseg.layers import ECA, PositionAttention

from .blocks import ConvNorm, resize
from .ddr import DAPPM, Bottle, DDRHead, Layer, basic_layer, initialise
from .names import renamed, shown
from .network import Network, Outputs, check_choice, check_count
from .registry import register

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # red, green, blue of 0..255
_SIGN = "context_branch_layers.0.0.conv1.conv.weight"
_NORM = re.compile(r"(backbone\.)?(data_preprocessor\.|img_norm).*(mean|std)$")
DEAD = re.compile(rf"(backbone\.)?((ecas|sps)\.2\.|auxiliary_head\.)|{_NORM.pattern}")
_DEAD_IN_EVAL = re.compile(rf"{DEAD.pattern}|decode_head\.aux_")
_PROJ = {"0": "conv", "1": "bn"}
_HEAD = {"0.bn": "bn1", "0.conv": "conv", "1": "bn2"}
# Where the authors' modules are here; stages count from 3, as DDRNet's paper has them.
_ORIGINAL: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"stem\.([01])\.", lambda m: f"stem.conv{int(m[1]) + 1}."),
    (r"stem\.([24])\.", lambda m: f"stem.layer{int(m[1]) // 2}."),
    (r"(context|spatial)_branch_layers\.([012])\.", lambda m: f"{m[1]}.{int(m[2]) + 3}."),
    (r"ecas\.([01])\.", lambda m: f"eca.{int(m[1]) + 3}."),
    (r"sps\.([01])\.cnn\.", lambda m: f"pa.{int(m[1]) + 3}.conv."),
    (r"sps\.([01])\.pa\.fc_([qkvo])\.", lambda m: f"pa.{int(m[1]) + 3}.{m[2]}."),
    (r"compression_([12])\.", lambda m: f"fuse.{int(m[1]) + 2}.up."),
    (r"down_1\.", lambda m: "fuse.3.down.0."),
    (r"down_2\.", lambda m: "fuse.4.down."),
    (r"spp\.scales\.0\.", lambda m: "dappm.scale.0."),
    (r"spp\.scales\.([1-4])\.1\.", lambda m: f"dappm.scale.{m[1]}."),
    (r"spp\.processes\.([0-3])\.", lambda m: f"dappm.process.{int(m[1]) + 1}."),
    (r"spp\.compression\.", lambda m: "dappm.compress."),
    (r"spp\.shortcut\.", lambda m: "dappm.shortcut."),
    (r"decode_head\.head\.(0\.bn|0\.conv|1)\.", lambda m: f"head.{_HEAD[m[1]]}."),
    (r"decode_head\.aux_head\.(0\.bn|0\.conv|1)\.", lambda m: f"aux.{_HEAD[m[1]]}."),
    (r"decode_head\.conv_seg\.", lambda m: "head.cls."),
    (r"decode_head\.aux_cls_seg\.", lambda m: "aux.cls."),
)


@register("hpddrnet")
@register("hpddrnet_s", width=16)
class HPDDRNet(Network):
    """HPDDRNet (hpddrnet; hpddrnet_s is half as wide).

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        width: channels of the stem; the branches have 2 to 16 times as many.
        depth: blocks in each layer of the stem and of stages 3 and 4.
        attention: "fused", or "none" for DDRNet without any of it.
        dropout: of the attention weights, in training.
        pa_residual: adds to position attention its input.
        deep_supervision: an auxiliary head on stage 3, in training.
        image_norm: "none" takes images as they come; "imagenet" shifts and scales those of 0..1,
            red first, as the authors' files were trained.

    Raises:
        UserError: an option is out of range.
    """

    paper = "HPDDRNet, github.com/fanjuchen/HPDDRNet"
    year = 2024
    fused = ("eca_attention", "position_attention")
    per_class = ("head.cls.", "aux.cls.")
    beyond_backbone = ("head.", "aux.", "eca.", "pa.")
    size_multiple = 8

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1,
        width: int = 32,
        depth: int = 2,
        attention: Literal["fused", "none"] = "fused",
        deep_supervision: bool = True,
        dropout: float = 0.1,
        pa_residual: bool = False,
        image_norm: Literal["none", "imagenet"] = "none",
    ) -> None:
        super().__init__(in_channels, classes)
        _check_options(in_channels, width, depth, attention, dropout, image_norm)
        self.pa_residual, self.image_norm = pa_residual, image_norm
        self.stem = Stem(in_channels, width, depth)
        widths = {"3": 4 * width, "4": 8 * width}  # of the context branch; the other keeps its own
        thin = 2 * width
        self.context, self.spatial, self.fuse = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.eca, self.pa = nn.ModuleDict(), nn.ModuleDict()
        before = thin
        for stage, wide in widths.items():
            self.context[stage] = basic_layer(before, wide, 2, depth)
            self.spatial[stage] = basic_layer(thin, thin, 1, depth)
            self.fuse[stage] = Fusion(wide, thin)
            if attention == "fused":
                self.eca[stage] = ECA(kernel_size=3)
                self.pa[stage] = PositionAttention(wide, dropout=dropout)
            before = wide
        self.context["5"] = Layer(Bottle(before, before, 2))
        self.spatial["5"] = Layer(Bottle(thin, thin))
        self.dappm = DAPPM(2 * before, 4 * width, 2 * thin)
        self.head = DDRHead(2 * thin, thin, classes)
        self.aux = DDRHead(thin, thin, classes) if deep_supervision else None
        initialise(self)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """x: (N, in_channels, H, W); returns logits (N, classes, H, W), or `Outputs`."""
        x, crop = self.fit(x)
        logits, *aux = (resize(found, x) for found in self.coarse_logits(x))
        return crop(Outputs(logits, tuple(aux)) if aux else logits)

    def coarse_logits(self, x: Tensor) -> list[Tensor]:
        """x: (N, in_channels, H, W), H and W multiples of 8; returns logits (N, classes, H / 8,
        W / 8): of the head and, in training with deep supervision, of the auxiliary one."""
        if self.image_norm == "imagenet":
            mean, std = (x.new_tensor(values)[:, None, None] / 255 for values in (MEAN, STD))
            x = (x - mean) / std
        context = spatial = self.stem(x)
        context, early = self._stage("3", context, spatial)
        context, spatial = self._stage("4", F.relu(context), F.relu(early))
        spatial = self.spatial["5"](F.relu(spatial))
        context = self.dappm(self.context["5"](F.relu(context)))
        found = [self.head(spatial + resize(context, spatial))]
        if self.aux is not None and self.training:
            found.append(self.aux(early))
        return found

    def _stage(self, stage: str, context: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """Both branches one stage on, each with what the other was before it was given to."""
        attends = stage in self.pa
        context = self.context[stage](context, self.eca[stage] if attends else None)
        spatial = self.spatial[stage](spatial)
        up, down = self.fuse[stage](context, spatial)
        if attends:
            down = self.pa[stage](down) + down if self.pa_residual else self.pa[stage](down)
        return context + down, spatial + resize(up, spatial)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the authors' names those of this class, and drops what their network never runs.

        Their files have the prefixes of mmsegmentation; DDRNet's ImageNet weights, the backbone
        alone, have none, and `reset_head` starts the rest anew. Gone are the third ECA and position
        attention, heads of other networks (`auxiliary_head.`) and the means and deviations of
        images (`data_preprocessor.`, `img_norm`): the option `image_norm` has them; and the
        auxiliary head where this network has none.

        Raises:
            UserError: the file was trained on images normalised otherwise than `image_norm` can, or
                two of its names are of one entry.
        """
        if not self.of_authors(state):
            return state
        _check_norm(state)
        if self.image_norm == "none":
            warnings.warn(
                "these weights were trained on images normalised as ImageNet's; "
                "image_norm='imagenet' does the same",
                stacklevel=2,
            )
        dead = DEAD if self.aux is not None else _DEAD_IN_EVAL
        alive = {key: value for key, value in state.items() if not dead.match(key)}
        return renamed(alive, clean_name)

    @classmethod
    def of_authors(cls, state: dict[str, Tensor]) -> bool:
        """Whether the context branch has their name, with the prefix of a backbone or without."""
        return _SIGN in state or f"backbone.{_SIGN}" in state

    @classmethod
    def made_with(cls, state: dict[str, Tensor]) -> dict[str, int]:
        """Channels, width and depth, and, unless it is the backbone alone, classes."""
        first, head = state.get("stem.conv1.conv.weight"), state.get("head.cls.weight")
        blocks = {key.split(".")[2] for key in state if key.startswith("context.3.")}
        if (
            first is None
            or first.dim() != 4
            or not blocks
            or (head is not None and head.dim() != 4)
        ):
            return {}
        classes = {} if head is None else {"classes": head.shape[0]}
        wide, in_channels = first.shape[:2]
        return {"in_channels": in_channels, **classes, "width": wide, "depth": len(blocks)}


class Stem(nn.Module):
    """From the image to an eighth of its size, without a ReLU missing anywhere."""

    def __init__(self, in_channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, 3, 2, bias=False)
        self.conv2 = ConvNorm(width, width, 3, 2, bias=False)
        self.layer1 = basic_layer(width, width, 1, depth)
        self.layer2 = basic_layer(width, 2 * width, 2, depth)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W); returns (N, 2 * width, H / 8, W / 8), rounded up."""
        x = F.relu(self.layer1(self.conv2(self.conv1(x))), inplace=True)
        return F.relu(self.layer2(x), inplace=True)


class Fusion(nn.Module):
    """What the branches give each other: context narrowed, spatial brought down to its scale."""

    def __init__(self, wide: int, thin: int) -> None:
        super().__init__()
        self.up = ConvNorm(wide, thin, 1, bias=False, act=False)
        self.down = nn.Sequential()
        while thin < wide:
            self.down.append(ConvNorm(thin, 2 * thin, 3, 2, bias=False, act=2 * thin < wide))
            thin *= 2

    def forward(self, context: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """context: (N, wide, h, w), spatial: (N, thin, H, W); returns (N, thin, h, w) and (N, wide,
        h, w)."""
        return self.up(F.relu(context)), self.down(F.relu(spatial))


def _check_options(
    in_channels: int, width: int, depth: int, attention: str, dropout: float, image_norm: str
) -> None:
    check_count("width", width)
    check_count("depth", depth)
    check_choice("attention", attention, ("fused", "none"))
    check_choice("image_norm", image_norm, ("none", "imagenet"))
    if image_norm == "imagenet" and in_channels != len(MEAN):
        raise UserError(f"image_norm='imagenet' is for 3 channels, got in_channels={in_channels}")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"dropout must be at least 0 and below 1, got {dropout!r}")


def _check_norm(state: dict[str, Tensor]) -> None:
    for key, value in state.items():
        wanted = MEAN if key.endswith("mean") else STD
        if _NORM.match(key) and not _alike(value, wanted):
            found = value.flatten()[:4].tolist()
            raise UserError(
                f"{shown(key)} is {[round(v, 3) for v in found]}, but image_norm "
                f"knows only ImageNet's {list(wanted)}; leave it out of the file and bring images "
                "to its scale yourself"
            )


def _alike(value: Tensor, wanted: tuple[float, ...]) -> bool:
    if value.numel() != len(wanted):
        return False
    flat = value.flatten().double()
    return bool((flat - flat.new_tensor(wanted)).abs().max() < 0.01)


def clean_name(key: str) -> str:
    """The name in this file of an entry of the authors' state dict; a strange one stays."""
    key = key.removeprefix("backbone.")
    for pattern, name in _ORIGINAL:
        found = re.match(pattern, key)
        if found:
            rest = key[found.end() :]
            projected = re.match(r"(\d\.)downsample\.([01])\.", rest)
            if projected:
                rest = f"{projected[1]}proj.{_PROJ[projected[2]]}.{rest[projected.end() :]}"
            return name(found) + rest
    return key

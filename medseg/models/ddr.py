"""Blocks of the dual-resolution networks (DDRNet): residual layers, pyramid pooling, head.

Pan et al., "Deep Dual-Resolution Networks for Real-Time and Accurate Semantic Segmentation of
Traffic Scenes", IEEE T-ITS 2023, arXiv:2101.06085.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.layers import ECA

from .blocks import ConvNorm, resize

_POOLS = ((5, 2, 2), (9, 4, 4), (17, 8, 8))  # kernel, stride, padding of the pyramid's middle


class Residual(nn.Module):
    """A branch of convolutions added to the input, which a 1x1 convolution fits where it must."""

    def __init__(self, channels_in: int, channels: int, stride: int, act: bool, fit: bool) -> None:
        super().__init__()
        self.act = act
        self.proj = None
        if fit:
            self.proj = ConvNorm(channels_in, channels, 1, stride, bias=False, act=False)

    def branch(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, H', W') to be added."""
        raise NotImplementedError

    def summands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What forward adds: the branch and the shortcut, both (N, channels, H', W')."""
        return self.branch(x), x if self.proj is None else self.proj(x)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, ceil(H / stride), ceil(W / stride))."""
        branch, shortcut = self.summands(x)
        y = branch + shortcut
        return F.relu(y, inplace=True) if self.act else y


class Basic(Residual):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1, act: bool = True) -> None:
        super().__init__(channels_in, channels, stride, act, stride > 1 or channels_in != channels)
        self.conv1 = ConvNorm(channels_in, channels, 3, stride, bias=False)
        self.conv2 = ConvNorm(channels, channels, 3, bias=False, act=False)

    def branch(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, H', W') to be added."""
        return self.conv2(self.conv1(x))


class Bottle(Residual):
    """Convolutions of 1x1, 3x3 and 1x1, the last twice as wide, beside a projected shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__(channels_in, 2 * channels, stride, act=False, fit=True)
        self.conv1 = ConvNorm(channels_in, channels, 1, bias=False)
        self.conv2 = ConvNorm(channels, channels, 3, stride, bias=False)
        self.conv3 = ConvNorm(channels, 2 * channels, 1, bias=False, act=False)

    def branch(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, 2 * channels, H', W') to be added."""
        return self.conv3(self.conv2(self.conv1(x)))


class Layer(nn.Sequential):
    """Residual blocks in a row; behind the last there is no ReLU, but there may be a gate."""

    def forward(self, x: Tensor, gate: ECA | None = None) -> Tensor:  # pyright: ignore
        """x: (N, channels_in, H, W); returns (N, channels, H', W')."""
        blocks: list[Any] = list(self)
        for block in blocks[:-1]:
            x = block(x)
        return blocks[-1](x) if gate is None else gate(*blocks[-1].summands(x))[0]


def basic_layer(channels_in: int, channels: int, stride: int, depth: int) -> Layer:
    """``depth`` Basic blocks, the first with the stride."""
    blocks = [
        Basic(channels if i else channels_in, channels, 1 if i else stride, act=i < depth - 1)
        for i in range(depth)
    ]
    return Layer(*blocks)


class PreConv(nn.Module):
    """Batch norm and ReLU in front of a convolution without bias."""

    def __init__(self, channels_in: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels_in)
        self.conv = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, H, W)."""
        return self.conv(F.relu(self.bn(x), inplace=True))


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling: five scales, each added to the one before.

    Args:
        channels_in, channels: width of the input and of the output.
        inner: width of a scale.
    """

    def __init__(self, channels_in: int, inner: int, channels: int) -> None:
        super().__init__()
        self.scale = nn.ModuleList(PreConv(channels_in, inner, 1) for _ in range(5))
        self.process = nn.ModuleDict({str(j): PreConv(inner, inner, 3) for j in range(1, 5)})
        self.compress = PreConv(5 * inner, channels, 1)
        self.shortcut = PreConv(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, H, W)."""
        found = [self.scale[0](x)]
        for j, (kernel, stride, padding) in enumerate(_POOLS, 1):
            pooled = F.avg_pool2d(x, kernel, stride, padding)
            spread = resize(self.scale[j](pooled), x)  # of one pixel: its layout says nothing, so
            found.append(self.process[str(j)](found[-1] + spread))  # the first addend's holds
        mean = self.scale[4](x.mean((2, 3), keepdim=True))  # (N, inner, 1, 1), added everywhere
        found.append(self.process["4"](found[-1] + mean))
        return self.compress(torch.cat(found, 1)) + self.shortcut(x)


class DDRHead(nn.Module):
    """Batch norm, ReLU and convolution twice: 3x3, then 1x1 to the classes."""

    def __init__(self, channels_in: int, channels: int, classes: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.cls = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, classes, H, W)."""
        x = self.conv(F.relu(self.bn1(x), inplace=True))
        return self.cls(F.relu(self.bn2(x), inplace=True))


def initialise(network: nn.Module) -> None:
    """He's normal start by fan-out; shortcuts and everything else keep PyTorch's own."""
    for name, module in network.named_modules():
        convs = []
        if isinstance(module, ConvNorm | PreConv) and not name.endswith("proj"):
            convs = [module.conv]
        elif isinstance(module, DDRHead):
            convs = [module.conv, module.cls]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

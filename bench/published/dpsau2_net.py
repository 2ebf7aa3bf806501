"""DPSAU2-Net in plain PyTorch, as its authors wrote it (github.com/WKSalt/DPSAU2-Net)."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import rSoftMax, total

# Channels before, inside and behind, and levels; those of four levels "F" dilate, they do not pool.
ENCODER = ((0.5, 1, 7), (0.5, 2, 6), (1, 4, 5), (2, 8, 4), (4, 8, "F"), (4, 8, "F"))
DECODER = ((4, 8, "F"), (2, 4, 4), (1, 2, 5), (0.5, 1, 6), (0.25, 1, 7))


class SplAtConv2d(nn.Module):
    """Split attention of two splits; `conv2`, `bn2` and `dropout` are there and never run."""

    def __init__(self, in_channels, channels, kernel_size=3, groups=1, bias=True, radix=2,
                 reduction_factor=4):  # fmt: skip
        super().__init__()
        inner, around = max(in_channels * radix // reduction_factor, 32), kernel_size // 2
        self.radix, self.cardinality, self.channels = radix, groups, channels
        self.conv = nn.Conv2d(
            in_channels, channels * radix, kernel_size, padding=around, groups=groups * radix,
            bias=bias,
        )  # fmt: skip
        self.bn0, self.bn1 = nn.BatchNorm2d(channels * radix), nn.BatchNorm2d(inner)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Conv2d(channels, inner, 1, groups=groups)
        self.fc2 = nn.Conv2d(inner, channels * radix, 1, groups=groups)
        self.rsoftmax = rSoftMax(radix, groups)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size, padding=around, groups=radix)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        u = self.relu(self.bn0(self.conv(x)))
        splits = torch.split(u, u.shape[1] // self.radix, 1)
        s = F.adaptive_avg_pool2d(splits[0] + splits[1], 1)
        z = self.fc2(self.relu(self.bn1(self.fc1(s))))
        gates = self.rsoftmax(z).view(len(x), -1, 1, 1).split(u.shape[1] // self.radix, 1)
        return total([a * u for a, u in zip(gates, splits, strict=True)]).contiguous()


class SABlock(nn.Module):
    """A residual bottleneck around split attention."""

    def __init__(self, channels):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            SplAtConv2d(channels, channels),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        out = self.block(x)
        out += x
        return self.relu(out)


def conv_norm(before, channels, kernel=3, dilation=1, groups=1):
    """Convolution, batch norm, ReLU."""
    around = dilation * (kernel // 2)
    conv = nn.Conv2d(before, channels, kernel, 1, around, dilation, groups)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def upsampled(x, like):
    """Bilinear, to the size of another map."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear")


class Stage(nn.Module):
    """A convolution, a depthwise separable one, and around both a small U-Net with a residual."""

    def __init__(self, before, middle, channels, levels):
        super().__init__()
        self.pools, levels = levels != "F", 4 if levels == "F" else levels
        self.entry = conv_norm(before, channels)
        self.depthwise = conv_norm(channels, channels, 7, groups=channels)
        self.pointwise = conv_norm(channels, channels, 1)
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        spread = [1] * (levels - 1) + [2] if self.pools else [1 << k for k in range(levels)]
        wide = [channels] + [middle] * (levels - 1)
        self.down = nn.ModuleList(
            conv_norm(w, middle, dilation=d) for w, d in zip(wide, spread, strict=True)
        )
        self.up = nn.ModuleList(
            conv_norm(2 * middle, w, dilation=d)
            for w, d in zip(wide[:-1], spread[:-1], strict=True)
        )

    def forward(self, x):
        x = self.entry(x)
        x = y = self.pointwise(x + self.depthwise(x))
        skips = []
        for level, down in enumerate(self.down):
            if self.pools and 0 < level < len(self.down) - 1:
                y = self.pool(y)
            y = down(y)
            skips.append(y)
        y = skips.pop()
        for up in reversed(self.up):
            skip = skips.pop()
            y = up(torch.cat((upsampled(y, skip) if y.shape != skip.shape else y, skip), 1))
        return y + x


class DPSAU2Net(nn.Module):
    """U-2-Net of such stages, with split attention on the way from each to the next."""

    def __init__(self, in_channels=3, classes=1, width=64):
        super().__init__()
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.stages, self.ups = nn.ModuleList(), nn.ModuleList()
        self.attention, self.up_attention = nn.ModuleList(), nn.ModuleList()
        self.sides = nn.ModuleList()
        skips, before = [], in_channels
        for middle, out, levels in ENCODER:
            self.stages.append(Stage(before, int(middle * width), out * width, levels))
            before = out * width
            skips.append(before)
            if len(self.stages) < len(ENCODER):
                self.attention.append(SABlock(before))
        self.sides.append(nn.Conv2d(skips.pop(), classes, 3, padding=1))
        for middle, out, levels in DECODER:
            self.up_attention.append(SABlock(before))
            self.ups.append(Stage(before + skips.pop(), int(middle * width), out * width, levels))
            before = out * width
            self.sides.append(nn.Conv2d(before, classes, 3, padding=1))
        self.head = nn.Conv2d(6 * classes, classes, 1)

    def forward(self, x):
        skips = []
        for stage, attend in zip(self.stages, [*self.attention, None], strict=True):
            x = stage(x)
            skips.append(x)
            if attend is not None:
                x = attend(self.pool(x))
        maps = [skips.pop()]
        for attend, stage in zip(self.up_attention, self.ups, strict=True):
            skip = skips.pop()
            x = attend(upsampled(x, skip))
            x = stage(torch.cat((x, skip), 1))
            maps.append(x)
        sides = [side(x) for side, x in zip(self.sides, maps, strict=True)][::-1]
        sides[1:] = [upsampled(side, sides[0]) for side in sides[1:]]
        return self.head(torch.cat(sides, 1))

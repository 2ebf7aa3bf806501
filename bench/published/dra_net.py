"""DRA-Net in plain PyTorch, as its authors wrote it (github.com/W-JFenf/DRA-Net)."""

import torch
from torch import nn

from .blocks import BasicConv, turned


class ECAAttention(nn.Module):
    """ECA with a bias."""

    def __init__(self, kernel_size=3):
        super().__init__()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        s = self.gap(x).squeeze(-1).permute(0, 2, 1)  # (N, 1, C)
        gate = self.sigmoid(self.conv(s)).permute(0, 2, 1).unsqueeze(-1)
        return x * gate.expand_as(x)


class ChannelPool(nn.Module):
    """Maximum and mean over axis 1, in this order."""

    def forward(self, x):
        return torch.cat((x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)), 1)


class SpatialGate(nn.Module):
    """The gate of one axis, which is in the place of the channels; alone it is CBAM's."""

    def __init__(self):
        super().__init__()
        self.compress, self.spatial = ChannelPool(), BasicConv()

    def forward(self, x):
        return x * torch.sigmoid_(self.spatial(self.compress(x)))


class TripletAttention(nn.Module):
    """Triplet attention by the names of landskape-ai's first release."""

    def __init__(self, no_spatial=False):
        super().__init__()
        self.ChannelGateH, self.ChannelGateW = SpatialGate(), SpatialGate()
        self.no_spatial = no_spatial
        if not no_spatial:
            self.SpatialGate = SpatialGate()

    def forward(self, x):
        high = turned(self.ChannelGateH, x, 0, 2, 1, 3)
        wide = turned(self.ChannelGateW, x, 0, 3, 2, 1)
        if self.no_spatial:
            return (1 / 2) * (high + wide)
        return (1 / 3) * (self.SpatialGate(x) + high + wide)


def double_conv(before, channels):
    """Twice: 3x3 convolution, batch norm, ReLU."""
    layers = []
    for wide in (before, channels):
        layers += [nn.Conv2d(wide, channels, 3, padding=1), nn.BatchNorm2d(channels)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def up_conv(before, channels):
    """Doubles height and width."""
    conv = nn.ConvTranspose2d(before, channels, 2, stride=2)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class DRANet(nn.Module):
    """Five levels down, each gated by one and the same ECA; triplet attention on three upwards."""

    def __init__(self, in_channels=3, classes=7, width=64):
        super().__init__()
        widths = [width << level for level in range(5)]
        before = [in_channels, *widths[:-1]]
        self.convs = nn.ModuleList(map(double_conv, before, widths))
        self.residuals = nn.ModuleList(
            nn.Conv2d(a, b, 1) for a, b in zip(before, widths, strict=True)
        )
        self.eca, self.pool = ECAAttention(), nn.MaxPool2d(2)
        self.dropout = nn.Dropout2d(0.5)
        self.ups = nn.ModuleList(up_conv(2 * w, w) for w in widths[3::-1])
        self.up_convs = nn.ModuleList(double_conv(2 * w, w) for w in widths[3::-1])
        self.triplets = nn.ModuleList(TripletAttention() for _ in range(3))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = []
        for level, (conv, residual) in enumerate(zip(self.convs, self.residuals, strict=True)):
            skips.append(conv(x) + residual(x))
            x = self.eca(skips[-1])
            if level >= 3:
                x = self.dropout(x)
            if level < 4:
                x = self.pool(x)
        skips.pop()
        attention = [*self.triplets, nn.Identity()]
        for up, conv, attend in zip(self.ups, self.up_convs, attention, strict=True):
            x = attend(conv(torch.cat((up(x), skips.pop()), 1)))
        return self.eca(self.head(x))

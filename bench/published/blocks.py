"""The attention blocks of ECANet, timm, landskape-ai, ResNeSt, DANet, HPDDRNet, CBAM and scSE."""

import functools
import math
import operator

import torch
import torch.nn.functional as F
from torch import nn


class eca_layer(nn.Module):
    """ECA of ECANet: no bias."""

    def __init__(self, k_size=3):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, k_size, padding=k_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        s = self.avg_pool(x).squeeze(-1).transpose(1, 2)
        return x * self.sigmoid(self.conv(s).transpose(1, 2).unsqueeze(-1))


class ECA(nn.Module):
    """ECA of HPDDRNet, which is told a width that it never reads."""

    def __init__(self, channel, kernel_size=3):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        gate = self.sigmoid(self.conv(self.avg_pool(x)[..., 0].permute(0, 2, 1)))
        return x * gate.permute(0, 2, 1)[..., None]


class EcaModule(nn.Module):
    """ECA of timm, which pools by a mean."""

    def __init__(self, kernel_size=3):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.act = self.conv2 = None
        self.gate = nn.Sigmoid()

    def forward(self, x):
        s = x.mean((2, 3))[:, None]
        return x * self.gate(self.conv(s))[:, 0, :, None, None]


class CecaModule(nn.Module):
    """timm's ECA whose channels are padded in a circle."""

    def __init__(self, kernel_size=3):
        super().__init__()
        self.padding = kernel_size // 2
        self.conv = nn.Conv1d(1, 1, kernel_size, bias=False)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        s = F.pad(x.mean((2, 3))[:, None], (self.padding,) * 2, mode="circular")
        return x * self.gate(self.conv(s))[:, 0, :, None, None]


class BasicConv(nn.Module):
    """The convolution and batch norm of a Z-pool gate."""

    def __init__(self, kernel_size=7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)
        self.relu = None

    def forward(self, q):
        return self.bn(self.conv(q))


class ZPool(nn.Module):
    """Maximum and mean over axis 1, in this order."""

    def forward(self, x):
        return torch.cat((x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)), 1)


class AttentionGate(nn.Module):
    """landskape-ai's gate of one axis, which is in the place of the channels."""

    def __init__(self, kernel_size=7):
        super().__init__()
        self.compress, self.conv = ZPool(), BasicConv(kernel_size)

    def forward(self, x):
        return x * self.conv(self.compress(x)).sigmoid_()


def turned(gate, x, *axes):
    """A gate on a map whose axes are swapped before it, and back behind it."""
    return gate(x.permute(axes).contiguous()).permute(axes).contiguous()


class TripletAttention(nn.Module):
    """Triplet attention of landskape-ai: two gates on turned maps and one on the map as it is."""

    def __init__(self, no_spatial=False, kernel_size=7):
        super().__init__()
        self.cw, self.hc = AttentionGate(kernel_size), AttentionGate(kernel_size)
        self.no_spatial = no_spatial
        if not no_spatial:
            self.hw = AttentionGate(kernel_size)

    def forward(self, x):
        high, wide = turned(self.cw, x, 0, 2, 1, 3), turned(self.hc, x, 0, 3, 2, 1)
        if self.no_spatial:
            return 1 / 2 * (high + wide)
        return 1 / 3 * (self.hw(x) + high + wide)


def total(maps):
    """The sum of maps, one by one."""
    return functools.reduce(operator.add, maps)


class rSoftMax(nn.Module):
    """Softmax over the splits, from group-major to split-major; of one split a sigmoid."""

    def __init__(self, radix, cardinality):
        super().__init__()
        self.radix, self.cardinality = radix, cardinality

    def forward(self, z):
        if self.radix == 1:
            return z.sigmoid()
        z = z.view(len(z), self.cardinality, self.radix, -1)
        return z.transpose(1, 2).softmax(1).reshape(len(z), -1)


class SplAtConv2d(nn.Module):
    """Split attention of ResNeSt."""

    def __init__(self, in_channels, channels, kernel_size=3, *, padding=1, groups=1, bias=False,
                 radix=2, reduction_factor=4, norm_layer=nn.BatchNorm2d):  # fmt: skip
        super().__init__()
        inner = max(in_channels * radix // reduction_factor, 32)
        self.radix, self.cardinality, self.channels = radix, groups, channels
        width, parts = channels * radix, groups * radix
        self.conv = nn.Conv2d(
            in_channels, width, kernel_size, padding=padding, groups=parts, bias=bias
        )
        self.use_bn = norm_layer is not None
        if self.use_bn:
            self.bn0, self.bn1 = norm_layer(width), norm_layer(inner)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Conv2d(channels, inner, 1, groups=groups)
        self.fc2 = nn.Conv2d(inner, width, 1, groups=groups)
        self.rsoftmax = rSoftMax(radix, groups)

    def forward(self, x):
        u = self.conv(x)
        u = self.relu(self.bn0(u) if self.use_bn else u)
        splits = u.split(u.shape[1] // self.radix, 1)
        h = self.fc1(F.adaptive_avg_pool2d(total(splits), 1))
        h = self.relu(self.bn1(h) if self.use_bn else h)
        gates = self.rsoftmax(self.fc2(h)).view(len(x), -1, 1, 1)
        gates = gates.split(u.shape[1] // self.radix, 1)
        return total([a * u for a, u in zip(gates, splits, strict=True)]).contiguous()


class RadixSoftmax(rSoftMax):
    """timm's name for it."""


class SplitAttn(nn.Module):
    """Split attention of timm, which knows its cardinality by its softmax alone."""

    def __init__(self, channels, radix=2, groups=1, act=nn.ReLU, norm=nn.BatchNorm2d):
        super().__init__()
        width, inner = channels * radix, max(channels * radix // 4, 32)
        self.radix = radix
        self.conv = nn.Conv2d(channels, width, 3, padding=1, groups=groups * radix, bias=False)
        self.bn0, self.bn1 = norm(width), norm(inner)
        self.drop, self.act0, self.act1 = nn.Identity(), act(inplace=True), act(inplace=True)
        self.fc1 = nn.Conv2d(channels, inner, 1, groups=groups)
        self.fc2 = nn.Conv2d(inner, width, 1, groups=groups)
        self.rsoftmax = RadixSoftmax(radix, groups)

    def forward(self, x):
        u = self.act0(self.drop(self.bn0(self.conv(x))))
        u = u.unflatten(1, (self.radix, -1))  # (N, R, C, H, W)
        h = self.act1(self.bn1(self.fc1(u.sum(1).mean((2, 3), keepdim=True))))
        gates = self.rsoftmax(self.fc2(h)).view(*u.shape[:3], 1, 1)
        return (u * gates).sum(1).contiguous()


class PAM_Module(nn.Module):
    """Attention of positions of DANet."""

    def __init__(self, in_dim):
        super().__init__()
        self.query_conv = nn.Conv2d(in_dim, in_dim // 8, 1)
        self.key_conv = nn.Conv2d(in_dim, in_dim // 8, 1)
        self.value_conv = nn.Conv2d(in_dim, in_dim, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x):
        q, k, v = (conv(x).flatten(2) for conv in (self.query_conv, self.key_conv, self.value_conv))
        weights = self.softmax(q.mT @ k)  # (N, HW, HW)
        return self.gamma * (v @ weights.mT).view(x.shape) + x


class CAM_Module(nn.Module):
    """Attention of channels of DANet."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x):
        flat = x.flatten(2)
        energy = flat @ flat.mT  # (N, C, C)
        weights = self.softmax(energy.max(-1, keepdim=True)[0] - energy)
        return self.gamma * (weights @ flat).view(x.shape) + x


class ScaledDotProductAttention(nn.Module):
    """HPDDRNet's attention between tokens."""

    def __init__(self, d_model, h=1, dropout=0.1):
        super().__init__()
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = (nn.Linear(d_model, d_model) for _ in "qkvo")
        self.dropout, self.h = nn.Dropout(dropout), h

    def forward(self, queries, keys, values):
        q, k, v = self.fc_q(queries), self.fc_k(keys), self.fc_v(values)
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        return self.fc_o(self.dropout(weights) @ v)


class PositionAttentionModule(nn.Module):
    """HPDDRNet's attention of positions, from a map to tokens (N, HW, C)."""

    def __init__(self, d_model, dropout=0.1):
        super().__init__()
        self.cnn = nn.Conv2d(d_model, d_model, 3, padding=1)
        self.pa = ScaledDotProductAttention(d_model, dropout=dropout)

    def forward(self, x):
        tokens = self.cnn(x).flatten(2).mT
        return self.pa(tokens, tokens, tokens)


class SpatialAttn(nn.Module):
    """CBAM's spatial gate as in timm."""

    def __init__(self, kernel_size=7):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False), nn.BatchNorm2d(1)
        )
        self.gate = nn.Sigmoid()

    def forward(self, x):
        planes = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        return x * self.gate(self.conv(planes))


class SCSEModule(nn.Module):
    """Concurrent spatial and channel squeeze and excitation, as in segmentation_models.pytorch."""

    def __init__(self, in_channels, reduction=4):
        super().__init__()
        inner = in_channels // reduction
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, inner, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, in_channels, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(in_channels, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.cSE(x) + x * self.sSE(x)


def sharpening(channels, row=(-1.0, -1.0, -1.0), centre=8.0, trained=False, **options):
    """Sharp U-Net's filter on a skip connection: a depthwise convolution that is not trained."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False, **options)
    stencil = torch.tensor([row, (row[1], centre, row[1]), row])
    with torch.no_grad():
        conv.weight.copy_(stencil.expand_as(conv.weight))
    conv.weight.requires_grad_(trained)
    return conv

"""Building blocks that several networks share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.kernels._backend import same_side
from medseg.kernels._cpu_launch import empty_map

from .one_pass import conv_norm, conv_norm_add, only_result_counts


class ConvNorm(nn.Module):
    """Convolution, batch norm and, unless told otherwise, ReLU; an odd kernel keeps the size.

    Args:
        channels_in, channels: width of the input and of the output.
        kernel: height and width of the kernel, odd.
        stride, dilation, groups, bias: of the convolution.
        act: whether a ReLU follows.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            channels_in, channels, kernel, stride, padding, dilation, groups, bias=bias
        )
        self.bn = nn.BatchNorm2d(channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, ceil(H / stride), ceil(W / stride))."""
        return conv_norm(x, self.conv, self.bn, self.act)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """What ``forward`` returns plus ``other`` of that shape, for a block without ReLU."""
        return conv_norm_add(x, self.conv, self.bn, other)


class Up(nn.Module):
    """Doubles height and width: transposed convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels_in, channels, 2, stride=2, bias=bias)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, 2H, 2W)."""
        return F.relu(self.bn(self.deconv(x)), inplace=True)


def concat(*maps: Tensor) -> Tensor:
    """``torch.cat(maps, 1)``; in inference on a CPU a large result takes pages others have left.

    For maps of a few sizes, as where a decoder meets its skips: the operators keep 256 MB of pages.

    Args:
        maps: (N, C, H, W) each, of any C.
    """
    last = maps[-1]
    if only_result_counts(last) and all(m.dtype is last.dtype for m in maps):
        n, _, h, w = last.shape
        return torch.cat(maps, 1, out=empty_map(last, (n, sum(m.shape[1] for m in maps), h, w)))
    return torch.cat(maps, 1)


def resize(x: Tensor, size: Tensor | tuple[int, int]) -> Tensor:
    """Bilinear, with the corners of pixels in line, to a height and width or those of a tensor."""
    height, width = size.shape[2:] if isinstance(size, Tensor) else size
    if same_side(x.shape[2], height) and same_side(x.shape[3], width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)


def enlarged_conv(x: Tensor, weight: Tensor, bias: Tensor | None, scale: int) -> Tensor:
    """conv2d(nearest(x, scale), weight, bias, padding=1), computed at the size of x.

    In an enlarged row, the first and the last of each ``scale`` pixels see two of x, those between
    see one: 3 kinds of rows times 3 of columns, whose kernels are sums of the 3x3 taps.
    """
    kinds = _seen(_seen(weight, -1), -2).flatten(0, 2)  # (classes * 9, C, 3, 3)
    bias = None if bias is None else bias.repeat_interleave(9)
    y = F.conv2d(x, kinds, bias, padding=1).unflatten(1, (-1, 3, 3))
    for dim in (2, 3):
        first, inner, last = y.split(1, dim)
        y = torch.cat((first, *[inner] * (scale - 2), last), dim)
    # (N, classes, row in pixel, column in pixel, H, W); pixel_shuffle has no gradient of no image
    return y.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


def _seen(weight: Tensor, dim: int) -> Tensor:
    """Kernels of the first, inner and last pixels along ``dim``, stacked behind the first axis."""
    a, b, c = weight.unbind(dim)
    zero = torch.zeros_like(a)
    kinds = ((a, b + c, zero), (zero, a + b + c, zero), (zero, a + b, c))
    return torch.stack([torch.stack(taps, dim) for taps in kinds], 1)

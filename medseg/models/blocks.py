"""Building blocks that several networks share."""

import torch.nn.functional as F
from torch import Tensor, nn


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
        y = self.bn(self.conv(x))
        return F.relu(y, inplace=True) if self.act else y


class Up(nn.Module):
    """Doubles height and width: transposed convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels_in, channels, 2, stride=2, bias=bias)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels_in, H, W); returns (N, channels, 2H, 2W)."""
        return F.relu(self.bn(self.deconv(x)), inplace=True)


def resize(x: Tensor, size: Tensor | tuple[int, int]) -> Tensor:
    """Bilinear, with the corners of pixels in line, to a height and width or those of a tensor."""
    height, width = size.shape[2:] if isinstance(size, Tensor) else size
    if x.shape[2] == height and x.shape[3] == width:
        return x
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)

"""Efficient channel attention as a module."""

import math
from typing import overload

from torch import Tensor, nn

from medseg.kernels import eca_attention


class ECA(nn.Module):
    """Gates each channel by a 1-D convolution over the pooled channels.

    The taps do not depend on the number of channels, so one module may serve maps of several
    widths.

    Args:
        channels: width of the map, wanted only by the paper's rule for ``kernel_size``.
        kernel_size: number of taps, odd; None takes the paper's rule,
            |(log2(channels) + b) / gamma| cut to an integer and raised to odd.
        gamma, b: constants of the rule.
        bias: whether the convolution has a bias; the paper's has none.

    Raises:
        ValueError: neither ``channels`` nor ``kernel_size`` is given, or one is out of range.

    Attributes:
        backend: of the fused op, as its argument; None takes the fastest that can run.

    Source: Wang et al., "ECA-Net", CVPR 2020, arXiv:1910.03151.
    """

    backend: str | None = None

    def __init__(
        self,
        channels: int | None = None,
        kernel_size: int | None = None,
        gamma: float = 2,
        b: float = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(channels, gamma, b)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 1, got {kernel_size}")
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=bias)

    @overload
    def forward(self, x: Tensor, residual: None = None, pool: int = 1) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor, pool: int = 1) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, x: Tensor, residual: Tensor | None = None, pool: int = 1
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x, residual: (N, C, H, W); returns the same shape, or with ``pool`` 2 half as high and
        wide; with a residual (that, x + residual)."""
        weight, bias = self.conv.weight.flatten(), self.conv.bias
        return eca_attention(x, weight, bias, residual=residual, pool=pool, backend=self.backend)


def adaptive_kernel_size(channels: int | None, gamma: float = 2, b: float = 1) -> int:
    """Taps by the paper's rule: 1 for 7 channels, 3 for 16 to 64, 5 for 128 to 1024, 7 for 2048."""
    if channels is None or channels < 1:
        raise ValueError(
            f"channels must be at least 1 where kernel_size is not given, got {channels}"
        )
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    taps = int(abs((math.log2(channels) + b) / gamma))
    return taps if taps % 2 else taps + 1

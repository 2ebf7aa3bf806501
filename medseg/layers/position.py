"""Position attention as a module."""

import torch
from torch import Tensor, nn

from medseg.kernels import position_attention
from medseg.kernels._backend import has_open_sizes

VARIANTS = ("hpddrnet", "danet")
_STD = 0.001  # of HPDDRNet's projections at the start


class PositionAttention(nn.Module):
    """Gives each position a mixture of all positions, by how alike they are.

    ``variant`` "hpddrnet": a 3x3 convolution, projections q, k and v of the full width, scores
    times 1 / sqrt(channels), dropout of the weights in training, an output projection; no residual,
    and projections that start near zero. "danet": q and k of width channels / reduction and v by
    1x1 convolutions, scores as they are, then gamma * mixture + x, gamma starting at 0.

    Args:
        channels: width of the map, kept.
        variant: "hpddrnet" or "danet".
        dropout: of the attention weights, in training; None takes the variant's: 0.1 or 0.
        reduction: how much narrower "danet" makes queries and keys.

    Raises:
        ValueError: an argument is out of range.

    Attributes:
        backend: of the fused op, as its argument; None takes the fastest that can run.

    Sources: HPDDRNet (github.com/fanjuchen/HPDDRNet); Fu et al., "Dual Attention Network",
    CVPR 2019, arXiv:1809.02983.
    """

    backend: str | None = None

    def __init__(
        self,
        channels: int,
        variant: str = "hpddrnet",
        *,
        dropout: float | None = None,
        reduction: int = 8,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if dropout is not None and not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        if reduction < 1 or (variant == "danet" and channels < reduction):
            raise ValueError(f"reduction must be from 1 to channels ({channels}), got {reduction}")
        own = 0.1 if variant == "hpddrnet" else 0.0
        self.variant, self.dropout = variant, own if dropout is None else dropout
        if variant == "hpddrnet":
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
            self.q, self.k, self.v, self.o = (_projection(channels) for _ in "qkvo")
        else:
            narrow = channels // reduction
            self.q, self.k = (nn.Conv2d(channels, narrow, 1) for _ in "qk")
            self.v = nn.Conv2d(channels, channels, 1)
            self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W); returns the same shape, channels_last if x is."""
        dropout = self.dropout if self.training else 0.0
        if self.variant == "danet":
            q, k, v = (_tokens(part(x)) for part in (self.q, self.k, self.v))
            out = position_attention(q, k, v, scale=1.0, dropout=dropout, backend=self.backend)
            return self.gamma.to(out.dtype) * _map(out, x) + x
        tokens = _dense(_tokens(self.conv(x)))  # once, else each projection copies them
        out = position_attention(  # whose inputs need no name here that would keep them
            self.q(tokens), self.k(tokens), self.v(tokens), dropout=dropout, backend=self.backend
        )
        return _map(self.o(out), x)

    def extra_repr(self) -> str:
        return f"variant={self.variant!r}, dropout={self.dropout}"


def _projection(channels: int) -> nn.Linear:
    linear = nn.Linear(channels, channels)
    nn.init.normal_(linear.weight, std=_STD)
    nn.init.zeros_(linear.bias)
    return linear


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT  # (N, H * W, C)


def _dense(tokens: Tensor) -> Tensor:
    if has_open_sizes(tokens):
        return tokens.clone(memory_format=torch.contiguous_format)
    return tokens.contiguous()


def _map(tokens: Tensor, x: Tensor) -> Tensor:
    """Tokens (N, H * W, C) as a map in the layout of ``x``."""
    n, _, height, width = x.shape
    out = tokens.mT.reshape(n, tokens.shape[2], height, width)
    if has_open_sizes(x):
        return out
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return out.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

"""ECA in plain PyTorch: the truth the fast backends are measured against."""

from typing import overload

import torch.nn.functional as F
from torch import Tensor

from .._backend import without_autocast


@overload
def eca_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: None = None, pool: int = 1
) -> Tensor: ...
@overload
def eca_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: Tensor, pool: int = 1
) -> tuple[Tensor, Tensor]: ...
def eca_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    pool: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """out = maxpool(s * sigmoid(conv1d(mean_hw(s), weight) + bias)), s = x + residual.

    The convolution runs over the channels.

    Args:
        x: feature map (N, C, H, W), any float dtype, any device.
        weight: taps (K,), K odd.
        bias: None or (1,).
        residual: None or like ``x``; with it the sum is returned as well: (out, s).
        pool: 1 leaves the pool out, 2 takes the largest of 2x2.

    Source: Wang et al., "ECA-Net", CVPR 2020, arXiv:1910.03151.
    """
    summed = x if residual is None else x + residual
    pooled = summed.mean((2, 3)).to(weight.dtype)  # (N, C)
    with without_autocast(x):
        z = F.conv1d(pooled.unsqueeze(1), weight.view(1, 1, -1), bias, padding=weight.numel() // 2)
    out = summed * z.squeeze(1).sigmoid()[:, :, None, None].to(x.dtype)
    out = F.max_pool2d(out, 2) if pool == 2 else out
    return out if residual is None else (out, summed)

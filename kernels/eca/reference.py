"""ECA in plain PyTorch: the truth the fast backends are measured against."""

import torch.nn.functional as F
from torch import Tensor


def eca_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """out = x * sigmoid(conv1d(mean_hw(x), weight) + bias), the convolution running over channels.

    Args:
        x: feature map (N, C, H, W), any float dtype, any device.
        weight: taps (K,), K odd.
        bias: None or (1,).

    Source: Wang et al., "ECA-Net", CVPR 2020, arXiv:1910.03151.
    """
    pooled = x.mean((2, 3)).to(weight.dtype)  # (N, C)
    z = F.conv1d(pooled.unsqueeze(1), weight.view(1, 1, -1), bias, padding=weight.numel() // 2)
    return x * z.squeeze(1).sigmoid()[:, :, None, None].to(x.dtype)

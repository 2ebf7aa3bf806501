"""Triplet attention in plain PyTorch: the truth the fast backends are measured against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._backend import without_autocast

POOLED_AXES = (2, 3, 1)  # gate 0 pools over H, gate 1 over W, gate 2 (spatial) over C
# Each gate sees x with its pooled axis in the channel place; the rest is the plane's rows, columns.
TO_GATE = ((0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 2, 3))


def triplet_reference(
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    training: bool,
    momentum: float = 0.01,
    eps: float = 1e-5,
) -> Tensor:
    """out = mean over gates g of x * sigmoid(bn_g(conv_g(zpool_g(x)))), as the paper draws it.

    Args:
        x: feature map (N, C, H, W), any float dtype, any device.
        conv_weight: (G, 2, k, k), k odd, G = 3 or 2; plane 0 is the maximum, plane 1 the mean.
        bn_weight, bn_bias, running_mean, running_var: (G,); the running ones change in training.

    Source: Misra et al., "Rotate to Attend", WACV 2021, arXiv:2010.03045.
    """
    total: Tensor | None = None
    for g in range(conv_weight.shape[0]):
        # The permutation swaps two axes, so it undoes itself.
        turned = x.permute(TO_GATE[g]).contiguous()
        part = slice(g, g + 1)
        gated = z_pool_gate(
            turned,
            conv_weight[part],
            bn_weight[part],
            bn_bias[part],
            running_mean[part],
            running_var[part],
            training=training,
            momentum=momentum,
            eps=eps,
        ).permute(TO_GATE[g])
        total = gated if total is None else total + gated
    assert total is not None
    return total / conv_weight.shape[0]


def z_pool_gate(
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    training: bool,
    momentum: float = 0.01,
    eps: float = 1e-5,
) -> Tensor:
    """One gate: x * sigmoid(bn(conv([max over axis 1, mean over axis 1]))); weight (1, 2, k, k)."""
    pooled = torch.stack((x.max(1).values, x.mean(1)), 1).to(conv_weight.dtype)
    with without_autocast(x):
        u = F.conv2d(pooled, conv_weight, padding=conv_weight.shape[-1] // 2)
        v = F.batch_norm(
            u, running_mean, running_var, bn_weight, bn_bias, training, momentum=momentum, eps=eps
        )
    return x * v.sigmoid().to(x.dtype)

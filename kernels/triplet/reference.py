"""Triplet attention in plain PyTorch: the truth the fast backends are measured against."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._backend import accumulator, without_autocast

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
    pooled = z_pool(x, 1).to(conv_weight.dtype)
    with without_autocast(x):
        u = F.conv2d(pooled, conv_weight, padding=conv_weight.shape[-1] // 2)
        v = F.batch_norm(
            u, running_mean, running_var, bn_weight, bn_bias, training, momentum=momentum, eps=eps
        )
    return x * v.sigmoid().to(x.dtype)


def z_pool(x: Tensor, axis: int) -> Tensor:
    """Maximum and mean over an axis of (N, C, H, W), as (N, 2, the other two axes in order)."""
    return torch.stack((x.max(axis).values, x.mean(axis)), 1)


def triplet_pool_reference(x: Tensor, *, spatial: bool = True) -> tuple[Tensor, ...]:
    """(N, 2, C, W), (N, 2, H, C) and, with ``spatial``, (N, 2, H, W), at least in float32."""
    pooled = (z_pool(x, axis).to(accumulator(x.dtype)) for axis in POOLED_AXES)
    over_h, over_w, over_c = pooled
    return (over_h, over_w.mT, over_c) if spatial else (over_h, over_w.mT)


def triplet_apply_reference(x: Tensor, gates: Sequence[Tensor]) -> Tensor:
    """out = mean over gates of x * gate; (N, 1, C, W), (N, 1, H, C) and maybe (N, 1, H, W)."""
    total: Tensor | None = None
    for gate, back in zip(gates, TO_GATE, strict=False):
        gated = x * gate.permute(back).to(x.dtype)
        total = gated if total is None else total + gated
    assert total is not None
    return total / len(gates)

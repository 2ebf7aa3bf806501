"""Split attention in plain PyTorch: the truth the fast backends are measured against."""

import torch.nn.functional as F
from torch import Tensor

from .._backend import accumulator, without_autocast


def split_reference(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    radix: int = 2,
    cardinality: int = 1,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """out = sum over splits r of a_r * x_r, the a_r a softmax over r, from the pooled sum of x_r.

    Args:
        x: R splits of C channels each, one after the other, (N, R*C, H, W); any float dtype.
        fc1_weight, fc1_bias: (I, C/K) and (I,) or None, K = cardinality.
        bn_weight, bn_bias, running_mean, running_var: (I,); the running ones change in training.
        fc2_weight, fc2_bias: (R*C, I/K) and (R*C,) or None; rows in the order (k, r, c).
        scale, shift: (R*C,) or None; where given, relu(x * scale + shift) stands for x.

    Source: Zhang et al., "ResNeSt", arXiv:2004.08955.
    """
    x = activated(x, scale, shift)
    n, width = x.shape[:2]
    s = _pooled(x, radix).to(fc1_weight.dtype)  # (N, C)
    with without_autocast(x):
        h = grouped_linear(s, fc1_weight, fc1_bias, cardinality)  # (N, I)
        h = F.batch_norm(
            h, running_mean, running_var, bn_weight, bn_bias, training, momentum=momentum, eps=eps
        ).relu()
        z = grouped_linear(h, fc2_weight, fc2_bias, cardinality)  # (N, R*C), group-major
    z = z.view(n, cardinality, radix, width // radix // cardinality)
    a = (z.softmax(2) if radix > 1 else z.sigmoid()).transpose(1, 2)  # split-major
    return split_apply_reference(x, a.reshape(n, width), radix=radix)


def split_pool_reference(x: Tensor, *, radix: int = 2) -> Tensor:
    """mean_hw(sum_r x_r) of R splits of C channels, (N, R*C, H, W): (N, C), at least float32."""
    return _pooled(x, radix).to(accumulator(x.dtype))


def _pooled(x: Tensor, radix: int) -> Tensor:
    splits = x.chunk(radix, 1)
    total = splits[0]
    for split in splits[1:]:
        total = total + split
    return total.mean((2, 3))


def split_apply_reference(x: Tensor, gates: Tensor, *, radix: int = 2) -> Tensor:
    """out = sum_r gates_r * x_r; x (N, R*C, H, W), gates (N, R*C) of any float dtype."""
    splits = x.chunk(radix, 1)
    gates_of = gates.to(x.dtype)[:, :, None, None].chunk(radix, 1)
    out = gates_of[0] * splits[0]
    for gate, split in zip(gates_of[1:], splits[1:], strict=True):
        out = out + gate * split
    return out


def activated(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """relu(x * scale + shift) in the dtype of ``x``, or ``x`` itself without ``scale``."""
    if scale is None or shift is None:
        return x
    return (x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).relu().to(x.dtype)


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """A 1x1 convolution of ``groups`` groups on vectors (N, inputs); weight (outputs, inputs/g)."""
    if groups == 1:
        return F.linear(x, weight, bias)
    return F.conv1d(x.unsqueeze(2), weight.unsqueeze(2), bias, groups=groups).squeeze(2)

"""Position attention in plain PyTorch, with the whole L x M matrix in memory."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .._backend import accumulator, without_autocast


def position_reference(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """out = dropout(softmax(query key' * scale)) value, the softmax running over all keys.

    Args:
        query: tokens (N, L, D), any float dtype, any device.
        key: (N, M, D).
        value: (N, M, E).
        scale: None is 1 / sqrt(D).
        dropout: probability with which a weight is dropped; the others grow by 1 / (1 - dropout).

    Source: Fu et al., "Dual Attention Network", CVPR 2019, arXiv:1809.02983.
    """
    scale = 1 / math.sqrt(query.shape[2]) if scale is None else scale
    wide = accumulator(query.dtype)
    with without_autocast(query):
        weights = torch.bmm(query, key.mT).to(wide).mul(scale).softmax(2)  # (N, L, M)
        return torch.bmm(F.dropout(weights.to(value.dtype), dropout), value)

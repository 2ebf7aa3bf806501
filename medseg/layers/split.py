"""The split-attention block of ResNeSt as a module."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.kernels import split_apply, split_attention, split_pool


class SplitAttention(nn.Module):
    """A grouped convolution into R versions of a map, added up with learned, pooled weights.

    u = relu(bn0(conv(x)));  out = sum_r a_r * u_r, a_r a softmax of fc2(relu(bn1(fc1(s)))) with
    s the mean over the map of sum_r u_r (``medseg.kernels.split_attention``).

    In inference, that is with ``bn0`` in eval mode under ``torch.no_grad()``, batch norm and ReLU
    are folded into the attention, and u never exists in memory. That is for a plain
    ``BatchNorm2d`` with running statistics as ``bn1``, or a ``SyncBatchNorm`` in eval mode; with
    any other norm there (``SyncBatchNorm`` in training, ``momentum=None``, none at all) the gates
    run as the modules they are, between ``split_pool`` and ``split_apply`` of ``medseg.kernels``.
    The parameter names are those of the ResNeSt authors.

    Args:
        in_channels: width of the input.
        channels: width of the output; None keeps ``in_channels``.
        kernel_size: size of the square convolution.
        stride, dilation: of the convolution.
        padding: of the convolution; None keeps the size of the map for an odd kernel.
        radix: R, 1 to 4; with 1 the softmax is a sigmoid.
        cardinality: K; the convolution has R * K groups, the layers of the gate K.
        reduction: the gate is max(in_channels * R // reduction, 32) wide inside.
        bias: whether the convolution has a bias; ResNeSt's has none, DPSAU2-Net's has.
        norm_layer: makes ``bn0`` and ``bn1`` from a width; None leaves both out.

    Raises:
        ValueError: an option is out of range, or a width is no multiple of its groups.

    Attributes:
        backend: of the fused ops, as their argument; None takes the fastest that can run.

    Source: Zhang et al., "ResNeSt", arXiv:2004.08955.
    """

    backend: str | None = None

    def __init__(
        self,
        in_channels: int,
        channels: int | None = None,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        radix: int = 2,
        cardinality: int = 1,
        reduction: int = 4,
        bias: bool = False,
        norm_layer: type[nn.Module] | None = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        channels = in_channels if channels is None else channels
        inner = _inner_width(in_channels, channels, radix, cardinality, reduction)
        padding = dilation * (kernel_size - 1) // 2 if padding is None else padding
        width = channels * radix
        self.radix, self.cardinality = radix, cardinality
        self.conv = nn.Conv2d(
            in_channels, width, kernel_size, stride, padding, dilation, radix * cardinality, bias
        )
        self.bn0: Any = nn.Identity() if norm_layer is None else norm_layer(width)
        self.fc1 = nn.Conv2d(channels, inner, 1, groups=cardinality)
        self.bn1: Any = nn.Identity() if norm_layer is None else norm_layer(inner)
        self.fc2 = nn.Conv2d(inner, width, 1, groups=cardinality)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W); returns (N, channels, H', W')."""
        x = self.conv(x)
        if not _is_plain(self.bn1) or self.bn1.weight.dtype is not self.fc1.weight.dtype:
            return self._by_modules(self._active(x))
        if torch.is_grad_enabled() or not _is_plain(self.bn0) or self.bn0.training:
            return self._fused(self._active(x))
        return self._fused(x, *_scale_and_shift(self.bn0))

    def _active(self, x: Tensor) -> Tensor:
        return F.relu(
            self.bn0(x), inplace=True
        )  # neither a norm nor a convolution needs its output

    def _fused(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        norm = self.bn1
        out = split_attention(
            x, self.fc1.weight.flatten(1), self.fc1.bias, norm.weight, norm.bias,
            norm.running_mean, norm.running_var, self.fc2.weight.flatten(1), self.fc2.bias,
            radix=self.radix, cardinality=self.cardinality, training=norm.training,
            momentum=norm.momentum, eps=norm.eps, scale=scale, shift=shift,
            backend=self.backend,
        )  # fmt: skip
        if norm.training:
            norm.num_batches_tracked.add_(1)
        return out

    def _by_modules(self, x: Tensor) -> Tensor:
        """Fused pooling, the gates as the modules they are, fused application."""
        pooled = split_pool(x, radix=self.radix, backend=self.backend)  # (N, C)
        h = self.bn1(self.fc1(pooled.to(self.fc1.weight.dtype)[:, :, None, None])).relu()
        z = self.fc2(h).unflatten(1, (self.cardinality, self.radix, -1))  # (N, K, R, C/K, 1, 1)
        a = z.softmax(2) if self.radix > 1 else z.sigmoid()
        gates = a.transpose(1, 2).flatten(1)  # (N, R * C), the splits one after the other
        return split_apply(x, gates, radix=self.radix, backend=self.backend)


def _inner_width(
    in_channels: int, channels: int, radix: int, cardinality: int, reduction: int
) -> int:
    """Width between the two layers of the gate; refuses what cannot be built."""
    if not 1 <= radix <= 4:
        raise ValueError(f"radix must be 1 to 4, got {radix}")
    for name, value in {"cardinality": cardinality, "reduction": reduction}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    inner = max(in_channels * radix // reduction, 32)
    if in_channels % (radix * cardinality):
        raise ValueError(
            f"in_channels must be a multiple of radix * cardinality = {radix * cardinality}, got "
            f"{in_channels}"
        )
    for name, value in {"channels": channels, "the inner width": inner}.items():
        if value % cardinality:
            raise ValueError(f"{name} must be a multiple of cardinality {cardinality}, got {value}")
    return inner


def _is_plain(norm: nn.Module) -> bool:
    """Whether the fused op can stand for this norm."""
    return (
        (type(norm) is nn.BatchNorm2d or (type(norm) is nn.SyncBatchNorm and not norm.training))
        and norm.affine
        and norm.running_mean is not None
        and norm.momentum is not None
    )


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as scale and shift, at least in float32."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    acc = torch.promote_types(var.dtype, torch.float32)
    scale = (var.to(acc) + norm.eps).rsqrt() * norm.weight
    return scale, torch.addcmul(norm.bias.to(acc), mean.to(acc), scale, value=-1)

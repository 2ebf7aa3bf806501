"""Parameters of split attention, and the op as a function of what it learns; for its tests."""

from collections.abc import Callable

import torch
from torch import Tensor

from medseg.kernels import split_attention
from medseg.kernels.split.reference import split_reference


def split_params(
    channels: int, inner: int, radix: int, cardinality: int = 1, bias: bool = True
) -> list[Tensor]:
    """fc1 weight, norm weight and bias, fc2 weight, then, with ``bias``, the biases of the two."""
    generator = torch.Generator().manual_seed(1000 * channels + 10 * inner + radix)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    per_c, per_i = channels // cardinality, inner // cardinality
    found = [
        draw(inner, per_c) / per_c**0.5,
        torch.rand(inner, generator=generator) + 0.5,
        draw(inner) / 2,
        draw(radix * channels, per_i) / per_i**0.5,
    ]
    return [*found, draw(inner), draw(radix * channels)] if bias else found


def split_pair(
    radix: int, cardinality: int, training: bool, backend: str
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """(fused, reference) of x and ``split_params``, running statistics fresh in each call."""

    def of(op: Callable[..., Tensor], **options) -> Callable[..., Tensor]:
        def run(x, fc1, gamma, beta, fc2, fc1_bias=None, fc2_bias=None, **folded):
            mean = torch.linspace(-0.2, 0.3, gamma.numel(), dtype=gamma.dtype, device=x.device)
            var = torch.linspace(0.5, 1.5, gamma.numel(), dtype=gamma.dtype, device=x.device)
            return op(
                x, fc1, fc1_bias, gamma, beta, mean, var, fc2, fc2_bias, radix=radix,
                cardinality=cardinality, training=training, **folded, **options,
            )  # fmt: skip

        return run

    return of(split_attention, backend=backend), of(split_reference)

"""Pooling and application of split and triplet attention as functions of a map and its gates."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medseg.kernels import split_apply, split_pool, triplet_apply, triplet_pool
from medseg.kernels.split.reference import split_apply_reference, split_pool_reference
from medseg.kernels.triplet.reference import triplet_apply_reference, triplet_pool_reference

Pair = tuple[Callable[..., Tensor], Callable[..., Tensor]]


def split_gates(x: Tensor) -> list[Tensor]:
    """One for each channel of x."""
    return [torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(1)).to(x.device)]


def split_parts(radix: int, backend: str | None) -> Pair:
    """(fused, reference) of x and ``split_gates``; what was pooled takes part in the gates."""

    def of(pool: Callable[..., Tensor], apply: Callable[..., Tensor], **options: Any):
        def run(x: Tensor, gates: Tensor) -> Tensor:
            pooled = pool(x, radix=radix, **options).to(gates.dtype)
            return apply(x, gates + pooled.repeat(1, radix), radix=radix, **options)

        return run

    fused = of(split_pool, split_apply, backend=backend)
    return fused, of(split_pool_reference, split_apply_reference)


def triplet_gates(x: Tensor, spatial: bool = True) -> list[Tensor]:
    """Gates over H, W and, with ``spatial``, C."""
    n, c, h, w = x.shape
    generator = torch.Generator().manual_seed(1)
    planes = ((c, w), (h, c), (h, w))[: 3 if spatial else 2]
    return [torch.rand((n, 1, *plane), generator=generator).to(x.device) for plane in planes]


def triplet_parts(backend: str | None) -> Pair:
    """(fused, reference) of x and ``triplet_gates``; what was pooled takes part in the gates."""

    def of(pool: Callable[..., Any], apply: Callable[..., Tensor], **options: Any):
        def run(x: Tensor, *gates: Tensor) -> Tensor:
            weights = torch.tensor([0.5, -2.0], dtype=gates[0].dtype, device=x.device)
            planes = pool(x, spatial=len(gates) == 3, **options)
            maps = [
                gate + (plane.to(gate.dtype) * weights[:, None, None]).sum(1, keepdim=True)
                for gate, plane in zip(gates, planes, strict=True)
            ]
            return apply(x, maps, **options)

        return run

    fused = of(triplet_pool, triplet_apply, backend=backend)
    return fused, of(triplet_pool_reference, triplet_apply_reference)


def pooled_index(planes: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
    """Where the gradient of each maximum lands, as a map of x's shape."""
    found = []
    for plane in planes:
        (grad,) = torch.autograd.grad(plane[:, 0].sum(), x, retain_graph=True)
        found.append(grad)
    return tuple(found)

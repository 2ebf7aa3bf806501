"""Launchers of the compiled CPU kernels of the attention gate."""

from torch import Tensor

from .._backend import like_layout, native
from .._cpu_launch import DTYPES, addresses, empty_map, threads_for


def forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (total, product) in the layout of ``a``."""
    total, product = empty_map(a), empty_map(a)
    if total.numel():
        maps = [like_layout(a, t) for t in (a, b, c)]
        given = addresses(*maps, total, product)
        native("_cpu").gate_forward(DTYPES[a.dtype], a.numel(), threads_for(a), given)
    return total, product


def backward(
    grad_total: Tensor | None, grad_product: Tensor | None, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of a, b and c; an absent gradient counts as zero."""
    found = empty_map(a), empty_map(a), empty_map(a)
    if a.numel():
        kept = [None if g is None else like_layout(a, g) for g in (grad_total, grad_product)]
        maps = [like_layout(a, t) for t in (a, b, c)]
        given = addresses(*kept, *maps, *found)
        native("_cpu").gate_backward(DTYPES[a.dtype], a.numel(), threads_for(a), given)
    return found

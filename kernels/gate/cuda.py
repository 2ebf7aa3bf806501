"""Launchers of the compiled CUDA kernels of the attention gate."""

from torch import Tensor

from .._backend import like_input, like_layout, native
from .._cuda_launch import DTYPES, on_device


def forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (total, product) in the layout of ``a``."""
    total, product = like_input(a), like_input(a)
    if a.numel():
        maps = [like_layout(a, t) for t in (a, b, c)]
        _call("gate_forward", a, *maps, total, product)
    return total, product


def backward(
    grad_total: Tensor | None, grad_product: Tensor | None, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of a, b and c; an absent gradient counts as zero."""
    found = like_input(a), like_input(a), like_input(a)
    if a.numel():
        grads = [None if g is None else like_layout(a, g) for g in (grad_total, grad_product)]
        maps = [like_layout(a, t) for t in (a, b, c)]
        _call("gate_backward", a, *grads, *maps, *found)
    return found


def _call(name: str, a: Tensor, *maps: Tensor | None) -> None:
    launch = getattr(native("_cuda"), name)
    given = [0 if t is None else t.data_ptr() for t in maps]
    with on_device(a) as (device, stream):
        launch(device, stream, DTYPES[a.dtype], a.numel(), given)

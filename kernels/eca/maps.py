"""The maps around ECA that are not of x's own shape or layout; shared by op and launchers."""

from torch import Tensor

from .._backend import is_channels_last, like_input, like_layout


def pooled_shape(x: Tensor, pool: int) -> tuple[int, int, int, int] | None:
    """The sizes of the output, (N, C, H // 2, W // 2), where they are not those of ``x``."""
    n, c, h, w = x.shape
    return None if pool == 1 else (n, c, h // 2, w // 2)


def pooled_like(x: Tensor, pool: int) -> Tensor:
    """An uninitialised output: like ``x``, or of its pooled sizes."""
    return like_input(x, pooled_shape(x, pool))


def in_order_of(x: Tensor, grad: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """``grad`` in ``x``'s memory order, and its strides between images and planes (or pixels).

    A channel slice, as the backward of a concatenation hands out, is taken without a copy.
    """
    last, width = is_channels_last(x), x.shape[3]
    dense, outer = (1, 3) if last else (3, 1)
    if grad.stride(dense) != 1 or grad.stride(2) != width * grad.stride(3):
        grad = like_layout(x, grad)
    return grad, (grad.stride(0), grad.stride(outer))

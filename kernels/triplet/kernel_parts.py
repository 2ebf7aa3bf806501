"""Triplet attention on Triton by parts, for gates that are made elsewhere.

The passes over the map are those of the whole; between them stands a kernel that adds up the
partial planes.
"""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from .._backend import is_channels_last, like_input, like_layout
from .kernel_apply import apply_kernel
from .kernel_backward import grad_x_kernel
from .kernel_planes import (
    NO_KEYS,
    STREAM_WARPS,
    View,
    least,
    pairs,
    partials,
    readable,
    tiling,
    untagged,
    view_of,
)
from .op import index_dtype, plane_elements

BLOCK = 256  # positions a program of the joining kernel owns


@triton.jit
def join_kernel(
    x_ptr,
    sum_ptr,
    key_ptr,
    planes_ptr,
    index_ptr,
    positions,
    batch,
    a0,
    a1,
    a2,
    parts0,
    parts1,
    parts2,
    KEYS: tl.constexpr,
    GATES: tl.constexpr,
    G0: tl.constexpr,
    G1: tl.constexpr,
    G2: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """planes = maximum and mean of the partials, index = argmax; of a dot (NO_KEYS) sum / GATES.

    Program (i, axis) owns BLOCK positions of the planes of memory axis ``axis``, zeros where there
    is no gate.
    """
    axis = tl.program_id(1)
    images = tl.program_id(0).to(tl.int64) * 0 + batch  # 64 bits wide
    size0, size1 = images * a1 * a2, images * a0 * a2
    size = tl.where(axis == 0, size0, tl.where(axis == 1, size1, images * a0 * a1))
    length = tl.where(axis == 0, a0, tl.where(axis == 1, a1, a2))
    parts = tl.where(axis == 0, parts0, tl.where(axis == 1, parts1, parts2))
    gate = tl.where(axis == 0, G0, tl.where(axis == 1, G1, G2))
    parts = tl.where(gate < 0, 0, parts)
    first = tl.where(axis > 0, parts0 * size0, 0) + tl.where(axis > 1, parts1 * size1, 0)
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    to = tl.where(axis > 0, size0, 0) + tl.where(axis > 1, size1, 0) + offs
    mask = offs < size
    total = tl.zeros((BLOCK,), tl.float32)
    best = least((BLOCK,), KEYS)
    for t in range(parts):
        at = first + t * size + offs
        total += tl.load(sum_ptr + at, mask=mask, other=0.0)
        if KEYS != NO_KEYS:
            best = tl.maximum(best, tl.load(key_ptr + at, mask=mask, other=least((1,), KEYS)))
    if KEYS == NO_KEYS:
        tl.store(planes_ptr + to, total * (1.0 / GATES), mask=mask)
    else:
        top, index = untagged(best, x_ptr.dtype.element_ty, KEYS)
        mean = total * tl.div_rn(1.0, length.to(tl.float32))
        tl.store(planes_ptr + to, tl.where(gate < 0, 0.0, top), mask=mask)
        tl.store(planes_ptr + positions + to, mean, mask=mask)
        index = tl.where(gate < 0, 0, index)
        tl.store(index_ptr + to, index.to(index_ptr.dtype.element_ty), mask=mask)


def _view(x: Tensor, gates: int) -> tuple[Tensor, View]:
    """``x``, or a dense copy, and its view in the layout that ``axes.py`` sees."""
    view = view_of(x, gates, is_channels_last(x))
    return (x if readable(x, view) else x.contiguous()), view


def _beside(x: Tensor, grad: Tensor, view: View) -> Tensor:
    return grad if readable(grad, view) else like_layout(x, grad)


def _join(
    x: Tensor, grad: Tensor | None, view: View, gates: int, planes: Tensor, index: Tensor
) -> None:
    """Fills the pooled planes of x, or (grad) ``planes`` with the gradients of the gates."""
    keys = pairs(x, view) if grad is None else NO_KEYS
    sums, best, parts = partials(x, grad, view, keys.value)
    a0, a1, a2 = view.sizes
    largest = view.batch * max(a1 * a2, a0 * a2, a0 * a1)
    join_kernel[(triton.cdiv(largest, BLOCK), 3)](
        x, sums, best, planes, index, view.positions, view.batch, *view.sizes, *parts,
        KEYS=keys.value, GATES=gates, **view.constants(), BLOCK=BLOCK,
    )  # fmt: skip


def pool(x: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """(planes (2, positions), index (positions,)); see ``parts.py``."""
    planes = torch.empty((2, plane_elements(x)), dtype=torch.float32, device=x.device)
    index = torch.empty(plane_elements(x), dtype=index_dtype(x), device=x.device)
    if x.numel():
        x, view = _view(x, gates)
        _join(x, None, view, gates, planes, index)
    return planes, index


def pool_backward(grad_planes: Tensor, x: Tensor, index: Tensor, gates: int) -> Tensor:
    """grad_x."""
    grad_x = like_input(x)
    if x.numel():
        view, grad_planes = view_of(x, gates, is_channels_last(x)), grad_planes.contiguous()
        tiles = tiling(view, x.element_size(), 2048, 8, 16, STREAM_WARPS)
        grad_x_kernel[(view.batch * tiles.programs,)](
            grad_x, grad_x, grad_planes, grad_planes, index, view.positions, view.batch,
            *view.sizes, tiles.rows, *view.strides(grad_x), *view.strides(grad_x), HAS_GRAD=False,
            GATES=gates, **view.constants(), **tiles.constants(),
        )  # fmt: skip
    return grad_x


def apply(x: Tensor, gate: Tensor, gates: int) -> Tensor:
    """x times the mean of the gates (positions,)."""
    out = like_input(x)
    if x.numel():
        x, view = _view(x, gates)
        _gated(x, gate.contiguous(), gates, view, out)
    return out


def apply_backward(grad_out: Tensor, x: Tensor, gate: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """(grad_x, grad_gate)."""
    grad_x, grad_gate = like_input(x), torch.empty_like(gate)
    if x.numel():
        x, view = _view(x, gates)
        grad = _beside(x, grad_out, view)
        _join(x, grad, view, gates, grad_gate, grad_gate)
        _gated(grad, gate.contiguous(), gates, view, grad_x)
    return grad_x, grad_gate


def _gated(x: Tensor, gate: Tensor, gates: int, view: View, out: Tensor) -> None:
    tiles = tiling(view, x.element_size(), 8192 // x.element_size(), 16, 16, STREAM_WARPS)
    apply_kernel[(view.batch * tiles.programs,)](
        x, out, gate, gate, gate, gate, view.batch, *view.sizes, tiles.rows, *view.strides(x),
        *view.strides(out), NORM=False, GATES=gates, **view.constants(), **tiles.constants(),
    )  # fmt: skip

"""Triton: backward of triplet attention, six launches.

Of x's size move: x and grad_out once for the gate gradients, grad_out once more and grad_x; the
rest is planes. u and the gates are computed again from the saved planes.
"""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from .._backend import like_input, like_layout
from .kernel_gates import conv_tile, plane_tiles
from .kernel_grads import logits_kernel, planes_kernel, sums_kernel, taps_kernel
from .kernel_planes import (
    NO_KEYS,
    STREAM_WARPS,
    View,
    block_of,
    memory_view,
    partials,
    readable,
    tiling,
)


@triton.jit
def pooled_grad(dq_ptr, index_ptr, positions, offs, mask, length, SHARED: tl.constexpr):
    """What a pooled position sends back: to all of its line, to its maximum, and where that is.

    SHARED: the mean's has been divided by the length of the line already.
    """
    mean = tl.load(dq_ptr + positions + offs, mask=mask, other=0.0)
    if not SHARED:
        mean *= tl.div_rn(1.0, length.to(tl.float32))
    top = tl.load(dq_ptr + offs, mask=mask, other=0.0)
    index = tl.load(index_ptr + offs, mask=mask, other=-1).to(tl.int32)
    return mean, top, index


@triton.jit
def grad_x_kernel(
    grad_ptr,
    out_ptr,
    work_ptr,
    dq_ptr,
    index_ptr,
    positions,
    batch,
    a0,
    a1,
    a2,
    rows,
    stride_gn,
    stride_g0,
    stride_g1,
    stride_g2,
    stride_on,
    stride_o0,
    stride_o1,
    stride_o2,
    HAS_GRAD: tl.constexpr,
    GATES: tl.constexpr,
    G0: tl.constexpr,
    G1: tl.constexpr,
    G2: tl.constexpr,
    BLOCK1: tl.constexpr,
    BLOCK2: tl.constexpr,
):
    """grad_x = grad * (sum of gates) / GATES + the shares of the means + those of the argmaxima.

    Without HAS_GRAD what the pooled planes send back alone: grad and the gates are not read.

    One program owns rows x BLOCK1 x BLOCK2 elements; one read of grad, one write. Order of the
    programs as in the forward: from the last to the first.
    """
    pid = tl.num_programs(0).to(tl.int64) - 1 - tl.program_id(0)
    n, t0, t1, t2 = block_of(pid, a0, a1, a2, rows, BLOCK1, BLOCK2)
    offs1 = t1 * BLOCK1 + tl.arange(0, BLOCK1)
    offs2 = t2 * BLOCK2 + tl.arange(0, BLOCK2)
    inside = (offs1[:, None] < a1) & (offs2[None, :] < a2)
    grad_ptr += n * stride_gn + offs1[:, None] * stride_g1 + offs2[None, :] * stride_g2
    out_ptr += n * stride_on + offs1[:, None] * stride_o1 + offs2[None, :] * stride_o2
    plane1 = (n * 0 + batch) * a1 * a2 + n * a0 * a2
    plane2 = (n * 0 + batch) * (a1 * a2 + a0 * a2) + n * a0 * a1
    wide = n * 0  # makes the lengths 64 bits wide
    if G0 >= 0:
        at0 = n * a1 * a2 + offs1[:, None] * a2 + offs2[None, :]
        mean0, top0, index0 = pooled_grad(
            dq_ptr, index_ptr, positions, at0, inside, wide + a0, HAS_GRAD
        )
        if HAS_GRAD:
            gate0 = tl.load(work_ptr + at0, mask=inside, other=0.0)
    lo = t0 * rows
    for i0 in range(lo, tl.minimum(lo + rows, a0)):
        at1, mask1 = plane1 + i0 * a2 + offs2, offs2 < a2
        at2, mask2 = plane2 + i0 * a1 + offs1, offs1 < a1
        mean1, top1, index1 = pooled_grad(
            dq_ptr, index_ptr, positions, at1, mask1, wide + a1, HAS_GRAD
        )
        out = mean1[None, :] + tl.where(offs1[:, None] == index1[None, :], top1[None, :], 0.0)
        if G0 >= 0:
            out += mean0 + tl.where(index0 == i0, top0, 0.0)
        if G2 >= 0:
            mean2, top2, index2 = pooled_grad(
                dq_ptr, index_ptr, positions, at2, mask2, wide + a2, HAS_GRAD
            )
            out += mean2[:, None]
            out += tl.where(offs2[None, :] == index2[:, None], top2[:, None], 0.0)
        if HAS_GRAD:
            grad = tl.load(grad_ptr + i0 * stride_g0, mask=inside, other=0.0).to(tl.float32)
            scaled = grad * tl.load(work_ptr + at1, mask=mask1, other=0.0)[None, :]
            if G0 >= 0:
                scaled += grad * gate0
            if G2 >= 0:
                scaled += grad * tl.load(work_ptr + at2, mask=mask2, other=0.0)[:, None]
            out += scaled * (1.0 / GATES)
        tl.store(out_ptr + i0 * stride_o0, out.to(out_ptr.dtype.element_ty), mask=inside)


def backward(
    grad_out: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    stats: Tensor,
    planes: Tensor,
    index: Tensor,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(grad_x, grad_conv_weight, grad_bn_weight, grad_bn_bias), the last three in float32."""
    grad_x, gates = like_input(x), conv_weight.shape[0]
    grad_conv = torch.empty(conv_weight.shape, dtype=torch.float32, device=x.device)
    grad_weight, grad_bias = torch.empty_like(stats[0]), torch.empty_like(stats[0])
    if x.numel() == 0:
        return grad_x, grad_conv.zero_(), grad_weight.zero_(), grad_bias.zero_()
    view = memory_view(x, gates)
    if not readable(x, view):
        x = x.contiguous()
        view = memory_view(x, gates)
    grad = grad_out if readable(grad_out, view) else like_layout(x, grad_out)
    if not readable(grad, view):
        grad = torch.empty_like(x).copy_(grad)
    sums, _, parts = partials(x, grad, view, NO_KEYS.value)
    work, dq = _plane_grads(
        view, parts, sums, conv_weight.contiguous(), bn_weight.contiguous(), bn_bias.contiguous(),
        stats.contiguous(), planes, training, grad_conv, grad_weight, grad_bias,
    )  # fmt: skip
    tiles = tiling(view, x.element_size(), 2048, 8, 16, STREAM_WARPS)
    grad_x_kernel[(view.batch * tiles.programs,)](
        grad,
        grad_x,
        work,
        dq,
        index,
        view.positions,
        view.batch,
        *view.sizes,
        tiles.rows,
        *view.strides(grad),
        *view.strides(grad_x),
        HAS_GRAD=True,
        GATES=gates,
        **view.constants(),
        **tiles.constants(),
    )
    return grad_x, grad_conv, grad_weight, grad_bias


def _plane_grads(
    view: View,
    parts: tuple[int, int, int],
    sums: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    stats: Tensor,
    planes: Tensor,
    training: bool,
    grad_conv: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """(gates first of three planes of work, gradients of maxima and means); fills the grads."""
    conv = conv_tile(conv_weight.shape[-1])
    size, tiles = view.positions, plane_tiles(view.batch, view.sizes, conv)
    taps, valid = 2 * conv["K"] ** 2, conv["TILE"] - conv["K"] + 1
    work, dq = sums.new_empty(3 * size), sums.new_empty(2 * size)
    shares, tap_shares = sums.new_empty(2 * tiles), sums.new_empty(tiles * taps)
    where = (view.batch, *view.sizes)
    mapping = {"GATES": conv_weight.shape[0], **view.constants(), "TURNED": view.turned, **conv}
    logits_kernel[(tiles,)](
        planes, sums, conv_weight, bn_weight, bn_bias, stats, work, shares,
        *where, *parts, tiles, size, **mapping,
    )  # fmt: skip
    sums_kernel[(3,)](
        shares, grad_bias, grad_weight, *where, tiles, **view.constants(), V=valid, BLOCK=1024
    )
    # It holds twice what the other kernels hold of a tile: half the rows of taps, more warps.
    leaner = {"TAPS": min(4, conv["TAPS"]), "num_warps": max(8, conv["num_warps"])}
    planes_kernel[(2 * tiles,)](
        planes, work, conv_weight, bn_weight, stats, grad_bias, grad_weight, dq, tap_shares,
        *where, size, TRAINING=training, **{**mapping, **leaner},
    )  # fmt: skip
    taps_kernel[(3, triton.cdiv(taps, 16))](
        tap_shares, grad_conv, *where,
        **view.constants(), K=conv["K"], V=valid, BLOCK=256, BLOCK_TAPS=16,
    )  # fmt: skip
    return work, dq

"""Triton: the application of triplet attention's gates, one read and one write of the map."""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import triton
import triton.language as tl

from .kernel_gates import normalised
from .kernel_planes import block_of


@triton.jit
def gate_at(
    ptr, offs, mask, stats_ptr, bn_weight_ptr, bn_bias_ptr, gate,
    GATES: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Gates at ``offs``: as stored, or (NORM) sigmoid(bn(u)) of the u that is stored."""
    value = tl.load(ptr + offs, mask=mask, other=0.0)
    if NORM:
        center, rstd = tl.load(stats_ptr + gate), tl.load(stats_ptr + 2 * GATES + gate)
        value = normalised(value, center, rstd, bn_weight_ptr, bn_bias_ptr, gate)
    return value


@triton.jit
def apply_kernel(
    x_ptr,
    out_ptr,
    gate_ptr,
    stats_ptr,
    bn_weight_ptr,
    bn_bias_ptr,
    batch,
    a0,
    a1,
    a2,
    rows,
    stride_xn,
    stride_x0,
    stride_x1,
    stride_x2,
    stride_on,
    stride_o0,
    stride_o1,
    stride_o2,
    NORM: tl.constexpr,
    GATES: tl.constexpr,
    G0: tl.constexpr,
    G1: tl.constexpr,
    G2: tl.constexpr,
    BLOCK1: tl.constexpr,
    BLOCK2: tl.constexpr,
):
    """out = x * (sum of the gates over the three planes) / GATES; one read, one write.

    One program owns rows x BLOCK1 x BLOCK2 elements of an image; it reads the gates of plane 0 once
    for all its rows. Programs run from the last to the first: towards what the pool left in L2.
    """
    pid = tl.num_programs(0).to(tl.int64) - 1 - tl.program_id(0)
    n, t0, t1, t2 = block_of(pid, a0, a1, a2, rows, BLOCK1, BLOCK2)
    offs1 = t1 * BLOCK1 + tl.arange(0, BLOCK1)
    offs2 = t2 * BLOCK2 + tl.arange(0, BLOCK2)
    inside = (offs1[:, None] < a1) & (offs2[None, :] < a2)
    x_ptr += n * stride_xn + offs1[:, None] * stride_x1 + offs2[None, :] * stride_x2
    out_ptr += n * stride_on + offs1[:, None] * stride_o1 + offs2[None, :] * stride_o2
    plane1 = (n * 0 + batch) * a1 * a2 + n * a0 * a2
    plane2 = (n * 0 + batch) * (a1 * a2 + a0 * a2) + n * a0 * a1
    if G0 >= 0:
        at0 = n * a1 * a2 + offs1[:, None] * a2 + offs2[None, :]
        common = gate_at(
            gate_ptr, at0, inside, stats_ptr, bn_weight_ptr, bn_bias_ptr, G0, GATES, NORM
        )
    lo = t0 * rows
    for i0 in range(lo, tl.minimum(lo + rows, a0)):
        tile = tl.load(x_ptr + i0 * stride_x0, mask=inside, other=0.0).to(tl.float32)
        across = gate_at(
            gate_ptr, plane1 + i0 * a2 + offs2, offs2 < a2,
            stats_ptr, bn_weight_ptr, bn_bias_ptr, G1, GATES, NORM,
        )  # fmt: skip
        out = tile * across[None, :]  # a product per gate, so that inf * 0 is NaN as on paper
        if G2 >= 0:
            down = gate_at(
                gate_ptr, plane2 + i0 * a1 + offs1, offs1 < a1,
                stats_ptr, bn_weight_ptr, bn_bias_ptr, G2, GATES, NORM,
            )  # fmt: skip
            out += tile * down[:, None]
        if G0 >= 0:
            out += tile * common
        out *= 1.0 / GATES
        tl.store(out_ptr + i0 * stride_o0, out.to(out_ptr.dtype.element_ty), mask=inside)

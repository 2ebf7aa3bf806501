"""Triplet attention on Triton: 3 launches in inference, 4 in training, 6 backward, no atomics.

Passes over x (floor of the op in brackets; planes are 1/C + 1/H + 1/W of x each):
forward 2R 1W + partial planes (2R 1W + planes; 1R 1W when x stays in L2: the second read walks
backwards through what the first has just left there), backward 3R 1W + planes (3R 1W + planes).
"""

# ruff: noqa: ANN001 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from .._backend import like_input
from .kernel_backward import backward
from .kernel_gates import conv_tile, gates_kernel, normalised, plane_tiles, stats_kernel
from .kernel_planes import (
    PAIRS_32,
    PAIRS_64,
    STREAM_WARPS,
    VALUES,
    View,
    block_of,
    memory_view,
    pool,
    readable,
    tiling,
)

__all__ = ["backward", "forward"]


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


def forward(
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, stats, planes, index); see ``op.py``. The last two are empty unless ``keep``."""
    out, gates = like_input(x), conv_weight.shape[0]
    view = memory_view(x, gates)
    if not readable(x, view):
        x = x.contiguous()
        view = memory_view(x, gates)
    positions = view.positions if keep else 0
    wide = torch.int16 if max(view.sizes) <= 32767 else torch.int32
    stats = torch.empty((3, gates), dtype=torch.float32, device=x.device)
    planes = torch.empty(2 * positions, dtype=torch.float32, device=x.device)
    index = torch.empty(positions, dtype=wide, device=x.device)
    if x.numel() == 0:
        return out, stats.zero_(), planes, index
    bn = (bn_weight.contiguous(), bn_bias.contiguous())
    values = _gates(
        x, conv_weight, bn, (running_mean, running_var), eps, view, training, stats, planes, index
    )
    size = x.element_size()
    tiles = tiling(view, size, 8192 // size, 16, 16, STREAM_WARPS)
    apply_kernel[(view.batch * tiles.programs,)](
        x,
        out,
        values,
        stats,
        *bn,
        view.batch,
        *view.sizes,
        tiles.rows,
        *view.strides(x),
        *view.strides(out),
        NORM=training,
        GATES=gates,
        **view.constants(),
        **tiles.constants(),
    )
    return out, stats, planes, index


def _gates(
    x: Tensor,
    conv_weight: Tensor,
    bn: tuple[Tensor, Tensor],
    running: tuple[Tensor, Tensor],
    eps: float,
    view: View,
    training: bool,
    stats: Tensor,
    planes: Tensor,
    index: Tensor,
) -> Tensor:
    """The gates of all planes (their u in training); fills stats and, unless empty, the rest."""
    keep = index.numel() > 0
    keys = VALUES
    if keep:
        keys = PAIRS_32 if x.element_size() == 2 and max(view.sizes) <= 65536 else PAIRS_64
    sums, best, parts = pool(x, None, view, keys.value)
    conv = conv_tile(conv_weight.shape[-1])
    tiles = plane_tiles(view.batch, view.sizes, conv)
    values = torch.empty(view.positions, dtype=torch.float32, device=x.device)
    moments = torch.empty(3 * tiles if training else 0, dtype=torch.float32, device=x.device)
    gates_kernel[(tiles,)](
        x,
        sums,
        best,
        conv_weight.contiguous(),
        *bn,
        running[0].contiguous(),
        running[1].contiguous(),
        values,
        moments,
        stats,
        planes,
        index,
        eps,
        view.batch,
        *view.sizes,
        *parts,
        tiles,
        view.positions,
        TRAINING=training,
        KEEP=keep,
        KEYS=keys.value,
        GATES=conv_weight.shape[0],
        **view.constants(),
        TURNED=view.turned,
        **conv,
    )
    if training:
        stats_kernel[(3,)](
            moments,
            stats,
            eps,
            view.batch,
            *view.sizes,
            tiles,
            GATES=conv_weight.shape[0],
            **view.constants(),
            V=conv["TILE"] - conv["K"] + 1,
            BLOCK=1024,
        )
    return values

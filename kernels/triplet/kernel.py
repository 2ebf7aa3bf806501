"""Triplet attention on Triton: 3 launches in inference, 4 in training, 6 backward, no atomics.

Passes over x (floor of the op in brackets; planes are 1/C + 1/H + 1/W of x each):
forward 2R 1W + partial planes (2R 1W + planes; 1R 1W when x stays in L2: the second read walks
backwards through what the first has just left there), backward 3R 1W + planes (3R 1W + planes).
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import torch
from torch import Tensor

from .._backend import like_input
from .kernel_apply import apply_kernel
from .kernel_backward import backward
from .kernel_gates import conv_tile, gates_kernel, plane_tiles, stats_kernel
from .kernel_parts import apply, apply_backward, pool, pool_backward
from .kernel_planes import (
    STREAM_WARPS,
    VALUES,
    View,
    memory_view,
    pairs,
    partials,
    readable,
    tiling,
)

__all__ = ["apply", "apply_backward", "backward", "forward", "pool", "pool_backward"]


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
    keys = pairs(x, view) if keep else VALUES
    sums, best, parts = partials(x, None, view, keys.value)
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

"""Split attention on Triton: four launches forward, five at most backward, no atomics.

A sum over pixels is cut into parts that depend on the sizes alone; the vectors' kernels add the
parts up in a fixed order, so that every run gives the same bits.

Passes over x (R splits, each as large as the output; floor of the op in brackets): forward 2R of x
and 1/R W (the same; 1R 1/R W when x stays in L2: combine walks backwards through what the pool has
just left there), backward 1R of x, 2/R R of grad_out and 1W (the same).
"""

# Triton declares what a kernel is given as constexpr, and so what its helpers return.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
from typing import NamedTuple

import torch
from torch import Tensor

from .._backend import like_input
from .._triton_plan import beside, cdiv, even, next_power, plan_of, strides
from .kernel_gates import fc1_kernel, fc2_kernel
from .kernel_grads import hidden_kernel, logits_kernel, weights_kernel
from .kernel_parts import MAX_PARTS, apply, apply_backward, pool
from .kernel_stream import combine_kernel, dot_kernel, grad_x_kernel, pool_kernel

__all__ = ["apply", "apply_backward", "backward", "forward", "pool"]

VECTOR_TILE = 8192  # numbers that a program of fc1 and of its gradient holds at a time


class _Vectors(NamedTuple):
    """Sizes of the vectors: images, channels of a split, hidden units, the two in one group."""

    batch: int
    channels: int
    inner: int
    per_c: int
    per_i: int


def _vectors(x: Tensor, inner: int, radix: int, cardinality: int) -> _Vectors:
    channels = x.shape[1] // radix
    return _Vectors(x.shape[0], channels, inner, channels // cardinality, inner // cardinality)


def _dense(*parameters: Tensor) -> tuple[Tensor, ...]:
    return tuple(p.contiguous() for p in parameters)


def _fc1_blocks(v: _Vectors, parts: int) -> dict[str, int]:
    block_n = min(32, next_power(v.batch))
    block_c = min(next_power(v.per_c), max(1, VECTOR_TILE // parts // block_n))
    return {"BLOCK_N": block_n, "BLOCK_C": block_c}


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    radix: int,
    cardinality: int,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, stats, saved); see ``op.py``."""
    batch, width, height, columns = x.shape
    out = like_input(x, (batch, width // radix, height, columns))
    v = _vectors(x, fc1_weight.shape[0], radix, cardinality)
    stats = torch.empty((3, v.inner), dtype=torch.float32, device=x.device)
    saved = stats.new_empty((batch, v.channels + width))
    if batch == 0:
        return out, stats.zero_(), saved
    x = even(x)
    plan = plan_of(x, splits=radix, most_parts=MAX_PARTS)
    folded = (x, x) if scale is None or shift is None else (scale.contiguous(), shift.contiguous())
    tile = {"SCALED": scale is not None, "RADIX": radix}
    tile |= {"BLOCK_C": plan.block_c, "BLOCK_P": plan.block_p}
    part = stats.new_empty((batch, v.channels, plan.parts))
    hw = height * columns
    pool_kernel[plan.sum_grid](
        x, *folded, part, v.channels, hw, plan.sum_chunk, *strides(x), PARTS=plan.parts, **tile
    )
    hidden = stats.new_empty((v.inner, batch))
    fc1 = _dense(fc1_weight, fc1_weight if fc1_bias is None else fc1_bias)
    fc1_kernel[(v.inner,)](
        part, *fc1, *_dense(running_mean, running_var), saved, hidden, stats, *v, 1.0 / hw,
        1.0 / batch, eps, TRAINING=training, HAS_BIAS=fc1_bias is not None, RADIX=radix,
        PARTS=plan.parts, **_fc1_blocks(v, plan.parts), num_warps=8,
    )  # fmt: skip
    fc2 = _dense(bn_weight, bn_bias, fc2_weight, fc2_weight if fc2_bias is None else fc2_bias)
    _attention(v, hidden, stats, fc2, radix, fc2_bias is not None, saved)
    combine_kernel[plan.map_grid](
        x, *folded, saved, out, v.channels, hw, plan.map_chunk, *strides(x), *strides(out), **tile
    )
    return out, stats, saved


def _attention(
    v: _Vectors,
    hidden: Tensor,
    stats: Tensor,
    fc2: tuple[Tensor, ...],
    radix: int,
    has_bias: bool,
    saved: Tensor,
) -> None:
    """Fills the attention's columns of ``saved``; ``fc2`` with the batch norm in front of it."""
    block_c, block_i = min(16, next_power(v.per_c)), min(64, next_power(v.per_i))
    fc2_kernel[(v.batch * v.channels // v.per_c * cdiv(v.per_c, block_c),)](
        hidden, stats, *fc2, saved, *v, HAS_BIAS=has_bias, RADIX=radix, ROWS=next_power(radix),
        BLOCK_C=block_c, BLOCK_I=block_i,
    )  # fmt: skip


def backward(
    grad_out: Tensor,
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    bn_weight: Tensor,
    bn_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    stats: Tensor,
    saved: Tensor,
    radix: int,
    cardinality: int,
    training: bool,
    eps: float,
    need_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(grad_x or None, gradients of the six parameters in float32); see ``op.py``."""
    grad_x = like_input(x) if need_input else None
    v = _vectors(x, fc1_weight.shape[0], radix, cardinality)
    grad_fc1, grad_fc2 = (stats.new_empty(t.shape) for t in (fc1_weight, fc2_weight))
    grads, grad_bias = stats.new_empty((3, v.inner)), stats.new_empty(x.shape[1])
    found = (grad_fc1, *grads, grad_fc2, grad_bias)
    if v.batch == 0:
        return grad_x, *(g.zero_() for g in found)
    x = even(x)
    grad, plan = beside(x, grad_out), plan_of(x, splits=radix, most_parts=MAX_PARTS)
    tile = {"RADIX": radix, "BLOCK_C": plan.block_c, "BLOCK_P": plan.block_p}
    part = stats.new_empty((v.batch, x.shape[1], plan.parts))
    hw = x.shape[2] * x.shape[3]
    dot_kernel[plan.sum_grid](
        x, grad, part, v.channels, hw, plan.sum_chunk, *strides(x), *strides(grad),
        PARTS=plan.parts, **tile,
    )  # fmt: skip
    biased = fc1_weight if fc1_bias is None else fc1_bias
    mean = _vector_grads(
        v, part, saved, stats, _dense(fc1_weight, biased, bn_weight, bn_bias, fc2_weight),
        fc1_bias is not None, (grad_fc1, grads, grad_fc2, grad_bias), radix, training, 1.0 / hw,
        need_input,
    )  # fmt: skip
    if grad_x is not None:
        grad_x_kernel[plan.map_grid](
            grad, saved, mean, grad_x, v.channels, hw, plan.map_chunk, *strides(grad),
            *strides(grad_x), **tile,
        )  # fmt: skip
    return grad_x, *found


def _vector_grads(
    v: _Vectors,
    part: Tensor,
    saved: Tensor,
    stats: Tensor,
    parameters: tuple[Tensor, ...],
    has_bias: bool,
    grads: tuple[Tensor, Tensor, Tensor, Tensor],
    radix: int,
    training: bool,
    inv_hw: float,
    need_input: bool,
) -> Tensor:
    """Fills the parameters' gradients; returns what each pixel gets of the pooled mean's (N, C)."""
    fc1_weight, fc1_bias, bn_weight, bn_bias, fc2_weight = parameters
    grad_fc1, grad_rows, grad_fc2, grad_fc2_bias = grads
    parts, rows, groups = part.shape[2], next_power(radix), v.channels // v.per_c
    dz = stats.new_empty((v.batch, radix * v.channels))
    hidden, dv, dh = stats.new_empty((3, v.inner, v.batch))
    block_r = min(64, next_power(v.channels), max(1, 4096 // rows // parts))
    logits_kernel[(v.inner + v.batch * cdiv(v.channels, block_r),)](
        part, saved, fc1_weight, fc1_bias, dz, hidden, *v, HAS_BIAS=has_bias, RADIX=radix,
        PARTS=parts, ROWS=rows, BLOCK_R=block_r, **_fc1_blocks(v, 1), num_warps=8,
    )  # fmt: skip
    block_n = min(32, next_power(v.batch))
    block_r = min(next_power(radix * v.per_c), VECTOR_TILE // block_n)
    hidden_kernel[(v.inner,)](
        dz, hidden, stats, bn_weight, bn_bias, fc2_weight, dv, dh, grad_rows, v.batch, v.inner,
        radix * v.per_c, v.per_i, 1.0 / v.batch, TRAINING=training, BLOCK_N=block_n,
        BLOCK_R=block_r, num_warps=8,
    )  # fmt: skip
    mean = stats.new_empty((v.batch, v.channels) if need_input else 0)
    p, q = 16, 32
    tiles_fc2 = groups * cdiv(radix * v.per_c, p) * cdiv(v.per_i, q)
    tiles_fc1 = groups * cdiv(v.per_i, p) * cdiv(v.per_c, q)
    tiles_mean = v.batch * groups * cdiv(v.per_c, q) if need_input else 0
    weights_kernel[(tiles_fc2 + tiles_fc1 + tiles_mean,)](
        dz, dh, hidden, saved, stats, bn_weight, bn_bias, fc1_weight, grad_fc1, grad_fc2,
        grad_fc2_bias, mean, *v, tiles_fc2, tiles_fc1, inv_hw, RADIX=radix,
        BLOCK_N=min(8, next_power(v.batch)), BLOCK_P=p, BLOCK_Q=q,
    )  # fmt: skip
    return mean

"""ECA on Triton: two launches forward, five at most backward, no atomics.

A map is read as (batch, channel, pixel) by three strides, so one set of kernels serves NCHW,
channels_last and slices of either; the tile is long where memory is: (1, many) in NCHW, (64, some)
in channels_last. Sums over pixels are split over programs in two stages, the second inside the
consumer, so that they come out the same on every run.

Passes over x (floor of the op in brackets): forward 2R 1W (2R 1W; 1R 1W when x stays in L2: the
scale walks backwards through what the pool has just left there), backward 3R 1W (3R 1W; 2R 1W).
"""

# Triton declares what a kernel is given as constexpr, and so what its helpers return.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from .._backend import like_input, like_layout
from .kernel_jit import grad_taps_kernel, pool_kernel, scale_kernel

PROGRAMS = 1024  # enough to fill a large GPU several times over
MAX_SPLITS = 32  # partial sums the second stage adds up per channel
TILE_BYTES = 8192  # four 16-byte loads in flight for each of 128 threads
ROW_BYTES = 256  # of a channels_last tile


class _Plan(NamedTuple):
    """How a map is cut: tile, pixels per program of the pool and of the scale, split of the sum."""

    block_c: int
    block_p: int
    splits: int
    pool_chunk: int
    scale_chunk: int
    pool_grid: tuple[int]
    scale_grid: tuple[int]


def _plan(x: Tensor) -> _Plan:
    """Tiles long where memory is, and programs enough to fill the machine."""
    batch, channels, hw = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    tile = TILE_BYTES // x.element_size()
    wide_c, wide_p = triton.next_power_of_2(channels), triton.next_power_of_2(hw)
    if x.stride(1) == 1 and channels > 1:
        block_p = min(wide_p, tile // min(wide_c, ROW_BYTES // x.element_size()))
    else:
        block_p = min(wide_p, tile)
    block_c = min(wide_c, tile // block_p)
    rows, tiles = batch * triton.cdiv(channels, block_c), triton.cdiv(hw, block_p)
    splits = 1
    while splits < MAX_SPLITS and rows * splits < PROGRAMS and 2 * splits <= tiles:
        splits *= 2
    per_scale = max(1, min(8, rows * tiles // PROGRAMS))
    return _Plan(
        block_c,
        block_p,
        splits,
        triton.cdiv(tiles, splits) * block_p,
        per_scale * block_p,
        (rows * splits,),
        (rows * triton.cdiv(tiles, per_scale),),
    )


def _pixel_strides(x: Tensor) -> tuple[int, int, int] | None:
    """Strides of (image, channel, pixel), or None when the pixels do not lie evenly."""
    height, width = x.shape[2:]
    if width == 1:
        return x.stride(0), x.stride(1), x.stride(2) if height > 1 else 1
    if height > 1 and x.stride(2) != width * x.stride(3):
        return None
    return x.stride(0), x.stride(1), x.stride(3)


def _strides(x: Tensor) -> tuple[int, int, int]:
    strides = _pixel_strides(x)
    assert strides is not None
    return strides


def _even(x: Tensor) -> Tensor:
    """``x``, or a contiguous copy when its pixels do not lie evenly."""
    return x if _pixel_strides(x) else x.contiguous()


def _pool(x: Tensor, grad: Tensor | None, plan: _Plan) -> Tensor:
    """Partial sums (splits, N, C) of x, or of x * grad."""
    batch, channels, height, width = x.shape
    part = x.new_empty((plan.splits, batch, channels), dtype=torch.float32)
    pool_kernel[plan.pool_grid](
        x,
        x if grad is None else grad,
        part,
        batch,
        channels,
        height * width,
        plan.pool_chunk,
        *_strides(x),
        *_strides(x if grad is None else grad),
        HAS_GRAD=grad is not None,
        SPLITS=plan.splits,
        BLOCK_C=plan.block_c,
        BLOCK_P=plan.block_p,
    )
    return part


def _scale(
    x: Tensor,
    part: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    saved: Tensor,
    plan: _Plan,
    out: Tensor,
    backward: bool,
) -> None:
    """Fills ``out`` (and ``saved``, forward) from x, or from grad_out when ``backward``."""
    batch, channels, height, width = x.shape
    scale_kernel[plan.scale_grid](
        x,
        out,
        part,
        weight,
        weight if bias is None else bias,
        saved,
        batch,
        channels,
        height * width,
        plan.scale_chunk,
        1.0 / (height * width),
        *_strides(x),
        *_strides(out),
        BACKWARD=backward,
        HAS_BIAS=bias is not None,
        TAPS=weight.numel(),
        SPLITS=plan.splits,
        BLOCK_C=plan.block_c,
        BLOCK_P=plan.block_p,
    )


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, saved): saved float32 (2, N, C) holds the pooled means and the gates."""
    summed = x.new_empty(0) if residual is None else x + residual
    x = x if residual is None else summed
    out = like_input(x)
    saved = x.new_empty((2, x.shape[0], x.shape[1]), dtype=torch.float32)
    if x.numel() == 0:
        return F.max_pool2d(out, 2) if pool == 2 else out, summed, saved.zero_()
    x = _even(x)
    plan = _plan(x)
    part = _pool(x, None, plan)
    _scale(x, part, weight.contiguous(), bias, saved, plan, out, backward=False)
    return F.max_pool2d(out, 2) if pool == 2 else out, summed, saved


def backward(
    grad_out: Tensor,
    grad_summed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    pool: int,
    need_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(grad_x or None, grad_weight (K,), grad_bias (1,)), the last two in float32."""
    if pool == 2:
        at = F.max_pool2d(x, 2, return_indices=True)[1]
        grad_out = F.max_unpool2d(grad_out, at, 2, output_size=list(x.shape))
        grads = backward(grad_out, None, x, weight, saved, 1, need_input)
        if grads[0] is not None and grad_summed is not None:
            grads[0].add_(grad_summed)
        return grads
    grad_x = like_input(x) if need_input else None
    taps, vectors = weight.numel(), x.shape[0] * x.shape[1]
    if x.numel() == 0:
        return grad_x, saved.new_zeros(taps), saved.new_zeros(1)
    x, weight, saved = _even(x), weight.contiguous(), saved.contiguous()
    grad = grad_out
    if not _pixel_strides(grad) or (grad.stride(1) == 1) != (x.stride(1) == 1):
        grad = like_layout(x, grad)  # one copy costs less than reading across the lines
    plan = _plan(x)
    part = _pool(x, grad, plan)
    if grad_x is not None:
        _scale(grad, part, weight, None, saved, plan, grad_x, backward=True)
    block = max(1, min(TILE_BYTES // 4 // plan.splits, triton.next_power_of_2(vectors)))
    span = 16 * block
    rows = triton.cdiv(vectors, span)
    grad_weight, grad_bias = saved.new_empty((rows, taps)), saved.new_empty((rows, 1))
    grad_taps_kernel[taps + 1, rows](
        part,
        saved,
        grad_weight,
        grad_bias,
        vectors,
        x.shape[1],
        span,
        TAPS=taps,
        SPLITS=plan.splits,
        BLOCK=block,
    )
    if rows == 1:
        return grad_x, grad_weight.view(taps), grad_bias.view(1)
    return grad_x, grad_weight.sum(0), grad_bias.sum(0)

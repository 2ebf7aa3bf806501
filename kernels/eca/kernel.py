"""ECA on Triton: two launches forward, five at most backward, no atomics.

A map is read as (batch, channel, pixel) by three strides, so one set of kernels serves NCHW,
channels_last and slices of either; the tile is long where memory is: (1, many) in NCHW, (64, some)
in channels_last. Sums over pixels are split over programs in two stages, the second inside the
consumer, so that they come out the same on every run.

Passes over x (floor of the op in brackets): forward 2R 1W (2R 1W; 1R 1W when x stays in L2: the
scale walks backwards through what the pool has just left there), backward 3R 1W (3R 1W; 2R 1W).
A residual is added in the first pass, which then writes the sum: 1R 1W more. With the max-pool
behind the gate (kernel_windows.py) what is written forward and read backward is a quarter map.
"""

# Triton declares what a kernel is given as constexpr, and so what its helpers return.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import torch
from torch import Tensor

from .._backend import like_input, like_layout
from .._triton_plan import (
    TILE_BYTES,
    Plan,
    beside,
    cdiv,
    even,
    next_power,
    plan_of,
    strides,
)
from .kernel_jit import grad_taps_kernel, pool_kernel, scale_kernel
from .kernel_windows import pool_windows_kernel, scale_windows_kernel, spread_windows_kernel
from .maps import pooled_like


def _pool(x: Tensor, term: str, other: Tensor, summed: Tensor, plan: Plan) -> Tensor:
    """Partial sums (splits, N, C) of ``term``; ``other`` and ``summed`` may be x itself."""
    batch, channels, height, width = x.shape
    part = x.new_empty((plan.parts, batch, channels), dtype=torch.float32)
    pool_kernel[plan.sum_grid](
        x,
        other,
        summed,
        part,
        batch,
        channels,
        height * width,
        plan.sum_chunk,
        *strides(x),
        *strides(other),
        *strides(summed),
        TERM=term,
        SPLITS=plan.parts,
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
    plan: Plan,
    out: Tensor,
    backward: bool,
) -> None:
    """Fills ``out`` (and ``saved``, forward) from x, or from grad_out when ``backward``."""
    batch, channels, height, width = x.shape
    scale_kernel[plan.map_grid](
        x,
        out,
        part,
        weight,
        weight if bias is None else bias,
        saved,
        batch,
        channels,
        height * width,
        plan.map_chunk,
        1.0 / (height * width),
        *strides(x),
        *strides(out),
        BACKWARD=backward,
        HAS_BIAS=bias is not None,
        TAPS=weight.numel(),
        SPLITS=plan.parts,
        BLOCK_C=plan.block_c,
        BLOCK_P=plan.block_p,
    )


def _scale_windows(
    x: Tensor, part: Tensor, weight: Tensor, bias: Tensor | None, saved: Tensor, out: Tensor
) -> None:
    """Fills ``saved`` and the pooled ``out`` from x."""
    batch, channels, height, width = x.shape
    plan = plan_of(x, 2)
    scale_windows_kernel[plan.map_grid](
        x,
        out,
        part,
        weight,
        weight if bias is None else bias,
        saved,
        batch,
        channels,
        height,
        width,
        plan.map_chunk,
        1.0 / (height * width),
        *strides(x),
        *strides(out),
        HAS_BIAS=bias is not None,
        TAPS=weight.numel(),
        SPLITS=part.shape[0],
        BLOCK_C=plan.block_c,
        BLOCK_Q=plan.block_p,
    )


def _pool_windows(x: Tensor, grad: Tensor, saved: Tensor, plan: Plan) -> Tensor:
    """Partial sums (splits, N, C) of grad * (what was pooled of x)."""
    batch, channels, height, width = x.shape
    part = x.new_empty((plan.parts, batch, channels), dtype=torch.float32)
    pool_windows_kernel[plan.sum_grid](
        x,
        grad,
        part,
        saved,
        batch,
        channels,
        height,
        width,
        plan.sum_chunk,
        *strides(x),
        *strides(grad),
        SPLITS=plan.parts,
        BLOCK_C=plan.block_c,
        BLOCK_Q=plan.block_p,
    )
    return part


def _spread_windows(
    x: Tensor,
    grad: Tensor,
    grad_summed: Tensor | None,
    part: Tensor,
    weight: Tensor,
    saved: Tensor,
    plan: Plan,
    out: Tensor,
) -> None:
    """Fills ``out``, the gradient of x."""
    batch, channels, height, width = x.shape
    other = grad if grad_summed is None else grad_summed
    spread_windows_kernel[plan.map_grid](
        x,
        grad,
        other,
        out,
        part,
        weight,
        saved,
        batch,
        channels,
        height,
        width,
        plan.map_chunk,
        1.0 / (height * width),
        *strides(x),
        *strides(grad),
        *strides(other),
        *strides(out),
        HAS_OTHER=grad_summed is not None,
        TAPS=weight.numel(),
        SPLITS=plan.parts,
        BLOCK_C=plan.block_c,
        BLOCK_Q=plan.block_p,
    )


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, summed or an empty tensor, saved); saved float32 (2, N, C): pooled means, gates."""
    out = pooled_like(x, pool)
    summed = x.new_empty(0) if residual is None else like_input(x)
    saved = x.new_empty((2, x.shape[0], x.shape[1]), dtype=torch.float32)
    if x.numel() == 0:
        return out, summed, saved.zero_()
    x, weight = even(x), weight.contiguous()
    plan = plan_of(x)
    if residual is None:
        part = _pool(x, "x", x, x, plan)
    else:
        part = _pool(x, "x + other", like_layout(x, residual), summed, plan)
        x = summed
    if pool == 2:
        _scale_windows(x, part, weight, bias, saved, out)
    else:
        _scale(x, part, weight, bias, saved, plan, out, backward=False)
    return out, summed, saved


def backward(
    grad_out: Tensor,
    grad_summed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    pool: int,
    need_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(grad_x or None, grad_weight (K,), grad_bias (1,)), the last two in float32.

    x is the sum where there was a residual; grad_summed is None unless ``pool`` is 2.
    """
    grad_x = like_input(x) if need_input else None
    if x.numel() == 0:
        return grad_x, saved.new_zeros(weight.numel()), saved.new_zeros(1)
    x, weight, saved = even(x), weight.contiguous(), saved.contiguous()
    grad, plan = beside(x, grad_out), plan_of(x, pool)
    if pool == 2:
        part = _pool_windows(x, grad, saved, plan)
        if grad_x is not None:
            other = None if grad_summed is None else beside(x, grad_summed)
            _spread_windows(x, grad, other, part, weight, saved, plan, grad_x)
    else:
        part = _pool(x, "x * other", grad, x, plan)
        if grad_x is not None:
            _scale(grad, part, weight, None, saved, plan, grad_x, backward=True)
    return grad_x, *_grad_taps(part, saved, weight.numel(), plan)


def _grad_taps(part: Tensor, saved: Tensor, taps: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """(grad_weight (K,), grad_bias (1,)) from the partial sums."""
    channels = saved.shape[2]
    vectors = saved.shape[1] * channels
    block = max(1, min(TILE_BYTES // 4 // plan.parts, next_power(vectors)))
    span = 16 * block
    rows = cdiv(vectors, span)
    grad_weight, grad_bias = saved.new_empty((rows, taps)), saved.new_empty((rows, 1))
    grad_taps_kernel[taps + 1, rows](
        part,
        saved,
        grad_weight,
        grad_bias,
        vectors,
        channels,
        span,
        TAPS=taps,
        SPLITS=plan.parts,
        BLOCK=block,
    )
    if rows == 1:
        return grad_weight.view(taps), grad_bias.view(1)
    return grad_weight.sum(0), grad_bias.sum(0)

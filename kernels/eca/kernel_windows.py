"""The Triton kernels of ECA with the 2x2 max-pool behind it; ``kernel.py`` launches them.

A program owns BLOCK_C channels of some windows, those cut off by an odd edge among them. A row of
windows is read in pairs of neighbouring pixels, and the four values stay in registers.
"""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import triton
import triton.language as tl

from .kernel_jit import _gate, _grad_mean


@triton.jit
def _pairs(offs_c, offs_q, row, stride_c, stride_p, channels, height, width, end):
    """(offsets, mask), each (BLOCK_C, BLOCK_Q, 2), of row 0 or 1 of the windows ``offs_q``."""
    across = tl.cdiv(width, 2)
    y = offs_q // across * 2 + row
    x = (offs_q % across * 2)[:, None] + tl.arange(0, 2)[None, :]
    offs = offs_c[:, None, None] * stride_c + (y[:, None] * width + x)[None, :, :] * stride_p
    inside = (offs_q < end)[:, None] & (y < height)[:, None] & (x < width)
    return offs, (offs_c[:, None, None] < channels) & inside[None, :, :]


@triton.jit
def _row(ptr, offs_c, offs_q, row, stride_c, stride_p, channels, height, width, end):
    """The left and the right values of a row of the windows, in float32; 0 outside."""
    offs, mask = _pairs(
        offs_c, offs_q, row, stride_c, stride_p, channels, height, width, end
    )  # fmt: skip
    return tl.split(tl.load(ptr + offs, mask=mask, other=0.0).to(tl.float32))


@triton.jit
def _whole(offs_c, offs_q, channels, height, width, end):
    """(offsets among the whole windows of a plane, mask of what is one); (BLOCK_Q), (C, Q)."""
    across = tl.cdiv(width, 2)
    y, x = offs_q // across, offs_q % across
    whole = (offs_q < end) & (y < height // 2) & (x < width // 2)
    return y * (width // 2) + x, (offs_c[:, None] < channels) & whole[None, :]


@triton.jit
def _better(best, at, value, number, gate):
    """Takes ``value`` where max_pool2d of the gated values would: larger, or NaN."""
    gated = value * gate[:, None]
    value = tl.where(gated != gated, gated, value)
    better = (value > best) | (value != value)
    return tl.where(better, value, best), tl.where(better, number, at)


@triton.jit
def _pick(ptr, offs_c, offs_q, stride_c, stride_p, channels, height, width, end, gate):
    """(value, number 0 to 3) of the largest of each window, of equal ones the first.

    The gate is never negative, so that the largest value is the largest gated one too.
    """
    a, b = _row(ptr, offs_c, offs_q, 0, stride_c, stride_p, channels, height, width, end)
    c, d = _row(ptr, offs_c, offs_q, 1, stride_c, stride_p, channels, height, width, end)
    best = tl.full(a.shape, float("-inf"), tl.float32)
    at = tl.zeros(a.shape, tl.int32)
    best, at = _better(best, at, a, 0, gate)
    best, at = _better(best, at, b, 1, gate)
    best, at = _better(best, at, c, 2, gate)
    return _better(best, at, d, 3, gate)


@triton.jit
def pool_windows_kernel(
    x_ptr,
    grad_ptr,
    part_ptr,
    saved_ptr,
    batch,
    channels,
    height,
    width,
    chunk,
    stride_xn,
    stride_xc,
    stride_xp,
    stride_gn,
    stride_gc,
    stride_gp,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """part[s, n, c] = sum over the windows of split s of grad * (what the pool took of x).

    Reads x and the quarter map grad once.
    """
    pid = tl.program_id(0).to(tl.int64)
    split = pid % SPLITS
    blocks = tl.cdiv(channels, BLOCK_C)
    n = pid // SPLITS // blocks
    offs_c = (pid // SPLITS % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    lo = split * chunk
    end = tl.minimum(lo + chunk, tl.cdiv(height, 2) * tl.cdiv(width, 2))
    at = n * channels + offs_c
    gate = tl.load(saved_ptr + batch * channels + at, mask=offs_c < channels, other=0.0)
    x_ptr += n * stride_xn
    grad_ptr += n * stride_gn
    acc = tl.zeros((BLOCK_C, BLOCK_Q), dtype=tl.float32)
    for start in range(lo, end, BLOCK_Q):
        offs_q = start + tl.arange(0, BLOCK_Q)
        value, _ = _pick(
            x_ptr, offs_c, offs_q, stride_xc, stride_xp, channels, height, width, end, gate
        )  # fmt: skip
        pixel, mask = _whole(offs_c, offs_q, channels, height, width, end)
        offs = offs_c[:, None] * stride_gc + pixel[None, :] * stride_gp
        grad = tl.load(grad_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        acc += tl.where(mask, value * grad, 0.0)
    offs = (split * batch + n) * channels + offs_c
    tl.store(part_ptr + offs, tl.sum(acc, axis=1), mask=offs_c < channels)


@triton.jit
def scale_windows_kernel(
    x_ptr,
    out_ptr,
    part_ptr,
    weight_ptr,
    bias_ptr,
    saved_ptr,
    batch,
    channels,
    height,
    width,
    chunk,
    inv_hw,
    stride_xn,
    stride_xc,
    stride_xp,
    stride_on,
    stride_oc,
    stride_op,
    HAS_BIAS: tl.constexpr,
    TAPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """out[n, c, q] = (largest of window q of x[n, c]) * gate[n, c]; programs last to first."""
    pid = tl.num_programs(0).to(tl.int64) - 1 - tl.program_id(0)
    windows = tl.cdiv(height, 2) * tl.cdiv(width, 2)
    chunks, blocks = tl.cdiv(windows, chunk), tl.cdiv(channels, BLOCK_C)
    n = pid // chunks // blocks
    offs_c = (pid // chunks % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    lo = pid % chunks * chunk
    end = tl.minimum(lo + chunk, windows)
    gate = _gate(
        part_ptr, weight_ptr, bias_ptr, saved_ptr, n, offs_c, batch, channels, inv_hw, lo == 0,
        HAS_BIAS, TAPS, SPLITS,
    )  # fmt: skip
    x_ptr += n * stride_xn
    out_ptr += n * stride_on
    for start in range(lo, end, BLOCK_Q):
        offs_q = start + tl.arange(0, BLOCK_Q)
        value, _ = _pick(
            x_ptr, offs_c, offs_q, stride_xc, stride_xp, channels, height, width, end, gate
        )  # fmt: skip
        pixel, mask = _whole(offs_c, offs_q, channels, height, width, end)
        offs = offs_c[:, None] * stride_oc + pixel[None, :] * stride_op
        tl.store(out_ptr + offs, (value * gate[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def spread_windows_kernel(
    x_ptr,
    grad_ptr,
    other_ptr,
    out_ptr,
    part_ptr,
    weight_ptr,
    saved_ptr,
    batch,
    channels,
    height,
    width,
    chunk,
    inv_hw,
    stride_xn,
    stride_xc,
    stride_xp,
    stride_gn,
    stride_gc,
    stride_gp,
    stride_tn,
    stride_tc,
    stride_tp,
    stride_on,
    stride_oc,
    stride_op,
    HAS_OTHER: tl.constexpr,
    TAPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """out = (grad * gate where the pool took x, else 0) + dmean / hw (+ other)."""
    pid = tl.num_programs(0).to(tl.int64) - 1 - tl.program_id(0)
    windows = tl.cdiv(height, 2) * tl.cdiv(width, 2)
    chunks, blocks = tl.cdiv(windows, chunk), tl.cdiv(channels, BLOCK_C)
    n = pid // chunks // blocks
    offs_c = (pid // chunks % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    lo = pid % chunks * chunk
    end = tl.minimum(lo + chunk, windows)
    gate_ptr = saved_ptr + batch * channels
    gate = tl.load(gate_ptr + n * channels + offs_c, mask=offs_c < channels, other=0.0)
    shift = inv_hw * _grad_mean(
        part_ptr, weight_ptr, gate_ptr, n, offs_c, batch, channels, TAPS, SPLITS
    )
    x_ptr += n * stride_xn
    grad_ptr += n * stride_gn
    other_ptr += n * stride_tn
    out_ptr += n * stride_on
    for start in range(lo, end, BLOCK_Q):
        offs_q = start + tl.arange(0, BLOCK_Q)
        _, at = _pick(
            x_ptr, offs_c, offs_q, stride_xc, stride_xp, channels, height, width, end, gate
        )  # fmt: skip
        pixel, mask = _whole(offs_c, offs_q, channels, height, width, end)
        offs = offs_c[:, None] * stride_gc + pixel[None, :] * stride_gp
        grad = tl.load(grad_ptr + offs, mask=mask, other=0.0).to(tl.float32) * gate[:, None]
        for row in tl.static_range(2):
            left = tl.where(mask & (at == 2 * row), grad, 0.0) + shift[:, None]
            right = tl.where(mask & (at == 2 * row + 1), grad, 0.0) + shift[:, None]
            if HAS_OTHER:
                a, b = _row(
                    other_ptr, offs_c, offs_q, row, stride_tc, stride_tp, channels, height, width,
                    end,
                )  # fmt: skip
                left += a
                right += b
            offs_o, inside = _pairs(
                offs_c, offs_q, row, stride_oc, stride_op, channels, height, width, end
            )  # fmt: skip
            both = tl.join(left, right).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + offs_o, both, mask=inside)

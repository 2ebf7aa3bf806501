"""The Triton kernels of ECA; ``kernel.py`` launches them.

A map is read as (batch, channel, pixel) by three strides, so one set of kernels serves NCHW,
channels_last and slices of either; the tile is long where memory is.
"""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import triton
import triton.language as tl


@triton.jit
def _load(ptr, offs_c, offs_p, stride_c, stride_p, channels, end):
    """Tile x[offs_c, offs_p] in float32; 0 beyond the channels or from pixel ``end`` on."""
    mask = (offs_c[:, None] < channels) & (offs_p[None, :] < end)
    offs = offs_c[:, None] * stride_c + offs_p[None, :] * stride_p
    return tl.load(ptr + offs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def pool_kernel(
    x_ptr,
    other_ptr,
    summed_ptr,
    part_ptr,
    batch,
    channels,
    hw,
    chunk,
    stride_xn,
    stride_xc,
    stride_xp,
    stride_tn,
    stride_tc,
    stride_tp,
    stride_sn,
    stride_sc,
    stride_sp,
    TERM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """part[s, n, c] = sum over pixels p of split s of the TERM "x", "x * other" or "x + other".

    The last is also stored in summed, and so rounded. One program owns BLOCK_C channels of one
    image over one split of ``chunk`` pixels. It reads x (and other) once and writes 4 bytes per
    channel (and summed).
    """
    pid = tl.program_id(0).to(tl.int64)
    split = pid % SPLITS
    blocks = tl.cdiv(channels, BLOCK_C)
    n = pid // SPLITS // blocks
    offs_c = (pid // SPLITS % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    lo = split * chunk
    end = tl.minimum(lo + chunk, hw)
    x_ptr += n * stride_xn + lo * stride_xp
    other_ptr += n * stride_tn + lo * stride_tp
    summed_ptr += n * stride_sn + lo * stride_sp
    acc = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    offs_p = tl.arange(0, BLOCK_P)
    for left in range(end - lo, 0, -BLOCK_P):
        tile = _load(x_ptr, offs_c, offs_p, stride_xc, stride_xp, channels, left)
        if TERM == "x * other":
            tile *= _load(other_ptr, offs_c, offs_p, stride_tc, stride_tp, channels, left)
        if TERM == "x + other":
            tile += _load(other_ptr, offs_c, offs_p, stride_tc, stride_tp, channels, left)
            rounded = tile.to(summed_ptr.dtype.element_ty)
            mask = (offs_c[:, None] < channels) & (offs_p[None, :] < left)
            offs = offs_c[:, None] * stride_sc + offs_p[None, :] * stride_sp
            tl.store(summed_ptr + offs, rounded, mask=mask)
            tile = rounded.to(tl.float32)
        acc += tile
        x_ptr += BLOCK_P * stride_xp
        other_ptr += BLOCK_P * stride_tp
        summed_ptr += BLOCK_P * stride_sp
    offs = (split * batch + n) * channels + offs_c
    tl.store(part_ptr + offs, tl.sum(acc, axis=1), mask=offs_c < channels)


@triton.jit
def _total(part_ptr, offs, mask, vectors, SPLITS: tl.constexpr):
    """Sum of the SPLITS partial sums at ``offs``, always in the same order."""
    offs_s = tl.arange(0, SPLITS).to(tl.int64) * vectors
    part = tl.load(part_ptr + offs[:, None] + offs_s[None, :], mask=mask[:, None], other=0.0)
    return tl.sum(part, axis=1)


@triton.jit
def _gate(
    part_ptr, weight_ptr, bias_ptr, saved_ptr, n, offs_c, batch, channels, inv_hw, first,
    HAS_BIAS: tl.constexpr, TAPS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """gate = sigmoid(bias + sum_j weight[j] * mean[c + j - TAPS // 2]), means outside being 0.

    saved = (mean, gate), written by the ``first`` program of the channels.
    """
    z = tl.zeros_like(offs_c).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr).to(tl.float32)
    for j in range(TAPS):
        at = offs_c + j - TAPS // 2
        inside = (at >= 0) & (at < channels)
        mean = _total(part_ptr, n * channels + at, inside, batch * channels, SPLITS) * inv_hw
        z += tl.load(weight_ptr + j).to(tl.float32) * mean
    gate = tl.div_rn(1.0, 1.0 + tl.exp(-z))
    if first:
        inside, at = offs_c < channels, n * channels + offs_c
        mean = _total(part_ptr, at, inside, batch * channels, SPLITS) * inv_hw
        tl.store(saved_ptr + at, mean, mask=inside)
        tl.store(saved_ptr + batch * channels + at, gate, mask=inside)
    return gate


@triton.jit
def _grad_logit(part_ptr, gate_ptr, offs, mask, vectors, SPLITS: tl.constexpr):
    """dz = dgate * gate * (1 - gate), dgate being the sum of its partial sums."""
    gate = tl.load(gate_ptr + offs, mask=mask, other=0.0)
    return _total(part_ptr, offs, mask, vectors, SPLITS) * gate * (1.0 - gate)


@triton.jit
def _grad_mean(
    part_ptr, weight_ptr, gate_ptr, n, offs_c, batch, channels,
    TAPS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """dmean[c] = sum_j weight[j] * dz[c - j + TAPS // 2]."""
    total = tl.zeros_like(offs_c).to(tl.float32)
    for j in range(TAPS):
        at = offs_c - j + TAPS // 2
        inside = (at >= 0) & (at < channels)
        dz = _grad_logit(part_ptr, gate_ptr, n * channels + at, inside, batch * channels, SPLITS)
        total += tl.load(weight_ptr + j).to(tl.float32) * dz
    return total


@triton.jit
def scale_kernel(
    x_ptr,
    out_ptr,
    part_ptr,
    weight_ptr,
    bias_ptr,
    saved_ptr,
    batch,
    channels,
    hw,
    chunk,
    inv_hw,
    stride_xn,
    stride_xc,
    stride_xp,
    stride_on,
    stride_oc,
    stride_op,
    BACKWARD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TAPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """out[n, c, p] = x[n, c, p] * gate[n, c]; backward: grad * gate[n, c] + dmean[n, c] / hw.

    One program owns BLOCK_C channels of ``chunk`` pixels and works their gates out itself (backward
    it reads them). Programs run from the last to the first: towards what the pool left in L2.
    """
    pid = tl.num_programs(0).to(tl.int64) - 1 - tl.program_id(0)
    chunks = tl.cdiv(hw, chunk)
    blocks = tl.cdiv(channels, BLOCK_C)
    n = pid // chunks // blocks
    offs_c = (pid // chunks % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    lo = pid % chunks * chunk
    end = tl.minimum(lo + chunk, hw)
    x_ptr += n * stride_xn
    out_ptr += n * stride_on
    offs_p = lo + tl.arange(0, BLOCK_P)
    tile = _load(x_ptr, offs_c, offs_p, stride_xc, stride_xp, channels, end)  # ahead of the gates
    if BACKWARD:
        gate_ptr = saved_ptr + batch * channels
        gate = tl.load(gate_ptr + n * channels + offs_c, mask=offs_c < channels, other=0.0)
        shift = inv_hw * _grad_mean(
            part_ptr, weight_ptr, gate_ptr, n, offs_c, batch, channels, TAPS, SPLITS
        )
    else:
        gate = _gate(
            part_ptr, weight_ptr, bias_ptr, saved_ptr, n, offs_c, batch, channels, inv_hw, lo == 0,
            HAS_BIAS, TAPS, SPLITS,
        )  # fmt: skip
    for start in range(lo, end, BLOCK_P):
        offs_p = start + tl.arange(0, BLOCK_P)
        ahead = _load(x_ptr, offs_c, offs_p + BLOCK_P, stride_xc, stride_xp, channels, end)
        out = tile * gate[:, None]
        if BACKWARD:
            out += shift[:, None]
        mask = (offs_c[:, None] < channels) & (offs_p[None, :] < end)
        offs = offs_c[:, None] * stride_oc + offs_p[None, :] * stride_op
        tl.store(out_ptr + offs, out.to(out_ptr.dtype.element_ty), mask=mask)
        tile = ahead


@triton.jit
def grad_taps_kernel(
    part_ptr,
    saved_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    vectors,
    channels,
    span,
    TAPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_weight[j] = sum dz[n, c] * mean[n, c + j - TAPS // 2], grad_bias = sum dz.

    Program (j, i) owns tap j (j = TAPS: the bias) over row i of ``span`` of the N * C vectors.
    """
    j = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    end = tl.minimum((row + 1) * span, vectors)
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(row * span, end, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < end
        dz = _grad_logit(part_ptr, saved_ptr + vectors, offs, mask, vectors, SPLITS)
        if j < TAPS:
            at = offs % channels + j - TAPS // 2
            inside = mask & (at >= 0) & (at < channels)
            acc += dz * tl.load(saved_ptr + offs + j - TAPS // 2, mask=inside, other=0.0)
        else:
            acc += dz
    total = tl.sum(acc, axis=0)
    if j < TAPS:
        tl.store(grad_weight_ptr + row * TAPS + j, total)
    else:
        tl.store(grad_bias_ptr + row, total)

"""Triton: from pooled sums to the attention of the splits, on vectors of C and I numbers an image.

Channels come in K groups of ``per_c`` (C / K) in the map and ``per_i`` (I / K) hidden units. z has
its rows in the order (group, split, channel), x and the attention in (split, group, channel).
"""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import triton
import triton.language as tl


@triton.jit
def normalised(hidden, mean, rstd, bn_weight_ptr, bn_bias_ptr, offs, mask):
    """((hidden - mean) * rstd, the same * weight + bias)."""
    hat = (hidden - mean) * rstd
    weight = tl.load(bn_weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    return hat, hat * weight + tl.load(bn_bias_ptr + offs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def hidden_units(
    i, source_ptr, weight_ptr, bias_ptr, saved_ptr, hidden_ptr, batch, channels, per_c, per_i,
    stride_n, factor, HAS_BIAS: tl.constexpr, KEEP: tl.constexpr, RADIX: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """hidden[i, n] = bias[i] + sum_c weight[i, c] * s[n, c] for all n; returns their sum over n.

    s = factor * the sum of the PARTS numbers that ``source`` has for a channel; KEEP writes it to
    ``saved`` where unit i is the first of its group.
    """
    first = i // per_i * per_c
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + i).to(tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for n0 in range(0, batch, BLOCK_N):
        offs_n = (i * 0 + n0) + tl.arange(0, BLOCK_N)
        acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for c0 in range(0, per_c, BLOCK_C):
            offs_c = c0 + tl.arange(0, BLOCK_C)
            mask = (offs_n[:, None] < batch) & (offs_c[None, :] < per_c)
            offs = offs_n[:, None] * stride_n + (first + offs_c[None, :]) * PARTS
            at = source_ptr + offs[:, :, None] + tl.arange(0, PARTS)[None, None, :]
            s = tl.sum(tl.load(at, mask=mask[:, :, None], other=0.0), axis=2) * factor
            if KEEP:
                at = saved_ptr + offs_n[:, None] * (1 + RADIX) * channels + first + offs_c[None, :]
                tl.store(at, s, mask=mask & (i % per_i == 0))
            weight = tl.load(weight_ptr + i * per_c + offs_c, mask=offs_c < per_c, other=0.0)
            acc += s * weight.to(tl.float32)[None, :]
        hidden = tl.sum(acc, axis=1) + bias
        tl.store(hidden_ptr + i * batch + offs_n, hidden, mask=offs_n < batch)
        total += tl.where(offs_n < batch, hidden, 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def fc1_kernel(
    part_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    saved_ptr,
    hidden_ptr,
    stats_ptr,
    batch,
    channels,
    inner,
    per_c,
    per_i,
    inv_hw,
    inv_batch,
    eps,
    TRAINING: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RADIX: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """hidden = fc1(s) before its batch norm, s into ``saved``, stats (mean, unbiased var, rstd).

    One program owns one hidden unit of all images, so that its statistics need no second launch.
    """
    i = tl.program_id(0).to(tl.int64)
    total = hidden_units(
        i, part_ptr, weight_ptr, bias_ptr, saved_ptr, hidden_ptr, batch, channels, per_c, per_i,
        channels * PARTS, inv_hw, HAS_BIAS, True, RADIX, PARTS, BLOCK_N, BLOCK_C,
    )  # fmt: skip
    if TRAINING:
        mean = total * inv_batch
        tl.debug_barrier()  # what is read now other threads of this program may have written
        squares = tl.zeros((BLOCK_N,), tl.float32)
        for n0 in range(0, batch, BLOCK_N):
            offs_n = n0 + tl.arange(0, BLOCK_N)
            mask = offs_n < batch
            away = tl.load(hidden_ptr + i * batch + offs_n, mask=mask, other=0.0) - mean
            squares += tl.where(mask, away * away, 0.0)
        square = tl.sum(squares, axis=0)
        var = square * inv_batch
        unbiased = var / (1.0 - inv_batch)
    else:
        mean = tl.load(mean_ptr + i).to(tl.float32)
        var = tl.load(var_ptr + i).to(tl.float32)
        unbiased = var
    tl.store(stats_ptr + i, mean)
    tl.store(stats_ptr + inner + i, unbiased)
    tl.store(stats_ptr + 2 * (i * 0 + inner) + i, tl.div_rn(1.0, tl.sqrt_rn(var + eps)))


@triton.jit
def fc2_kernel(
    hidden_ptr,
    stats_ptr,
    bn_weight_ptr,
    bn_bias_ptr,
    weight_ptr,
    bias_ptr,
    saved_ptr,
    batch,
    channels,
    inner,
    per_c,
    per_i,
    HAS_BIAS: tl.constexpr,
    RADIX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """a[n, r, c] = softmax over r of z = fc2(relu(bn(hidden))), or sigmoid(z) of the only split.

    One program owns BLOCK_C channels of one group of one image; ROWS is RADIX or the next power of
    two.
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(per_c, BLOCK_C)
    n, group = pid // blocks % batch, pid // blocks // batch
    offs_c = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_r = tl.arange(0, ROWS)
    mask = (offs_r[:, None] < RADIX) & (offs_c[None, :] < per_c)
    row = (group * RADIX + offs_r[:, None]) * per_c + offs_c[None, :]
    z = tl.zeros((ROWS, BLOCK_C), tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + row, mask=mask, other=0.0).to(tl.float32)
    for i0 in range(0, per_i, BLOCK_I):
        offs_i = i0 + tl.arange(0, BLOCK_I)
        inside, at = offs_i < per_i, group * per_i + offs_i
        hidden = tl.load(hidden_ptr + at * batch + n, mask=inside, other=0.0)
        mean = tl.load(stats_ptr + at, mask=inside, other=0.0)
        rstd = tl.load(stats_ptr + 2 * inner + at, mask=inside, other=0.0)
        _, h = normalised(hidden, mean, rstd, bn_weight_ptr, bn_bias_ptr, at, inside)
        h = tl.where(h < 0.0, 0.0, h)  # NaN stays
        where = weight_ptr + row[:, :, None] * per_i + offs_i[None, None, :]
        weight = tl.load(where, mask=mask[:, :, None] & inside[None, None, :], other=0.0)
        z += tl.sum(weight.to(tl.float32) * h[None, None, :], axis=2)
    if RADIX == 1:
        a = tl.div_rn(1.0, 1.0 + tl.exp(-z))
    else:
        z = tl.where(offs_r[:, None] < RADIX, z, float("-inf"))
        e = tl.exp(z - tl.max(z, axis=0)[None, :])
        a = tl.div_rn(e, tl.broadcast_to(tl.sum(e, axis=0)[None, :], (ROWS, BLOCK_C)))
    at = (n * (1 + RADIX) + 1 + offs_r[:, None]) * channels + group * per_c + offs_c[None, :]
    tl.store(saved_ptr + at, a, mask=mask)

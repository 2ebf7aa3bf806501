"""Triton: gradients of the attention's vectors, from dot products to weights and pooled means.

Words and orders as in ``kernel_gates.py``; dz is kept (N, R*C) in the order of z, dv and dh (I, N).
"""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import triton
import triton.language as tl

from .kernel_gates import hidden_units, normalised


@triton.jit
def grad_logits(
    pid, part_ptr, saved_ptr, dz_ptr, channels, per_c, RADIX: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dz = a * (da - sum_r a * da), or da * a * (1 - a) of the only split, for BLOCK_R channels."""
    blocks = tl.cdiv(channels, BLOCK_R)
    n, offs_c = pid // blocks, pid % blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_r = tl.arange(0, ROWS)
    mask = (offs_r[:, None] < RADIX) & (offs_c[None, :] < channels)
    offs = offs_r[:, None] * channels + offs_c[None, :]
    at = part_ptr + (n * RADIX * channels + offs)[:, :, None] * PARTS
    parts = tl.load(at + tl.arange(0, PARTS)[None, None, :], mask=mask[:, :, None], other=0.0)
    da = tl.sum(parts, axis=2)
    a = tl.load(saved_ptr + (n * (1 + RADIX) + 1) * channels + offs, mask=mask, other=0.0)
    dz = da * a * (1.0 - a) if RADIX == 1 else a * (da - tl.sum(a * da, axis=0)[None, :])
    row = offs_c[None, :] // per_c * RADIX * per_c + offs_r[:, None] * per_c + offs_c % per_c
    tl.store(dz_ptr + n * RADIX * channels + row, dz, mask=mask)


@triton.jit
def logits_kernel(
    part_ptr,
    saved_ptr,
    fc1_weight_ptr,
    fc1_bias_ptr,
    dz_ptr,
    hidden_ptr,
    batch,
    channels,
    inner,
    per_c,
    per_i,
    HAS_BIAS: tl.constexpr,
    RADIX: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The first ``inner`` programs work out hidden[i, :] again, each of the others owns some dz."""
    pid = tl.program_id(0).to(tl.int64)
    if pid < inner:
        hidden_units(
            pid, saved_ptr, fc1_weight_ptr, fc1_bias_ptr, saved_ptr, hidden_ptr, batch, channels,
            per_c, per_i, (1 + RADIX) * channels, 1.0, HAS_BIAS, False, RADIX, 1, BLOCK_N, BLOCK_C,
        )  # fmt: skip
    else:
        grad_logits(
            pid - inner, part_ptr, saved_ptr, dz_ptr, channels, per_c, RADIX, PARTS, ROWS, BLOCK_R
        )


@triton.jit
def hidden_kernel(
    dz_ptr,
    hidden_ptr,
    stats_ptr,
    bn_weight_ptr,
    bn_bias_ptr,
    fc2_weight_ptr,
    dv_ptr,
    dh_ptr,
    grads_ptr,
    batch,
    inner,
    rows,
    per_i,
    inv_batch,
    TRAINING: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """dh[i, n]: gradient of hidden, through fc2, ReLU and batch norm; ``rows`` of z in a group.

    grads[0..2, i] = gradients of fc1's bias, of the norm's weight and of its bias. One program owns
    one hidden unit of all images.
    """
    i = tl.program_id(0).to(tl.int64)
    first = i // per_i * rows
    mean, rstd = tl.load(stats_ptr + i), tl.load(stats_ptr + 2 * (i * 0 + inner) + i)
    sums, products = tl.zeros((BLOCK_N,), tl.float32), tl.zeros((BLOCK_N,), tl.float32)
    for n0 in range(0, batch, BLOCK_N):
        offs_n = (i * 0 + n0) + tl.arange(0, BLOCK_N)
        inside = offs_n < batch
        acc = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
        for r0 in range(0, rows, BLOCK_R):
            offs_r = first + r0 + tl.arange(0, BLOCK_R)
            good = offs_r < first + rows
            at = offs_n[:, None] * (rows * (inner // per_i)) + offs_r[None, :]
            dz = tl.load(dz_ptr + at, mask=inside[:, None] & good[None, :], other=0.0)
            weight = tl.load(fc2_weight_ptr + offs_r * per_i + i % per_i, mask=good, other=0.0)
            acc += dz * weight.to(tl.float32)[None, :]
        hidden = tl.load(hidden_ptr + i * batch + offs_n, mask=inside, other=0.0)
        hat, v = normalised(hidden, mean, rstd, bn_weight_ptr, bn_bias_ptr, i, True)
        dv = tl.where((v <= 0.0) | (inside == 0), 0.0, tl.sum(acc, axis=1))
        tl.store(dv_ptr + i * batch + offs_n, dv, mask=inside)
        sums += dv
        products += tl.where(inside, dv * hat, 0.0)
    grad_bias, grad_weight = tl.sum(sums, axis=0), tl.sum(products, axis=0)
    tl.store(grads_ptr + (i * 0 + inner) + i, grad_weight)
    tl.store(grads_ptr + 2 * (i * 0 + inner) + i, grad_bias)
    scale = rstd * tl.load(bn_weight_ptr + i).to(tl.float32)
    tl.debug_barrier()  # what is read now other threads of this program may have written
    for n0 in range(0, batch, BLOCK_N):
        offs_n = n0 + tl.arange(0, BLOCK_N)
        inside = offs_n < batch
        dh = tl.load(dv_ptr + i * batch + offs_n, mask=inside, other=0.0)
        if TRAINING:
            hat = (tl.load(hidden_ptr + i * batch + offs_n, mask=inside, other=0.0) - mean) * rstd
            dh -= grad_bias * inv_batch + hat * (grad_weight * inv_batch)
        tl.store(dh_ptr + i * batch + offs_n, dh * scale, mask=inside)
    # The batch's mean takes any bias away, so its gradient is 0, or NaN where anything is.
    tl.store(grads_ptr + i, grad_bias * (0.0 if TRAINING else scale))


@triton.jit
def grad_fc2(
    pid, dz_ptr, hidden_ptr, stats_ptr, bn_weight_ptr, bn_bias_ptr, grad_ptr, grad_bias_ptr, batch,
    width, inner, rows, per_i, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """grad[row, i] = sum_n dz[n, row] * relu(v[i, n]); grad_bias[row] = sum_n dz[n, row]."""
    blocks_p, blocks_q = tl.cdiv(rows, BLOCK_P), tl.cdiv(per_i, BLOCK_Q)
    block_q, group = pid % blocks_q, pid // blocks_q // blocks_p
    offs_p = group * rows + pid // blocks_q % blocks_p * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = offs_p < (group + 1) * rows
    offs_q = block_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside, at = offs_q < per_i, group * per_i + offs_q
    mean = tl.load(stats_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(stats_ptr + 2 * inner + at, mask=inside, other=0.0)
    acc = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
    bias = tl.zeros((BLOCK_P,), tl.float32)
    for n0 in range(0, batch, BLOCK_N):
        offs_n = n0 + tl.arange(0, BLOCK_N)
        mask = (offs_n[:, None] < batch) & inside[None, :]
        hidden = tl.load(hidden_ptr + at[None, :] * batch + offs_n[:, None], mask=mask, other=0.0)
        _, h = normalised(hidden, mean, rstd, bn_weight_ptr, bn_bias_ptr, at, inside)
        h = tl.where((h < 0.0) | (mask == 0), 0.0, h)
        mask = (offs_n[:, None] < batch) & valid[None, :]
        dz = tl.load(dz_ptr + offs_n[:, None] * width + offs_p[None, :], mask=mask, other=0.0)
        acc += tl.sum(dz[:, :, None] * h[:, None, :], axis=0)
        bias += tl.sum(dz, axis=0)
    where = grad_ptr + offs_p[:, None] * per_i + offs_q[None, :]
    tl.store(where, acc, mask=valid[:, None] & inside[None, :])
    tl.store(grad_bias_ptr + offs_p, bias, mask=valid & (block_q == 0))


@triton.jit
def grad_fc1(
    pid, dh_ptr, saved_ptr, grad_ptr, batch, stride_n, per_c, per_i, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """grad[i, c] = sum_n dh[i, n] * s[n, c]."""
    blocks_p, blocks_q = tl.cdiv(per_i, BLOCK_P), tl.cdiv(per_c, BLOCK_Q)
    group = pid // blocks_q // blocks_p
    offs_p = group * per_i + pid // blocks_q % blocks_p * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_q = pid % blocks_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    valid, inside = offs_p < (group + 1) * per_i, offs_q < per_c
    acc = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
    for n0 in range(0, batch, BLOCK_N):
        offs_n = n0 + tl.arange(0, BLOCK_N)
        there = offs_n[:, None] < batch
        at = saved_ptr + offs_n[:, None] * stride_n + group * per_c + offs_q[None, :]
        s = tl.load(at, mask=there & inside[None, :], other=0.0)
        at = dh_ptr + offs_p[None, :] * batch + offs_n[:, None]
        dh = tl.load(at, mask=there & valid[None, :], other=0.0)
        acc += tl.sum(dh[:, :, None] * s[:, None, :], axis=0)
    where = grad_ptr + offs_p[:, None] * per_c + offs_q[None, :]
    tl.store(where, acc, mask=valid[:, None] & inside[None, :])


@triton.jit
def grad_mean(
    pid, dh_ptr, weight_ptr, mean_ptr, batch, channels, per_c, per_i, inv_hw,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """mean[n, c] = inv_hw * sum_i fc1_weight[i, c] * dh[i, n]: what each pixel gets of ds."""
    blocks = tl.cdiv(per_c, BLOCK_Q)
    n, group = pid // blocks % batch, pid // blocks // batch
    offs_c = pid % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    acc = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
    for i0 in range(0, per_i, BLOCK_P):
        offs_i = group * per_i + i0 + tl.arange(0, BLOCK_P)
        inside = offs_i < (group + 1) * per_i
        dh = tl.load(dh_ptr + offs_i * batch + n, mask=inside, other=0.0)
        mask = inside[:, None] & (offs_c[None, :] < per_c)
        at = weight_ptr + offs_i[:, None] * per_c + offs_c[None, :]
        acc += dh[:, None] * tl.load(at, mask=mask, other=0.0).to(tl.float32)
    at = mean_ptr + n * channels + group * per_c + offs_c
    tl.store(at, tl.sum(acc, axis=0) * inv_hw, mask=offs_c < per_c)


@triton.jit
def weights_kernel(
    dz_ptr,
    dh_ptr,
    hidden_ptr,
    saved_ptr,
    stats_ptr,
    bn_weight_ptr,
    bn_bias_ptr,
    fc1_weight_ptr,
    grad_fc1_ptr,
    grad_fc2_ptr,
    grad_fc2_bias_ptr,
    mean_ptr,
    batch,
    channels,
    inner,
    per_c,
    per_i,
    tiles_fc2,
    tiles_fc1,
    inv_hw,
    RADIX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Programs of three kinds: tiles of fc2's gradient, tiles of fc1's, parts of the mean's."""
    pid = tl.program_id(0).to(tl.int64)
    if pid < tiles_fc2:
        grad_fc2(
            pid, dz_ptr, hidden_ptr, stats_ptr, bn_weight_ptr, bn_bias_ptr, grad_fc2_ptr,
            grad_fc2_bias_ptr, batch, RADIX * channels, inner, RADIX * per_c, per_i, BLOCK_N,
            BLOCK_P, BLOCK_Q,
        )  # fmt: skip
    elif pid < tiles_fc2 + tiles_fc1:
        grad_fc1(
            pid - tiles_fc2, dh_ptr, saved_ptr, grad_fc1_ptr, batch, (1 + RADIX) * channels, per_c,
            per_i, BLOCK_N, BLOCK_P, BLOCK_Q,
        )  # fmt: skip
    else:
        grad_mean(
            pid - tiles_fc2 - tiles_fc1, dh_ptr, fc1_weight_ptr, mean_ptr, batch, channels, per_c,
            per_i, inv_hw, BLOCK_P, BLOCK_Q,
        )  # fmt: skip

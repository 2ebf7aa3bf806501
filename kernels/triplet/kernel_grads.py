"""Triton: gradients on the tiles of the planes, from those of the gates to those of the pooled x.

Tiles and their halo are those of ``kernel_gates.py``.
"""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import triton
import triton.language as tl

from .kernel_gates import convolve, fold_rows, gate_of, owned, shifted, tile_of, tile_range, window


@triton.jit
def logits_kernel(
    planes_ptr,
    sum_ptr,
    weight_ptr,
    bn_weight_ptr,
    bn_bias_ptr,
    stats_ptr,
    work_ptr,
    share_ptr,
    batch,
    a0,
    a1,
    a2,
    parts0,
    parts1,
    parts2,
    tiles,
    positions,
    GATES: tl.constexpr,
    G0: tl.constexpr,
    G1: tl.constexpr,
    G2: tl.constexpr,
    TURNED: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    TAPS: tl.constexpr,
):
    """work = (gate, dv, uhat) of a tile, dv = dgate * gate * (1 - gate); share = its sums of dv and
    dv * uhat. One program owns a tile and adds up the partial planes of dgate.
    """
    V: tl.constexpr = TILE - K + 1
    tile = tl.program_id(0).to(tl.int64)
    axis, rows, cols, _, row, col, base, within = tile_of(tile, batch, a0, a1, a2, V)
    gate = gate_of(axis, G0, G1, G2)
    if gate < 0:
        return
    halo, near = window(row - K // 2, col - K // 2, rows, cols, TILE)
    top = tl.load(planes_ptr + base + halo, mask=near, other=0.0)
    mean = tl.load(planes_ptr + positions + base + halo, mask=near, other=0.0)
    u = convolve(top, mean, weight_ptr + gate * 2 * K * K, axis == TURNED, K, TILE, TAPS)
    uhat = (u - tl.load(stats_ptr + gate)) * tl.load(stats_ptr + 2 * GATES + gate)
    v = uhat * tl.load(bn_weight_ptr + gate).to(tl.float32)
    value = tl.div_rn(1.0, 1.0 + tl.exp(-v - tl.load(bn_bias_ptr + gate).to(tl.float32)))
    offs, mask = window(row, col, rows, cols, TILE)
    mask &= owned(TILE, 0, V)
    size0, size1 = (tile * 0 + batch) * a1 * a2, (tile * 0 + batch) * a0 * a2
    part = tl.where(axis > 0, parts0 * size0, 0) + tl.where(axis > 1, parts1 * size1, 0) + within
    parts = tl.where(axis == 0, parts0, tl.where(axis == 1, parts1, parts2))
    total = tl.zeros((TILE, TILE), tl.float32)
    for t in range(parts):
        total += tl.load(sum_ptr + part + t * (rows * cols * batch) + offs, mask=mask, other=0.0)
    dv = total * (1.0 / GATES) * value * (1.0 - value)
    work_ptr += base + offs
    tl.store(work_ptr, value, mask=mask)
    tl.store(work_ptr + positions, dv, mask=mask)
    tl.store(work_ptr + 2 * (tile * 0 + positions), uhat, mask=mask)
    tl.store(share_ptr + tile, tl.sum(tl.sum(tl.where(mask, dv, 0.0), axis=1), axis=0))
    product = tl.where(mask, dv * uhat, 0.0)
    tl.store(share_ptr + tiles + tile, tl.sum(tl.sum(product, axis=1), axis=0))


@triton.jit
def sums_kernel(
    share_ptr,
    grad_bias_ptr,
    grad_weight_ptr,
    batch,
    a0,
    a1,
    a2,
    tiles,
    G0: tl.constexpr,
    G1: tl.constexpr,
    G2: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_bias = sum dv, grad_weight = sum dv * uhat; one program owns one gate."""
    axis = tl.program_id(0).to(tl.int64)
    gate = gate_of(axis, G0, G1, G2)
    if gate < 0:
        return
    first, count = tile_range(axis, batch, a0, a1, a2, V)
    share_ptr += first
    bias = tl.zeros((BLOCK,), tl.float32)
    weight = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        bias += tl.load(share_ptr + offs, mask=offs < count, other=0.0)
        weight += tl.load(share_ptr + tiles + offs, mask=offs < count, other=0.0)
    tl.store(grad_bias_ptr + gate, tl.sum(bias, axis=0))
    tl.store(grad_weight_ptr + gate, tl.sum(weight, axis=0))


@triton.jit
def planes_kernel(
    planes_ptr,
    work_ptr,
    weight_ptr,
    bn_weight_ptr,
    stats_ptr,
    grad_bias_ptr,
    grad_weight_ptr,
    grad_planes_ptr,
    taps_ptr,
    batch,
    a0,
    a1,
    a2,
    positions,
    TRAINING: tl.constexpr,
    GATES: tl.constexpr,
    G0: tl.constexpr,
    G1: tl.constexpr,
    G2: tl.constexpr,
    TURNED: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Gradients of the pooled planes and a tile's share of the gradient of the taps.

    du = weight * rstd * (dv - (sum dv + uhat * sum dv * uhat) / count in training);
    dq[i, j] = sum w[dy, dx] * du[i - dy + p, j - dx + p];  dw[dy, dx] = sum q[i, j] * the same du.
    Program (tile, plane) owns V x V positions of the maxima or of the means; what goes to the means
    is divided by the pooled length.
    """
    V: tl.constexpr = TILE - K + 1
    tile = tl.program_id(0).to(tl.int64) // 2
    plane = tl.program_id(0).to(tl.int64) % 2
    axis, rows, cols, length, row, col, base, _ = tile_of(tile, batch, a0, a1, a2, V)
    gate = gate_of(axis, G0, G1, G2)
    if gate < 0:
        return
    halo, near = window(row - K // 2, col - K // 2, rows, cols, TILE)
    du = tl.load(work_ptr + positions + base + halo, mask=near, other=0.0)
    if TRAINING:
        uhat = tl.load(work_ptr + 2 * (base * 0 + positions) + base + halo, mask=near, other=0.0)
        shift = tl.load(grad_bias_ptr + gate) + uhat * tl.load(grad_weight_ptr + gate)
        du -= shift * tl.div_rn(1.0, (rows * cols * batch).to(tl.float32))
    du *= tl.load(bn_weight_ptr + gate).to(tl.float32) * tl.load(stats_ptr + 2 * GATES + gate)
    du = tl.where(near, du, 0.0)
    down, right = tl.where(axis == TURNED, 1, K), tl.where(axis == TURNED, K, 1)
    planes_ptr += plane * positions + base
    weight_ptr += (gate * 2 + plane) * K * K
    taps_ptr += (tile * 2 + plane) * K * K
    dq = tl.zeros((TILE, TILE), tl.float32)
    line = tl.arange(0, TILE)
    c = (col + line)[None, None, :]
    for first in range(0, K, TAPS):
        dy = first + tl.arange(0, TAPS)
        own = line[None, :, None] - dy[:, None, None]
        r = row + own
        mine = (own >= 0) & (own < V) & (r < rows) & (dy[:, None, None] < K)
        mine &= (line[None, None, :] < V) & (c < cols)
        q = tl.load(planes_ptr + r * cols + c, mask=mine, other=0.0)
        acc = tl.zeros((TAPS, TILE, TILE), tl.float32)
        for dx in range(K):
            at = (K - 1 - dy) * down + (K - 1 - dx) * right
            part = shifted(du, dx, TILE)[None, :, :]
            product = tl.reshape(tl.where(mine, q * part, 0.0), (TAPS, TILE * TILE))
            tl.store(taps_ptr + at, tl.sum(product, axis=1), mask=dy < K)
            w = tl.load(weight_ptr + at, mask=dy < K, other=0.0).to(tl.float32)
            acc += w[:, None, None] * part
        dq += fold_rows(acc, dy, K, TILE, TAPS)
    dq *= tl.where(plane == 1, tl.div_rn(1.0, length.to(tl.float32)), 1.0)
    offs, mask = window(row, col, rows, cols, TILE)
    tl.store(grad_planes_ptr + plane * positions + base + offs, dq, mask=mask & owned(TILE, 0, V))


@triton.jit
def taps_kernel(
    taps_ptr,
    grad_ptr,
    batch,
    a0,
    a1,
    a2,
    G0: tl.constexpr,
    G1: tl.constexpr,
    G2: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
):
    """Sums the tiles' shares of the gradient of the taps; a program owns BLOCK_TAPS of a gate."""
    axis = tl.program_id(0).to(tl.int64)
    gate = gate_of(axis, G0, G1, G2)
    if gate < 0:
        return
    first, count = tile_range(axis, batch, a0, a1, a2, V)
    taps = tl.program_id(1) * BLOCK_TAPS + tl.arange(0, BLOCK_TAPS)
    acc = tl.zeros((BLOCK, BLOCK_TAPS), tl.float32)
    for start in range(0, count, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = (offs[:, None] < count) & (taps[None, :] < 2 * K * K)
        at = (first + offs)[:, None] * (2 * K * K) + taps[None, :]
        acc += tl.load(taps_ptr + at, mask=mask, other=0.0)
    total = tl.sum(acc, axis=0)
    tl.store(grad_ptr + gate * 2 * K * K + taps, total, mask=taps < 2 * K * K)

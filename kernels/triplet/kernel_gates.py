"""Triton: from pooled planes to gates; convolution, batch norm and sigmoid on tiles of a plane.

A tile is TILE x TILE with the halo inside it, so it owns V x V positions, V = TILE - K + 1. The
convolution moves the tile K times along its columns and once, all K rows together, along its rows:
2 * K + 1 gathers through shared memory in place of 2 * K * K loads.
"""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import triton
import triton.language as tl

from .kernel_planes import least, untagged

MAX_KERNEL = 49  # of a tile of 64 positions 16 are left to own


def conv_tile(kernel_size: int) -> dict[str, int]:
    """Tile, rows of taps gathered at once and warps for a convolution of odd ``kernel_size``.

    Raises:
        ValueError: the kernel is larger than a tile can hold.
    """
    if kernel_size > MAX_KERNEL:
        raise ValueError(f"triton serves kernels up to {MAX_KERNEL}, got {kernel_size}")
    if kernel_size <= 9:
        tile, rows, warps = 32, min(8, triton.next_power_of_2(kernel_size)), 4
    else:
        tile, rows, warps = 64, 2, 16
    return {"K": kernel_size, "TILE": tile, "TAPS": rows, "num_warps": warps}


def plane_tiles(batch: int, sizes: tuple[int, int, int], constants: dict[str, int]) -> int:
    """Tiles of the three planes of the whole batch."""
    valid = constants["TILE"] - constants["K"] + 1
    a, b, c = (triton.cdiv(size, valid) for size in sizes)
    return batch * (b * c + a * c + a * b)


@triton.jit
def tile_range(axis, batch, a0, a1, a2, V: tl.constexpr):
    """First tile of plane ``axis`` and how many it has over the batch."""
    n0, n1, n2 = tl.cdiv(a0, V), tl.cdiv(a1, V), tl.cdiv(a2, V)
    first = tl.where(axis == 0, 0, tl.where(axis == 1, n1 * n2, n1 * n2 + n0 * n2))
    count = tl.where(axis == 0, n1 * n2, tl.where(axis == 1, n0 * n2, n0 * n1))
    return batch * first, batch * count


@triton.jit
def tile_of(tile, batch, a0, a1, a2, V: tl.constexpr):
    """What tile number ``tile`` owns.

    (memory axis, rows, columns, pooled length, first row, first column, offset of its image's
    plane in a buffer of all planes, the same within its axis).
    """
    first1, _ = tile_range(1, batch, a0, a1, a2, V)
    first2, _ = tile_range(2, batch, a0, a1, a2, V)
    axis = tl.where(tile < first1, 0, tl.where(tile < first2, 1, 2))
    wide = tile * 0  # makes the sizes 64 bits wide
    rows = wide + tl.where(axis == 0, a1, a0)
    cols = wide + tl.where(axis == 2, a1, a2)
    length = wide + tl.where(axis == 0, a0, tl.where(axis == 1, a1, a2))
    tile -= tl.where(axis == 0, 0, tl.where(axis == 1, first1, first2))
    across = tl.cdiv(cols, V)
    per_image = tl.cdiv(rows, V) * across
    within = (tile // per_image) * rows * cols
    before1 = (wide + batch) * a1 * a2
    before = tl.where(axis == 0, 0, tl.where(axis == 1, before1, before1 + batch * a0 * a2 + wide))
    row = tile % per_image // across * V
    col = tile % per_image % across * V
    return axis, rows, cols, length, row, col, before + within, within


@triton.jit
def gate_of(axis, G0: tl.constexpr, G1: tl.constexpr, G2: tl.constexpr):
    """The gate that pools over memory axis ``axis``; -1 where there is none."""
    return tl.where(axis == 0, G0, tl.where(axis == 1, G1, G2))


@triton.jit
def window(row, col, rows, cols, TILE: tl.constexpr):
    """(offsets in a plane, mask) of the TILE x TILE positions from (row, col) on."""
    r = row + tl.arange(0, TILE)[:, None]
    c = col + tl.arange(0, TILE)[None, :]
    return r * cols + c, (r >= 0) & (r < rows) & (c >= 0) & (c < cols)


@triton.jit
def owned(TILE: tl.constexpr, START: tl.constexpr, V: tl.constexpr):
    """Mask of the V x V positions from (START, START) on."""
    at = tl.arange(0, TILE)
    line = (at >= START) & (at < START + V)
    return line[:, None] & line[None, :]


@triton.jit
def shifted(tile, dx, TILE: tl.constexpr):
    """tile[i, j + dx]; the last column where that lies outside."""
    at = tl.minimum(tl.arange(0, TILE) + dx, TILE - 1)
    return tl.gather(tile, tl.broadcast_to(at[None, :], (TILE, TILE)), axis=1)


@triton.jit
def fold_rows(acc, dy, K: tl.constexpr, TILE: tl.constexpr, TAPS: tl.constexpr):
    """Sum over t of acc[t, i + dy[t], j], of the rows dy < K."""
    at = tl.minimum(tl.arange(0, TILE)[None, :] + dy[:, None], TILE - 1)
    moved = tl.gather(acc, tl.broadcast_to(at[:, :, None], (TAPS, TILE, TILE)), axis=1)
    return tl.sum(tl.where(dy[:, None, None] < K, moved, 0.0), axis=0)


@triton.jit
def convolve(top, mean, taps_ptr, turned, K: tl.constexpr, TILE: tl.constexpr, TAPS: tl.constexpr):
    """u[i, j] = sum over dy, dx of w0 * top[i + dy, j + dx] + w1 * mean[i + dy, j + dx]."""
    down, right = tl.where(turned, 1, K), tl.where(turned, K, 1)
    u = tl.zeros((TILE, TILE), tl.float32)
    for first in range(0, K, TAPS):
        dy = first + tl.arange(0, TAPS)
        acc = tl.zeros((TAPS, TILE, TILE), tl.float32)
        for dx in range(K):
            at = taps_ptr + dy * down + dx * right
            w0 = tl.load(at, mask=dy < K, other=0.0).to(tl.float32)
            w1 = tl.load(at + K * K, mask=dy < K, other=0.0).to(tl.float32)
            acc += w0[:, None, None] * shifted(top, dx, TILE)[None, :, :]
            acc += w1[:, None, None] * shifted(mean, dx, TILE)[None, :, :]
        u += fold_rows(acc, dy, K, TILE, TAPS)
    return u


@triton.jit
def gates_kernel(
    x_ptr,
    sum_ptr,
    key_ptr,
    weight_ptr,
    bn_weight_ptr,
    bn_bias_ptr,
    mean_ptr,
    var_ptr,
    gate_ptr,
    moment_ptr,
    stats_ptr,
    planes_ptr,
    index_ptr,
    eps,
    batch,
    a0,
    a1,
    a2,
    parts0,
    parts1,
    parts2,
    tiles,
    positions,
    TRAINING: tl.constexpr,
    KEEP: tl.constexpr,
    KEYS: tl.constexpr,
    GATES: tl.constexpr,
    G0: tl.constexpr,
    G1: tl.constexpr,
    G2: tl.constexpr,
    TURNED: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    TAPS: tl.constexpr,
):
    """u = conv(max, mean) of a tile; eval: gate = sigmoid(bn(u)), training: u and its moments.

    One program owns a tile: it adds up the partial planes of the tile and its halo, keeps the
    tile's own part of (max, mean, argmax) where asked, and reads no plane twice but for the halo.
    """
    V: tl.constexpr = TILE - K + 1
    tile = tl.program_id(0).to(tl.int64)
    axis, rows, cols, length, row, col, base, within = tile_of(tile, batch, a0, a1, a2, V)
    gate = gate_of(axis, G0, G1, G2)
    halo, near = window(row - K // 2, col - K // 2, rows, cols, TILE)
    mine = near & owned(TILE, K // 2, V)
    offs, out_mask = window(row, col, rows, cols, TILE)
    out_mask &= owned(TILE, 0, V)
    if gate < 0:  # no such gate: the saved planes are defined all the same
        if KEEP:
            tl.store(planes_ptr + base + halo, 0.0, mask=mine)
            tl.store(planes_ptr + positions + base + halo, 0.0, mask=mine)
            tl.store(index_ptr + base + halo, 0, mask=mine)
        return
    size0, size1 = (tile * 0 + batch) * a1 * a2, (tile * 0 + batch) * a0 * a2
    part = tl.where(axis > 0, parts0 * size0, 0) + tl.where(axis > 1, parts1 * size1, 0) + within
    parts = tl.where(axis == 0, parts0, tl.where(axis == 1, parts1, parts2))
    total = tl.zeros((TILE, TILE), tl.float32)
    best = least((TILE, TILE), KEYS)
    for t in range(parts):
        at = part + t * (rows * cols * batch) + halo
        total += tl.load(sum_ptr + at, mask=near, other=0.0)
        best = tl.maximum(best, tl.load(key_ptr + at, mask=near, other=least((1, 1), KEYS)))
    mean = total * tl.div_rn(1.0, length.to(tl.float32))
    top, index = untagged(best, x_ptr.dtype.element_ty, KEYS)
    top = tl.where(near, top, 0.0)
    if KEEP:
        tl.store(planes_ptr + base + halo, top, mask=mine)
        tl.store(planes_ptr + positions + base + halo, mean, mask=mine)
        tl.store(index_ptr + base + halo, index.to(index_ptr.dtype.element_ty), mask=mine)
    u = convolve(top, mean, weight_ptr + gate * 2 * K * K, axis == TURNED, K, TILE, TAPS)
    if TRAINING:
        tl.store(gate_ptr + base + offs, u, mask=out_mask)
        count = tl.sum(tl.sum(out_mask.to(tl.float32), axis=1), axis=0)
        center = tl.sum(tl.sum(tl.where(out_mask, u, 0.0), axis=1), axis=0) / count
        spread = tl.where(out_mask, u - center, 0.0)
        tl.store(moment_ptr + tile, count)
        tl.store(moment_ptr + tiles + tile, center)
        squares = tl.sum(tl.sum(spread * spread, axis=1), axis=0)
        tl.store(moment_ptr + 2 * (tile * 0 + tiles) + tile, squares)
    else:
        center = tl.load(mean_ptr + gate).to(tl.float32)
        var = tl.load(var_ptr + gate).to(tl.float32)
        rstd = tl.div_rn(1.0, tl.sqrt_rn(var + eps))
        value = normalised(u, center, rstd, bn_weight_ptr, bn_bias_ptr, gate)
        tl.store(gate_ptr + base + offs, value, mask=out_mask)
        if (within + row + col) == 0:
            tl.store(stats_ptr + gate, center)
            tl.store(stats_ptr + GATES + gate, var)
            tl.store(stats_ptr + 2 * GATES + gate, rstd)


@triton.jit
def normalised(u, center, rstd, bn_weight_ptr, bn_bias_ptr, gate):
    """sigmoid((u - center) * rstd * weight + bias)."""
    scale = rstd * tl.load(bn_weight_ptr + gate).to(tl.float32)
    v = (u - center) * scale + tl.load(bn_bias_ptr + gate).to(tl.float32)
    return tl.div_rn(1.0, 1.0 + tl.exp(-v))


@triton.jit
def stats_kernel(
    moment_ptr,
    stats_ptr,
    eps,
    batch,
    a0,
    a1,
    a2,
    tiles,
    GATES: tl.constexpr,
    G0: tl.constexpr,
    G1: tl.constexpr,
    G2: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """stats = (mean, unbiased var, rstd) of u from the (count, mean, squares) of its tiles.

    One program owns one gate. Chan's formula, the mean first: squares + count * (mean - center)^2.
    """
    axis = tl.program_id(0).to(tl.int64)
    gate = gate_of(axis, G0, G1, G2)
    if gate < 0:
        return
    first, count = tile_range(axis, batch, a0, a1, a2, V)
    moment_ptr += first
    n = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        many = tl.load(moment_ptr + offs, mask=offs < count, other=0.0)
        n += many
        weighted += many * tl.load(moment_ptr + tiles + offs, mask=offs < count, other=0.0)
    n = tl.sum(n, axis=0)
    center = tl.sum(weighted, axis=0) / n
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < count
        many = tl.load(moment_ptr + offs, mask=mask, other=0.0)
        away = tl.load(moment_ptr + tiles + offs, mask=mask, other=0.0) - center
        inner = tl.load(moment_ptr + 2 * tiles + offs, mask=mask, other=0.0)
        squares += inner + tl.where(mask, many * away * away, 0.0)
    total = tl.sum(squares, axis=0)
    tl.store(stats_ptr + gate, center)
    tl.store(stats_ptr + GATES + gate, total / (n - 1.0))
    tl.store(stats_ptr + 2 * GATES + gate, tl.div_rn(1.0, tl.sqrt_rn(total / n + eps)))

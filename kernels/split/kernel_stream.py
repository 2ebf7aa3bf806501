"""Triton: what of split attention moves whole maps: pool, combine and their gradients.

A map is read as (image, channel, pixel) by three strides, so one set of kernels serves NCHW,
channels_last and slices of either; the tile is long where memory is. A program owns the same
channels of all splits, so that what the splits share is read or written once.
"""

# ruff: noqa: ANN001, ANN201 - Triton types the arguments itself
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false
import triton
import triton.language as tl


@triton.jit
def load_map(ptr, offs_c, offs_p, stride_c, stride_p, mask):
    """Tile (channels, pixels) in float32; 0 outside the mask."""
    offs = offs_c[:, None] * stride_c + offs_p[None, :] * stride_p
    return tl.load(ptr + offs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_split(
    x_ptr, scale_ptr, shift_ptr, first, offs_c, offs_p, stride_c, stride_p, mask, inside,
    SCALED: tl.constexpr,
):  # fmt: skip
    """u of one split, whose channels begin at ``first``: x, or relu(x * scale + shift)."""
    tile = load_map(x_ptr + first * stride_c, offs_c, offs_p, stride_c, stride_p, mask)
    if SCALED:
        scale = tl.load(scale_ptr + first + offs_c, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + first + offs_c, mask=inside, other=0.0).to(tl.float32)
        tile = tile * scale[:, None] + shift[:, None]
        tile = tl.where((tile < 0.0) | (mask == 0), 0.0, tile)  # NaN stays
    return tile


@triton.jit
def block_of(pid, channels, parts, chunk, hw, BLOCK_C: tl.constexpr):
    """(image, channels, first and end of the pixels) of a program; parts of pixels vary first."""
    blocks = tl.cdiv(channels, BLOCK_C)
    offs_c = (pid // parts % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    lo = pid % parts * chunk
    return pid // parts // blocks, offs_c, lo, tl.minimum(lo + chunk, hw)


@triton.jit
def pool_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    part_ptr,
    channels,
    hw,
    chunk,
    stride_xn,
    stride_xc,
    stride_xp,
    SCALED: tl.constexpr,
    RADIX: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """part[n, c, s] = sum over splits r and pixels p of part s of u[n, r * channels + c, p].

    One program owns BLOCK_C channels of every split of one image over one part of ``chunk``
    pixels. It reads x once.
    """
    pid = tl.program_id(0).to(tl.int64)
    n, offs_c, lo, end = block_of(pid, channels, PARTS, chunk, hw, BLOCK_C)
    inside = offs_c < channels
    x_ptr += n * stride_xn + lo * stride_xp
    acc = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    offs_p = tl.arange(0, BLOCK_P)
    for left in range(end - lo, 0, -BLOCK_P):
        mask = inside[:, None] & (offs_p[None, :] < left)
        for r in tl.static_range(RADIX):
            acc += load_split(
                x_ptr, scale_ptr, shift_ptr, (n * 0 + r) * channels, offs_c, offs_p, stride_xc,
                stride_xp, mask, inside, SCALED,
            )  # fmt: skip
        x_ptr += BLOCK_P * stride_xp
    at = (n * channels + offs_c) * PARTS + pid % PARTS
    tl.store(part_ptr + at, tl.sum(acc, axis=1), mask=inside)


@triton.jit
def combine_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    saved_ptr,
    out_ptr,
    channels,
    hw,
    chunk,
    stride_xn,
    stride_xc,
    stride_xp,
    stride_on,
    stride_oc,
    stride_op,
    SCALED: tl.constexpr,
    RADIX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """out[n, c, p] = sum over splits r of a[n, r, c] * u[n, r * channels + c, p].

    One program owns BLOCK_C channels of every split over ``chunk`` pixels; one read of x, one write
    of out. Programs run from the last to the first: towards what the pool left in L2.
    """
    pid = tl.num_programs(0).to(tl.int64) - 1 - tl.program_id(0)
    n, offs_c, lo, end = block_of(pid, channels, tl.cdiv(hw, chunk), chunk, hw, BLOCK_C)
    inside = offs_c < channels
    x_ptr += n * stride_xn + lo * stride_xp
    out_ptr += n * stride_on + lo * stride_op
    gate_ptr = saved_ptr + n * (1 + RADIX) * channels + channels
    offs_p = tl.arange(0, BLOCK_P)
    for left in range(end - lo, 0, -BLOCK_P):
        mask = inside[:, None] & (offs_p[None, :] < left)
        out = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
        for r in tl.static_range(RADIX):
            first = (n * 0 + r) * channels
            gate = tl.load(gate_ptr + first + offs_c, mask=inside, other=0.0)
            out += gate[:, None] * load_split(
                x_ptr, scale_ptr, shift_ptr, first, offs_c, offs_p, stride_xc, stride_xp, mask,
                inside, SCALED,
            )  # fmt: skip
        offs = offs_c[:, None] * stride_oc + offs_p[None, :] * stride_op
        tl.store(out_ptr + offs, out.to(out_ptr.dtype.element_ty), mask=mask)
        x_ptr += BLOCK_P * stride_xp
        out_ptr += BLOCK_P * stride_op


@triton.jit
def dot_kernel(
    x_ptr,
    grad_ptr,
    part_ptr,
    channels,
    hw,
    chunk,
    stride_xn,
    stride_xc,
    stride_xp,
    stride_gn,
    stride_gc,
    stride_gp,
    RADIX: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """part[n, r, c, s] = sum over pixels p of part s of grad[n, c, p] * x[n, r * channels + c, p].

    Programs as in the pool; x and grad are read once.
    """
    pid = tl.program_id(0).to(tl.int64)
    n, offs_c, lo, end = block_of(pid, channels, PARTS, chunk, hw, BLOCK_C)
    inside = offs_c < channels
    x_ptr += n * stride_xn + lo * stride_xp
    grad_ptr += n * stride_gn + lo * stride_gp
    step = (n * 0 + channels) * stride_xc
    offs_p = tl.arange(0, BLOCK_P)
    acc0 = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    for left in range(end - lo, 0, -BLOCK_P):
        mask = inside[:, None] & (offs_p[None, :] < left)
        grad = load_map(grad_ptr, offs_c, offs_p, stride_gc, stride_gp, mask)
        acc0 += grad * load_map(x_ptr, offs_c, offs_p, stride_xc, stride_xp, mask)
        if RADIX > 1:
            acc1 += grad * load_map(x_ptr + step, offs_c, offs_p, stride_xc, stride_xp, mask)
        if RADIX > 2:
            acc2 += grad * load_map(x_ptr + 2 * step, offs_c, offs_p, stride_xc, stride_xp, mask)
        if RADIX > 3:
            acc3 += grad * load_map(x_ptr + 3 * step, offs_c, offs_p, stride_xc, stride_xp, mask)
        x_ptr += BLOCK_P * stride_xp
        grad_ptr += BLOCK_P * stride_gp
    at = part_ptr + (n * RADIX * channels + offs_c) * PARTS + pid % PARTS
    tl.store(at, tl.sum(acc0, axis=1), mask=inside)
    if RADIX > 1:
        tl.store(at + channels * PARTS, tl.sum(acc1, axis=1), mask=inside)
    if RADIX > 2:
        tl.store(at + 2 * channels * PARTS, tl.sum(acc2, axis=1), mask=inside)
    if RADIX > 3:
        tl.store(at + 3 * channels * PARTS, tl.sum(acc3, axis=1), mask=inside)


@triton.jit
def grad_x_kernel(
    grad_ptr,
    saved_ptr,
    grad_mean_ptr,
    out_ptr,
    channels,
    hw,
    chunk,
    stride_gn,
    stride_gc,
    stride_gp,
    stride_on,
    stride_oc,
    stride_op,
    RADIX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad_x[n, r * channels + c, p] = grad[n, c, p] * a[n, r, c] + grad_mean[n, c].

    One program owns BLOCK_C channels of every split over ``chunk`` pixels; one read of grad, one
    write of grad_x. Order of the programs as in the forward: from the last to the first.
    """
    pid = tl.num_programs(0).to(tl.int64) - 1 - tl.program_id(0)
    n, offs_c, lo, end = block_of(pid, channels, tl.cdiv(hw, chunk), chunk, hw, BLOCK_C)
    inside = offs_c < channels
    grad_ptr += n * stride_gn + lo * stride_gp
    out_ptr += n * stride_on + lo * stride_op
    gate_ptr = saved_ptr + n * (1 + RADIX) * channels + channels
    mean = tl.load(grad_mean_ptr + n * channels + offs_c, mask=inside, other=0.0)
    offs_p = tl.arange(0, BLOCK_P)
    for left in range(end - lo, 0, -BLOCK_P):
        mask = inside[:, None] & (offs_p[None, :] < left)
        grad = load_map(grad_ptr, offs_c, offs_p, stride_gc, stride_gp, mask)
        for r in tl.static_range(RADIX):
            first = (n * 0 + r) * channels
            gate = tl.load(gate_ptr + first + offs_c, mask=inside, other=0.0)
            tile = grad * gate[:, None] + mean[:, None]
            offs = (first + offs_c[:, None]) * stride_oc + offs_p[None, :] * stride_op
            tl.store(out_ptr + offs, tile.to(out_ptr.dtype.element_ty), mask=mask)
        grad_ptr += BLOCK_P * stride_gp
        out_ptr += BLOCK_P * stride_op

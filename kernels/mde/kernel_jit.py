"""The Triton kernels of the MDE filter; ``kernel.py`` launches them."""

# ruff: noqa: ANN001, ANN201, RUF005, SIM102 - Triton types the arguments itself, and its tuples
# are joined by +
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false, reportOptionalMemberAccess=false
import triton
import triton.language as tl

from .kernel_stencil import (
    add_row,
    at_edges,
    load_beside,
    load_row,
    pairs_of,
    smoothed,
    taps_of,
    tile_of,
    vector_at,
)


@triton.jit
def add_products(
    sums, kept, pairs, rows, row, column, height, width,
    RADIUS: tl.constexpr, CROSS: tl.constexpr, ROW: tl.constexpr, REFLECT: tl.constexpr,
):  # fmt: skip
    """Adds x * grad, then for each radius x * (row x row * grad).

    kept: rows -RADIUS to RADIUS of x. The mask works along the row on grad, across it on x.
    """
    x = kept[RADIUS]
    across = (x,)
    for d in tl.static_range(1, RADIUS + 1):
        across = across + (kept[RADIUS - d] + kept[RADIUS + d],)
    products = (pairs[0] * x,)
    if CROSS:
        products = products + (pairs[0] * (x + across[1]) + pairs[1] * x,)
    else:
        smooth = smoothed(across, RADIUS, ROW)
        for k in tl.static_range(RADIUS):
            products = products + (rows[k] * smooth[k],)
    added = ()
    for k in tl.static_range(RADIUS + 1):
        product = products[k]
        if REFLECT:
            product = at_edges(at_edges(product, 0.5, column, width), 0.5, row, height)
        added = added + (sums[k] + product,)
    return added


@triton.jit
def store_sums(
    part_ptr, sums, part, parts, vector, vectors,
    LAST: tl.constexpr, VEC: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """part[k, part, vector] = sums[k] over the places of the tile; vector = (image, channel)."""
    for k in tl.static_range(len(sums)):
        if LAST:
            total = tl.sum(tl.reshape(sums[k], (BLOCK_W, BLOCK_U * VEC)), axis=0)
            at = tl.max(tl.reshape(vector, (BLOCK_W, BLOCK_U * VEC)), axis=0)
        else:
            total = tl.sum(tl.reshape(sums[k], (BLOCK_U, BLOCK_W * VEC)), axis=1)
            at = tl.max(tl.reshape(vector, (BLOCK_U, BLOCK_W)), axis=1)
        tl.store(part_ptr + (k * parts + part) * vectors + at, total, mask=at < vectors)


@triton.jit
def filter_kernel(
    x_ptr,
    out_ptr,
    gains_ptr,
    other_ptr,
    part_ptr,
    batch,
    channels,
    height,
    width,
    span,
    chunks,
    parts,
    stride_gain,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_on,
    stride_oc,
    stride_oh,
    stride_ow,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_yw,
    RADII: tl.constexpr,
    NORM: tl.constexpr,
    ROW: tl.constexpr,
    CROSS: tl.constexpr,
    REFLECT: tl.constexpr,
    ADJOINT: tl.constexpr,
    WRITE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    LAST: tl.constexpr,
    VEC: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """out = the filter of x (ADJOINT: its transpose), one program down ``span`` rows of a tile.

    PRODUCTS: part[k, p, n, c] = sum over the program's pixels of other * (mask k of x), mask 0
    being the impulse and the others without their norm.
    """
    RADIUS: tl.constexpr = len(NORM)
    BLOCK: tl.constexpr = BLOCK_U * BLOCK_W
    SHIFT: tl.constexpr = VEC > 1 and not LAST
    n, channel, column, inside, chunk, part = tile_of(
        batch, channels, width, chunks, LAST, VEC, BLOCK_U, BLOCK_W
    )
    of_tap, columns = channel, column + tl.arange(0, VEC)[None, :]
    if LAST:
        of_tap, columns = channel + tl.arange(0, VEC)[None, :], column
    taps = taps_of(gains_ptr, stride_gain, of_tap, inside, RADII, NORM)
    in_x = n * stride_xn + channel * stride_xc + column.to(tl.int64) * stride_xw
    in_out = n * stride_on + channel * stride_oc + column.to(tl.int64) * stride_ow
    lo = tl.cast(chunk, tl.int32) * span
    end = tl.minimum(lo + span, height)
    zero = tl.zeros((BLOCK, VEC), dtype=tl.float32)
    open_rows, sums, kept, ahead = (), (), (), ()
    for _ in tl.static_range(2 * RADIUS):
        open_rows = open_rows + (zero,)
    for i in tl.static_range(AHEAD):
        row = lo - RADIUS + i
        ahead = ahead + (
            load_row(x_ptr, row, end + RADIUS, in_x, inside, height, stride_xh, REFLECT, VEC),
        )
    if PRODUCTS:
        in_other = n * stride_yn + channel * stride_yc + column.to(tl.int64) * stride_yw
        for _ in tl.static_range(RADIUS + 1):
            sums = sums + (zero,)
            kept = kept + (zero,)  # pushed out before it counts
        for d in tl.static_range(-RADIUS, 0):
            above = load_row(
                other_ptr, lo + d, lo, in_other, inside, height, stride_yh, REFLECT, VEC
            )
            kept = kept + (above.to(tl.float32),)
    for first in range(lo - RADIUS, end + RADIUS, AHEAD):
        for i in tl.static_range(AHEAD):
            row = first + i
            beside = load_beside(
                x_ptr, row, end + RADIUS, in_x, column, inside, height, width, stride_xh, stride_xw,
                RADIUS, REFLECT, SHIFT, VEC,
            )  # fmt: skip
            if PRODUCTS:
                below = load_row(
                    other_ptr, row + RADIUS, end + RADIUS, in_other, inside, height, stride_yh,
                    REFLECT, VEC,
                )  # fmt: skip
                kept = kept[1:] + (below.to(tl.float32),)
            pairs = pairs_of(
                ahead[0], beside, row, column, height, width, RADIUS, REFLECT, ADJOINT, SHIFT,
                BLOCK, VEC,
            )  # fmt: skip
            rows = smoothed(pairs, RADIUS, ROW)
            done, open_rows = add_row(open_rows, rows, pairs, taps, RADIUS, CROSS, ROW)
            at = row - RADIUS
            if ADJOINT and REFLECT:
                done = at_edges(at_edges(done, 0.5, columns, width), 0.5, at, height)
            if WRITE:
                to = out_ptr + vector_at(in_out + tl.cast(at, tl.int64) * stride_oh, VEC)
                there = inside & (at >= lo) & (at < end)
                tl.store(to, done.to(out_ptr.dtype.element_ty), mask=there)
            if PRODUCTS:
                if (row >= lo) & (row < end):
                    sums = add_products(
                        sums, kept, pairs, rows, row, columns, height, width,
                        RADIUS, CROSS, ROW, REFLECT,
                    )  # fmt: skip
            later = load_row(
                x_ptr, row + AHEAD, end + RADIUS, in_x, inside, height, stride_xh, REFLECT, VEC
            )
            ahead = ahead[1:] + (later,)
    if PRODUCTS:
        store_sums(
            part_ptr, sums, part, parts, n * channels + of_tap, batch * channels,
            LAST, VEC, BLOCK_U, BLOCK_W,
        )  # fmt: skip


@triton.jit
def gains_kernel(
    part_ptr,
    grad_ptr,
    rows,
    columns,
    size,
    RADII: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad of the gains from part[k, row, column]; one program owns BLOCK_C columns (channels).

    a_j moves tap j up and tap j + 1 down, so its gradient is the difference of theirs.
    """
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_r = tl.arange(0, BLOCK_R)
    grads = ()
    for k in tl.static_range(len(NORM) + 1):
        acc = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
        for first in range(0, rows, BLOCK_R):
            row = (first + offs_r).to(tl.int64)[:, None]
            mask = (row < rows) & (offs_c[None, :] < columns)
            at = part_ptr + k * size + row * columns + offs_c[None, :]
            acc += tl.load(at, mask=mask, other=0.0)
        grads = grads + (tl.sum(acc, axis=0),)
    of_tap = grads[0]
    at = grad_ptr + offs_c * (len(RADII) + 1)
    for j in tl.static_range(len(RADII)):
        after = grads[RADII[j]] * NORM[RADII[j] - 1]
        tl.store(at + j, of_tap - after, mask=offs_c < columns)
        of_tap = after
    tl.store(at + len(RADII), of_tap, mask=offs_c < columns)

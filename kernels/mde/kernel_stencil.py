"""Triton: what one row of a map gives to the rows around it, for the MDE filter.

Every mask is norm * row x row and the same left and right, up and down. So a row of x is paired
across (3 additions), smoothed along itself at every scale (6), weighed by the gains (3), and what
it gives to the 7 output rows around it is added to those still open (12): 24 operations for an
output of a 7 x 7 window, 4 coefficients a channel.

A tile is (BLOCK, VEC): VEC values side by side in memory belong to one thread. They are columns in
NCHW and channels in channels_last.
"""

# ruff: noqa: ANN001, ANN201, RUF005 - Triton types the arguments itself, and its tuples
# are joined by +
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportCallIssue=false, reportOptionalMemberAccess=false
import triton
import triton.language as tl

HALO = tl.constexpr(4)  # columns read at once from either neighbour; at least the largest radius


@triton.jit
def tile_of(
    batch, channels, width, chunks,
    LAST: tl.constexpr, VEC: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """(image, channel, column, inside, chunk of rows, part): where the program's tile begins.

    BLOCK_U units (planes; channels_last: VEC channels of an image) times BLOCK_W places along the
    row, the axis that is dense in memory varying fastest; the first four are (BLOCK, 1). A part is
    one of the programs that share the units.
    """
    pid = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK_U * BLOCK_W)[:, None]
    per_image, places = channels, width
    if LAST:
        per_image //= VEC
        unit, place = i % BLOCK_U, i // BLOCK_U
    else:
        places //= VEC
        unit, place = i // BLOCK_W, i % BLOCK_W
    across = tl.cdiv(places, BLOCK_W)
    part = pid % (across * chunks)
    unit += pid // (across * chunks) * BLOCK_U
    place += part % across * BLOCK_W
    n, channel, column = unit // per_image, unit % per_image, place
    if LAST:
        channel *= VEC
    else:
        column *= VEC
    return n, channel, column.to(tl.int32), (n < batch) & (place < places), part // across, part


@triton.jit
def taps_of(
    gains_ptr, stride, channel, inside, RADII: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """(t_0, ..., t_RADIUS) of each channel: the weight of x, then of each radius' row x row."""
    at = gains_ptr + channel * stride
    gain = tl.load(at, mask=inside, other=0.0)
    taps = (gain,)
    for _ in tl.static_range(len(NORM)):
        taps = taps + (tl.zeros_like(gain),)
    for j in tl.static_range(len(RADII)):
        before, gain = gain, tl.load(at + j + 1, mask=inside, other=0.0)
        tap = (gain - before) * NORM[RADII[j] - 1]  # the difference first: equal gains leave x
        taps = taps[: RADII[j]] + (tap,) + taps[RADII[j] + 1 :]
    return taps


@triton.jit
def next_up(x, new, BLOCK: tl.constexpr, VEC: tl.constexpr):
    """(x[1], ..., x[VEC - 1], new) of x (BLOCK, VEC) and new (BLOCK,); no value changes threads."""
    if VEC == 2:
        even, odd = tl.split(x)
        moved = tl.join(odd, new)
    else:
        even, odd = tl.split(tl.reshape(x, (BLOCK, VEC // 2, 2)))
        even = next_up(even, new, BLOCK, VEC // 2)
        moved = tl.reshape(tl.join(odd, even), (BLOCK, VEC))
    return moved


@triton.jit
def next_down(x, new, BLOCK: tl.constexpr, VEC: tl.constexpr):
    """(new, x[0], ..., x[VEC - 2])."""
    if VEC == 2:
        even, odd = tl.split(x)
        moved = tl.join(new, even)
    else:
        even, odd = tl.split(tl.reshape(x, (BLOCK, VEC // 2, 2)))
        odd = next_down(odd, new, BLOCK, VEC // 2)
        moved = tl.reshape(tl.join(odd, even), (BLOCK, VEC))
    return moved


@triton.jit
def four_columns(x, BLOCK: tl.constexpr):
    """The columns of x (BLOCK, 4)."""
    even, odd = tl.split(tl.reshape(x, (BLOCK, 2, 2)))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def end_columns(x, BLOCK: tl.constexpr, VEC: tl.constexpr):
    """The first and the last four columns of x (BLOCK, VEC), VEC being 4 or 8."""
    if VEC == 4:
        first = four_columns(x, BLOCK)
        last = first
    else:
        even, odd = tl.split(tl.reshape(x, (BLOCK, 4, 2)))
        e, o = four_columns(even, BLOCK), four_columns(odd, BLOCK)
        first, last = (e[0], o[0], e[1], o[1]), (e[2], o[2], e[3], o[3])
    return first, last


@triton.jit
def mirrored(i, size):
    """Index ``i`` reflected at 0 and at size - 1."""
    return size - 1 - tl.abs(size - 1 - tl.abs(i))


@triton.jit
def at_edges(x, factor, i, size):
    """``x``, times ``factor`` where index ``i`` is the first or the last."""
    return tl.where((i == 0) | (i == size - 1), factor * x, x)


@triton.jit
def vector_at(offs, VEC: tl.constexpr):
    """Offsets (BLOCK, VEC) of the vectors that begin at offs (BLOCK, 1), multiples of VEC."""
    offs = offs + tl.arange(0, VEC)[None, :]
    return tl.max_contiguous(tl.multiple_of(offs, (1, VEC)), (1, VEC))


@triton.constexpr_function
def moved_by(i):
    """-1, 1, -2, 2, ... for i = 0, 1, 2, 3, ..."""
    return (i // 2 + 1) * (1 if i % 2 else -1)


@triton.jit
def row_at(
    row, stop, offs, inside, height, stride_h, REFLECT: tl.constexpr, VEC: tl.constexpr
):  # fmt: skip
    """(offsets, mask) of the tile in row ``row``: nothing outside the map, or from ``stop`` on."""
    inside = inside & (row < stop)
    if REFLECT:
        row = mirrored(row, height)
    else:
        inside &= (row >= 0) & (row < height)
    return offs + tl.cast(row, tl.int64) * stride_h, inside


@triton.jit
def load_row(
    ptr, row, stop, offs, inside, height, stride_h, REFLECT: tl.constexpr, VEC: tl.constexpr
):  # fmt: skip
    """The tile in row ``row``."""
    offs, inside = row_at(row, stop, offs, inside, height, stride_h, REFLECT, VEC)
    return tl.load(ptr + vector_at(offs, VEC), mask=inside, other=0.0)


@triton.jit
def load_beside(
    ptr, row, stop, offs, column, inside, height, width, stride_h, stride_w,
    RADIUS: tl.constexpr, REFLECT: tl.constexpr, SHIFT: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """What row ``row`` needs besides the tile itself: its neighbours have loaded it into L1.

    SHIFT: (HALO columns to the left, HALO to the right); else the tile moved by -1, 1, -2, ...
    """
    offs, inside = row_at(row, stop, offs, inside, height, stride_h, REFLECT, VEC)
    found = ()
    if SHIFT:
        left, right = inside & (column > 0), inside & (column + VEC < width)
        before, after = vector_at(offs - HALO, HALO), vector_at(offs + VEC, HALO)
        found = found + (tl.load(ptr + before, mask=left, other=0.0),)
        found = found + (tl.load(ptr + after, mask=right, other=0.0),)
    else:
        offs = vector_at(offs, VEC)
        for i in tl.static_range(2 * RADIUS):
            at, there = column + moved_by(i), inside
            if REFLECT:
                at = mirrored(at, width)
            else:
                there &= (at >= 0) & (at < width)
            to = offs + (at - column) * stride_w
            found = found + (tl.load(ptr + to, mask=there, other=0.0),)
    return found


@triton.jit
def pairs_of_shifts(
    x, found, column, width, RADIUS: tl.constexpr, REFLECT: tl.constexpr, ADJOINT: tl.constexpr,
    BLOCK: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """`pairs_of` where a thread has columns side by side: moved within it."""
    left, right = four_columns(found[0], BLOCK), four_columns(found[1], BLOCK)
    if ADJOINT and REFLECT:
        x = at_edges(x, 2.0, column + tl.arange(0, VEC)[None, :], width)
    first, last = end_columns(x, BLOCK, VEC)
    low, high = tl.reshape(column == 0, (BLOCK,)), tl.reshape(column + VEC == width, (BLOCK,))
    pairs, up, down = (x,), x, x
    for e in tl.static_range(RADIUS):
        before, after = left[3 - e].to(tl.float32), right[e].to(tl.float32)
        if REFLECT:
            before = tl.where(low, first[e + 1], before)
            after = tl.where(high, last[2 - e], after)
        up = next_up(up, after, BLOCK, VEC)
        down = next_down(down, before, BLOCK, VEC)
        pairs = pairs + (down + up,)
    return pairs


@triton.jit
def pairs_of(
    x, found, row, column, height, width,
    RADIUS: tl.constexpr, REFLECT: tl.constexpr, ADJOINT: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """(x, x[-1] + x[1], ..., x[-RADIUS] + x[RADIUS]) in float32.

    ADJOINT under REFLECT: of x / c, c being 1/2 in the first and last row and column, 1 elsewhere.
    """
    x = x.to(tl.float32)
    if SHIFT:
        pairs = pairs_of_shifts(x, found, column, width, RADIUS, REFLECT, ADJOINT, BLOCK, VEC)
    else:
        pairs = (x,)
        if ADJOINT and REFLECT:
            pairs = (at_edges(x, 2.0, column, width),)
        for e in tl.static_range(RADIUS):
            down, up = found[2 * e].to(tl.float32), found[2 * e + 1].to(tl.float32)
            if ADJOINT and REFLECT:
                down = at_edges(down, 2.0, mirrored(column - e - 1, width), width)
                up = at_edges(up, 2.0, mirrored(column + e + 1, width), width)
            pairs = pairs + (down + up,)
    if ADJOINT and REFLECT:
        scaled = ()
        for e in tl.static_range(RADIUS + 1):
            scaled = scaled + (at_edges(pairs[e], 2.0, mirrored(row, height), height),)
        pairs = scaled
    return pairs


@triton.jit
def smoothed(pairs, RADIUS: tl.constexpr, ROW: tl.constexpr):
    """Along the axis of the pairs, (row of radius 1 * x, ..., row of RADIUS * x)."""
    rows = ()
    for k in tl.static_range(1, RADIUS + 1):
        c = ROW[4 * k - 4 + k] * pairs[k]
        for e in tl.static_range(k):
            c += ROW[4 * k - 4 + e] * pairs[e]
        rows = rows + (c,)
    return rows


@triton.jit
def add_row(
    open_rows, rows, pairs, taps, RADIUS: tl.constexpr, CROSS: tl.constexpr, ROW: tl.constexpr
):  # fmt: skip
    """(the output row RADIUS above, now complete; the 2 * RADIUS rows still open)."""
    x = pairs[0]
    center = open_rows[RADIUS] + taps[0] * x
    given = ()  # to the rows 1 to RADIUS away
    if CROSS:  # a corner weighs 0, not nothing: what is not finite there must spread
        center += taps[1] * (x + pairs[1])
        given = (taps[1] * (x + 0.0 * pairs[1]),)
    else:
        for k in tl.static_range(1, RADIUS + 1):
            center += taps[k] * rows[k - 1] * ROW[4 * k - 4]
        for d in tl.static_range(1, RADIUS + 1):
            total = taps[d] * rows[d - 1] * ROW[5 * d - 4]
            for k in tl.static_range(d + 1, RADIUS + 1):
                total += taps[k] * rows[k - 1] * ROW[4 * k - 4 + d]
            given = given + (total,)
    now = ()
    for i in tl.static_range(2 * RADIUS):
        if i == RADIUS:
            now = now + (center,)
        elif i < RADIUS:
            now = now + (open_rows[i] + given[RADIUS - i - 1],)
        else:
            now = now + (open_rows[i] + given[i - RADIUS - 1],)
    return now[0], now[1:] + (given[RADIUS - 1],)

# pyrefly: ignore-errors[implicit-any-parameter]
"""The steps of an LSTM layer in one kernel, forward and back.

Units are dealt out: a program owns a few units, all four gates of them, for a few rows of the
batch, and keeps its slice of W_hh while time goes by. Every step each program reads the whole state
of its rows, so the programs of the same rows meet once a step (Diamos et al. 2016, "Persistent
RNNs"). One launch may run one step or all of them: the last step of a launch needs no meeting.

Names: rows of the batch, units, K the length of the recurrent product (H forward, 4 H back).
Columns of the forward product stand unit by unit, i f g o beside each other. Parameters are not
annotated, constants aside: Triton reads annotations as code.
"""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Tanh x = 2 sigmoid(2 x) - 1."""
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def arrive(counter):
    """Say that what this program has stored so far can be read.

    One counter per block of rows. It is never set back, so nobody can be overtaken.
    """
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def meet(counter, target):
    """Wait for `target` arrivals: what they had stored is seen from here on."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()


@triton.jit
def tile(
    w, columns, inside, begin, along, K: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr
):
    """Weights (PARTS, DEPTH, columns) from K = `begin` on; `along` is the stride of K."""
    part, depth = tl.arange(0, PARTS), tl.arange(0, DEPTH)
    if PARTS == 1:
        k = begin + depth[:, None]
        at, there = columns[None, :] + k * along, inside[None, :] & (k < K)
    else:
        k = begin + part[:, None, None] * DEPTH + depth[None, :, None]
        at, there = columns[None, None, :] + k * along, inside[None, None, :] & (k < K)
    return tl.load(w + at, mask=there, other=0.0)


@triton.jit
def slice_of(
    w, columns, inside, along, K: tl.constexpr,
    CHUNKS: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """All tiles of a program's columns, to keep; none where they are read again at every step."""
    tiles = ()
    if KEEP:
        for j in tl.static_range(CHUNKS):
            begin = j * PARTS * DEPTH
            tiles = tiles + (tile(w, columns, inside, begin, along, K, PARTS, DEPTH),)  # noqa: RUF005
    return tiles


@triton.jit
def state(x, row, rows, begin, K: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr):
    """What all have stored, (PARTS, rows, DEPTH), past the first cache, which is not shared."""
    part, depth = tl.arange(0, PARTS), tl.arange(0, DEPTH)
    if PARTS == 1:
        k = begin + depth[None, :]
        at, there = row[:, None] * K + k, (row < rows)[:, None] & (k < K)
    else:
        k = begin + part[:, None, None] * DEPTH + depth[None, None, :]
        at, there = row[None, :, None] * K + k, (row < rows)[None, :, None] & (k < K)
    return tl.load(x + at, mask=there, other=0.0, cache_modifier=".cg")


@triton.jit
def product(
    x, row, rows, tiles, w, columns, inside, along,
    K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr,
    GROUP: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr, KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """X W for a program's columns, (rows, columns), in float32.

    Many columns are dealt out among the warps (PARTS = 1). Where there are few, K is (PARTS =
    warps): no warp reads again what another has read, and the sums to bring together are small. A
    GROUP of chunks is asked for at once: the way to the memory is long.
    """  # noqa: DOC201
    if PARTS == 1:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
    else:
        total = tl.zeros((PARTS, ROWS, COLUMNS), tl.float32)
    if KEEP:
        for a in tl.static_range(0, CHUNKS, GROUP):
            group = ()
            for j in tl.static_range(GROUP):
                begin = (a + j) * PARTS * DEPTH
                group = group + (state(x, row, rows, begin, K, PARTS, DEPTH),)  # noqa: RUF005
            for j in tl.static_range(GROUP):
                if a + j < CHUNKS:
                    total = tl.dot(group[j], tiles[a + j], total, input_precision=PRECISION)
    else:
        for j in range(CHUNKS):
            own = state(x, row, rows, j * PARTS * DEPTH, K, PARTS, DEPTH)
            weights = tile(w, columns, inside, j * PARTS * DEPTH, along, K, PARTS, DEPTH)
            total = tl.dot(own, weights, total, input_precision=PRECISION)
    if PARTS > 1:
        total = tl.sum(total, 0)
    return total


@triton.jit
def four(x, at, inside, H: tl.constexpr):
    """The four gates' (rows, units) of an (rows, 4 H) array; `at` is the place of the first."""
    i = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    f = tl.load(x + at + H, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(x + at + 2 * H, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(x + at + 3 * H, mask=inside, other=0.0).to(tl.float32)
    return i, f, g, o


@triton.jit
def put(x, at, inside, i, f, g, o, H: tl.constexpr):
    """The other way round."""
    tl.store(x + at, i.to(x.dtype.element_ty), mask=inside)
    tl.store(x + at + H, f.to(x.dtype.element_ty), mask=inside)
    tl.store(x + at + 2 * H, g.to(x.dtype.element_ty), mask=inside)
    tl.store(x + at + 3 * H, o.to(x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "begin", "end"])
def forward(
    pre, w_hh, outputs, cells, gates, carried, mask,
    counters, rows, begin, end,
    H: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, CHUNKS: tl.constexpr,
    GROUP: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr, KEEP: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Steps `begin` to `end`: outputs (T + 1, B, H), cells (T + 1, B, H), gates (T, B, 4 H).

    `carried` (B, H) is c, in float32, from launch to launch.
    """
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (unit < H)[None, :]
    at = row[:, None] * H + unit[None, :]
    wide = row[:, None] * (4 * H) + unit[None, :]
    column = tl.arange(0, 4 * UNITS)
    owned = tl.program_id(0) * UNITS + column // 4
    columns = ((column % 4) * H + owned) * H
    tiles = slice_of(w_hh, columns, owned < H, 1, H, CHUNKS, PARTS, DEPTH, KEEP)
    step = tl.cast(rows, tl.int64) * H
    first = tl.cast(begin, tl.int64) * step
    pre += 4 * first
    gates += 4 * first
    outputs += first
    cells += first
    c = tl.load(carried + at, mask=inside, other=0.0)
    i, f, g, o = four(pre, wide, inside, H)
    for t in range(begin, end):
        own = product(
            outputs, row, rows, tiles, w_hh, columns, owned < H, 1,
            H, ROWS, 4 * UNITS, CHUNKS, GROUP, PARTS, DEPTH, KEEP, PRECISION,
        )  # fmt: skip
        left, right = tl.split(tl.reshape(own, (ROWS, UNITS, 2, 2)))
        own_i, own_g = tl.split(left)
        own_f, own_o = tl.split(right)
        i, f, g, o = (
            tl.sigmoid(i + own_i), tl.sigmoid(f + own_f), tanh(g + own_g), tl.sigmoid(o + own_o)
        )  # fmt: skip
        new = f * c + i * g
        h = (o * tanh(new)).to(outputs.dtype.element_ty)
        if MASKED:
            counts = (tl.load(mask + t * rows + row, mask=row < rows, other=0) != 0)[:, None]
            new = tl.where(counts, new, c)
            h = tl.where(counts, h, tl.load(outputs + at, mask=inside, other=0.0))
        c = new
        outputs += step
        cells += step
        tl.store(outputs + at, h, mask=inside)
        more = t + 1 < end
        if more:
            arrive(counters + tl.program_id(1))
        # what nobody waits for is stored, and the next step asked for, while the others arrive
        tl.store(cells + at, c.to(cells.dtype.element_ty), mask=inside)
        put(gates, wide, inside, i, f, g, o, H)
        pre += 4 * tl.where(more, step, 0)
        gates += 4 * step
        i, f, g, o = four(pre, wide, inside, H)
        if more:
            meet(counters + tl.program_id(1), (t + 1 - begin) * tl.num_programs(0))
    tl.store(carried + at, c, mask=inside)


@triton.jit(do_not_specialize=["rows", "begin", "end"])
def backward(
    given, w_hh, cells, gates, found_h, found_c, dgates,
    kept, carried, mask, counters, rows, begin, end,
    H: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, CHUNKS: tl.constexpr,
    GROUP: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr, KEEP: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Steps `end` - 1 down to `begin`: dL/dh and dL/dc (T, B, H), dgates (T + 1, B, 4 H).

    `carried` (B, H) is what comes back to c; `kept` what comes back to h without the product: from
    outside at the end, and where a sequence has ended. The last row of dgates is zero.
    """
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (unit < H)[None, :]
    at = row[:, None] * H + unit[None, :]
    wide = row[:, None] * (4 * H) + unit[None, :]
    tiles = slice_of(w_hh, unit, unit < H, H, 4 * H, CHUNKS, PARTS, DEPTH, KEEP)
    step = tl.cast(rows, tl.int64) * H
    last = tl.cast(end - 1, tl.int64) * step
    given += last
    found_h += last
    found_c += last
    cells += last
    gates += 4 * last
    dgates += 4 * last
    keep = tl.load(kept + at, mask=inside, other=0.0)
    dc = tl.load(carried + at, mask=inside, other=0.0)
    outer = tl.load(given + at, mask=inside, other=0.0).to(tl.float32)
    i, f, g, o = four(gates, wide, inside, H)
    c = tl.load(cells + step + at, mask=inside, other=0.0).to(tl.float32)
    before = tl.load(cells + at, mask=inside, other=0.0).to(tl.float32)
    for back in range(0, end - begin):
        dh = product(
            dgates + 4 * step, row, rows, tiles, w_hh, unit, unit < H, H,
            4 * H, ROWS, UNITS, CHUNKS, GROUP, PARTS, DEPTH, KEEP, PRECISION,
        )  # fmt: skip
        here = outer + dh + keep
        squashed = tanh(c)
        into = dc + here * o * (1 - squashed * squashed)
        found = into
        di, df, dg, do = (
            into * g * i * (1 - i), into * before * f * (1 - f), into * i * (1 - g * g),
            here * squashed * o * (1 - o),
        )  # fmt: skip
        if MASKED:
            t = end - 1 - back
            counts = (tl.load(mask + t * rows + row, mask=row < rows, other=0) != 0)[:, None]
            found = tl.where(counts, into, dc)
            di, df = tl.where(counts, di, 0.0), tl.where(counts, df, 0.0)
            dg, do = tl.where(counts, dg, 0.0), tl.where(counts, do, 0.0)
            keep = tl.where(counts, 0.0, here)
            dc = tl.where(counts, into * f, dc)
        else:
            keep = tl.zeros((ROWS, UNITS), tl.float32)
            dc = into * f
        put(dgates, wide, inside, di, df, dg, do, H)
        more = back + 1 < end - begin
        if more:
            arrive(counters + tl.program_id(1))
        tl.store(found_h + at, here.to(found_h.dtype.element_ty), mask=inside)
        tl.store(found_c + at, found.to(found_c.dtype.element_ty), mask=inside)
        found_h -= step
        found_c -= step
        dgates -= 4 * step
        further = tl.where(more, step, 0)
        given -= further
        cells -= further
        gates -= 4 * further
        outer = tl.load(given + at, mask=inside, other=0.0).to(tl.float32)
        i, f, g, o = four(gates, wide, inside, H)
        c = before
        before = tl.load(cells + at, mask=inside, other=0.0).to(tl.float32)
        if more:
            meet(counters + tl.program_id(1), (back + 1) * tl.num_programs(0))
    tl.store(kept + at, keep, mask=inside)
    tl.store(carried + at, dc, mask=inside)

"""How an LSTM layer's units and rows are dealt out among the programs of a kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

#: units of a program: all four gates of them make 64 columns, what four warps share well
UNITS = 16
#: rows of a program: as few as are needed for all programs to run at once
ROWS = (16, 32, 64)
#: bytes of the state that may be on their way to a program at once: registers hold them
ON_THE_WAY = 96 * 1024
#: depths of a chunk, and the one of weights that are read at every step
DEPTHS, READ = (256, 128, 64, 32, 16), 64


@dataclass(frozen=True)
class Deal:
    """One way to deal.

    Attributes:
        grid: programs along the units and along the batch.
        rows: of the batch in a program, a power of two.
        parts: 1 deals the columns out among the warps, `warps` the depth of the product.
        warps: of a program.
        depth: of one part of a chunk of the product.
        chunks: that the depth is cut into.
        group: chunks that are asked for at once.
        keep: hold the slice of W_hh over all steps; where it does not fit, it is read every step.
        together: run all steps in one launch, which asks for all programs of the grid at once.
    """

    grid: tuple[int, int]
    rows: int
    parts: int
    warps: int
    depth: int
    chunks: int
    group: int
    keep: bool
    together: bool

    def options(self) -> dict[str, int | bool]:
        """What a kernel is told."""
        return {
            "ROWS": self.rows, "UNITS": UNITS, "CHUNKS": self.chunks, "GROUP": self.group,
            "PARTS": self.parts, "DEPTH": self.depth, "KEEP": self.keep,
        }  # fmt: skip


def deal(
    batch: int, hidden: int, size: int, *, back: bool, processors: int, room: int, twice: bool
) -> Deal:
    """Deal out a layer.

    Args:
        batch: sequences, B.
        hidden: units, H.
        size: bytes of a number.
        back: the way back, whose product is four times as deep and a quarter as wide.
        processors: multiprocessors of the device.
        room: bytes of shared memory that a program may take.
        twice: the product splits its numbers in two, which takes twice the room.

    Returns:
        The deal.
    """
    slices = -(-hidden // UNITS)
    fits = [rows for rows in ROWS if slices * -(-batch // rows) <= processors]
    rows = fits[0] if fits else ROWS[0]
    parts, warps = (8, 8) if back else (1, 4)
    length, columns = (4 * hidden, UNITS) if back else (hidden, 4 * UNITS)
    times = 2 if twice else 1
    grid, together = (slices, -(-batch // rows)), bool(fits)

    def chunks(depth: int) -> int:
        return -(-length // (parts * depth))

    # the least of it empty; of those the deepest: fewer chunks wait for each other less often
    able_depths = DEPTHS[1:] if twice else DEPTHS  # numbers in two parts fill the registers
    for depth in sorted(able_depths, key=lambda d: (chunks(d) * d, -d)):
        held = chunks(depth) * parts * depth * columns * size
        chunk = rows * parts * depth * size
        able = min((room // times - held) // chunk, ON_THE_WAY // chunk, chunks(depth))
        if able > 0:
            group = -(-chunks(depth) // -(-chunks(depth) // able))
            return Deal(
                grid, rows, parts, warps, depth, chunks(depth), group, keep=True, together=together
            )
    bare = Deal(grid, rows, parts, warps, READ, 1, 1, keep=False, together=together)
    return read_again(bare, hidden, back=back)


def read_again(how: Deal, hidden: int, *, back: bool) -> Deal:
    """The same deal, with weights that are read at every step.

    Args:
        how: the deal.
        hidden: units, H.
        back: the way back.

    Returns:
        The other one.
    """
    chunks = -(-(4 * hidden if back else hidden) // (how.parts * READ))
    return replace(how, depth=READ, chunks=chunks, group=1, keep=False)


def of_device(
    batch: int, hidden: int, dtype: torch.dtype, device: torch.device, *, back: bool, twice: bool
) -> Deal:
    """The deal for a device.

    Args:
        batch: sequences, B.
        hidden: units, H.
        dtype: of the numbers.
        device: a CUDA device; on a CPU (Triton's interpreter) programs run one after the other,
            so that several cannot run all steps together.
        back: the way back.
        twice: see `deal`.

    Returns:
        The deal.
    """
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        processors = properties.multi_processor_count
        room = getattr(properties, "shared_memory_per_block_optin", 99 * 1024)
    else:  # programs of different rows do not wait for each other
        processors, room = batch if hidden <= UNITS else 0, 1 << 20
    return deal(
        batch, hidden, dtype.itemsize, back=back, processors=processors, room=room, twice=twice
    )

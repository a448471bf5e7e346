"""The cross-loop shift over rows that are split between ranks (sequence parallelism, context parallelism, both).

    rank 0: h_0 .. h_{n-1}      ->  0,       h_0 .. h_{n-2}
    rank 1: h_n .. h_{2n-1}     ->  h_{n-1}, h_n .. h_{2n-2}        and 0 at the first token of every document

One row crosses each seam, and its gradient crosses back. Under context parallelism a rank holds two stretches of the
row, so it has two seams. Every rank knows the whole batch's document starts, so a document that begins exactly at a
seam reads zero there too.
"""

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from loopcoder_train.engines.megatron.context import chunks_of
from loopcoder_train.engines.megatron.mesh import Mesh


class Seams:
    """Which stretches of the row the ranks of `mesh.rows` hold, and where the row before each stretch lies.

    A row is counted in 2 C T units (C context ranks, T sequence-parallel ranks); every rank holds two of them, which
    are one stretch where they follow each other. Its ends are what the neighbours need.

    Attributes:
        before: per stretch of this rank, (rank, stretch) that ends right before it; None at the start of the row.
        after: per stretch of this rank, (rank, stretch) that begins right after it; None at the end of the row.
        slots: the most stretches that any rank has.
    """

    def __init__(self, mesh: Mesh):
        self.group: ProcessGroup = mesh.rows
        parts, ranks = mesh.row_parts, mesh.context.size()
        stretches = [_stretches(context, part, ranks, parts) for context in range(ranks) for part in range(parts)]
        begins = {first: (rank, s) for rank, own in enumerate(stretches) for s, (first, _) in enumerate(own)}
        ends = {stop: (rank, s) for rank, own in enumerate(stretches) for s, (_, stop) in enumerate(own)}
        own = stretches[self.group.rank()]
        self.before = [ends.get(first) for first, _ in own]
        self.after = [begins.get(stop) for _, stop in own]
        self.slots = max(len(own) for own in stretches)


def _stretches(context_rank: int, part: int, ranks: int, parts: int) -> list[tuple[int, int]]:
    """(first, stop) in units of the row, in the order of this rank's rows."""
    chunks = (0, 1) if ranks == 1 else chunks_of(context_rank, ranks)
    units = [chunk * parts + offset for chunk in chunks for offset in range(parts)][2 * part : 2 * part + 2]
    if units[1] == units[0] + 1:
        return [(units[0], units[1] + 1)]
    return [(unit, unit + 1) for unit in units]


def shift_right(hidden: Tensor, starts: Tensor, seams: Seams | None) -> Tensor:
    """`shift(h)_i = h_{i-1}`, zero where `starts`.

    Args:
        hidden: [S_local, B, d]: the whole sequence, or this rank's stretches of it.
        starts: bool [S_local, B], the first token of every document, for the same rows.
        seams: where the stretches of all ranks meet; None: `hidden` is the whole sequence.
    """
    if seams is None:
        shifted = torch.cat([torch.zeros_like(hidden[:1]), hidden[:-1]])
    else:
        stretches = hidden.chunk(len(seams.before))
        halos = RowsBefore.apply(torch.stack([stretch[-1] for stretch in stretches]), seams)
        shifted = torch.cat(
            [piece for halo, rows in zip(halos, stretches, strict=True) for piece in (halo[None], rows[:-1])]
        )
    return shifted.masked_fill(starts[..., None], 0.0)


class RowsBefore(torch.autograd.Function):
    """From the last row of each of this rank's stretches to the row before each of them, [stretches, B, d].

    Backward hands gradients the other way. The rows of all ranks are gathered: some rows too many, but a single
    collective with no ordering between neighbours, and small beside one layer's exchange of S rows.
    """

    @staticmethod
    def forward(ctx, tails: Tensor, seams: Seams) -> Tensor:
        ctx.seams = seams
        return _elsewhere(tails, seams, seams.before)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _elsewhere(gradient, ctx.seams, ctx.seams.after), None


def _elsewhere(rows: Tensor, seams: Seams, places: list[tuple[int, int] | None]) -> Tensor:
    """The rows that lie at `places` (rank, stretch), zeros for None: every rank gives `rows` [stretches, B, d]."""
    given = rows.new_zeros((seams.slots, *rows.shape[1:]))
    given[: len(rows)] = rows
    gathered = rows.new_empty((seams.group.size(), *given.shape))
    distributed.all_gather_into_tensor(gathered, given[None], group=seams.group)
    nothing = torch.zeros_like(rows[0])
    return torch.stack([nothing if place is None else gathered[place] for place in places])

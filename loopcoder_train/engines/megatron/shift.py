"""The cross-loop shift over a sequence that is split between tensor-parallel ranks (sequence parallelism).

    rank 0: h_0 .. h_{n-1}      ->  0,       h_0 .. h_{n-2}
    rank 1: h_n .. h_{2n-1}     ->  h_{n-1}, h_n .. h_{2n-2}        and 0 at the first token of every document

One row crosses each seam, and its gradient crosses back. Every rank knows the whole batch's document starts, so a
document that begins exactly at a seam reads zero there too.
"""

import torch
from torch import Tensor, distributed


def shift_right(hidden: Tensor, starts: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """`shift(h)_i = h_{i-1}`, zero where `starts`.

    Args:
        hidden: [S_local, B, d]: the whole sequence, or this rank's part of it.
        starts: bool [S_local, B], the first token of every document, for the same rows.
        group: the ranks that hold the parts in order; None: `hidden` is the whole sequence.
    """
    halo = torch.zeros_like(hidden[:1]) if group is None else PreviousRow.apply(hidden[-1:], group)
    return torch.cat([halo, hidden[:-1]]).masked_fill(starts[..., None], 0.0)


class PreviousRow(torch.autograd.Function):
    """The last row [1, B, d] of the rank before, zeros on the first rank; backward hands gradients the other way.

    The rows of all ranks are gathered: `ranks` rows instead of one, but a single collective with no ordering between
    neighbours, and small beside one layer's exchange of S rows.
    """

    @staticmethod
    def forward(ctx, row: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group = group
        return _neighbour(row, group, -1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _neighbour(gradient, ctx.group, +1), None


def _neighbour(row: Tensor, group: distributed.ProcessGroup, distance: int) -> Tensor:
    """`row` of the rank `distance` further in `group`; zeros past the ends."""
    rows = row.new_empty((group.size(), *row.shape))
    distributed.all_gather_into_tensor(rows, row.contiguous()[None], group=group)
    source = group.rank() + distance
    return rows[source] if 0 <= source < group.size() else torch.zeros_like(row)

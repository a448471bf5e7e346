"""Context parallelism: every rank holds two chunks of each row, and fetches what its queries see beyond them.

A row is cut into 2 C chunks; rank c holds chunks c and 2C-1-c ("zig-zag"), so all ranks see about as many keys:

    C = 2      | 0 | 1 | 2 | 3 |        rank 0: 0, 3      rank 1: 1, 2

global branch  K1, V1 are gathered whole ONCE, in loop 1, kept, and read by every loop; their gradients, summed over
               the loops, are reduce-scattered once. A ring would carry K1 and V1 round again in every loop
               (docs/parallelism.md has the bytes of both).
local branch   the window reaches at most `window_left` rows into the chunk before: those rows alone come from the
               neighbour, point to point, and their gradients go back the same way.

Every rank knows whole rows of document ids, so documents may be cut anywhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.distributed import P2POp, ProcessGroup, batch_isend_irecv

from loopcoder_train.model.attention import AttentionKernels
from loopcoder_train.model.documents import Documents
from loopcoder_train.model.gated_attention import SharedKV


def chunks_of(rank: int, ranks: int) -> tuple[int, ...]:
    """The chunks of a row that context rank `rank` of `ranks` holds; one chunk is the row where there is one rank."""
    return (0,) if ranks == 1 else (rank, 2 * ranks - 1 - rank)


class RowSplit:
    """Cuts whole rows into this rank's part, and puts the parts together again. Trivial on one rank."""

    def __init__(self, group: ProcessGroup):
        self.group, self.ranks = group, group.size()
        self.num_chunks = 1 if self.ranks == 1 else 2 * self.ranks
        self.chunks = chunks_of(group.rank(), self.ranks)

    def cut(self, whole: Tensor, dim: int = 1) -> Tensor:
        """This rank's rows of `whole`, whose `dim` is the sequence."""
        if self.ranks == 1:
            return whole
        pieces = whole.chunk(self.num_chunks, dim)
        return torch.cat([pieces[chunk] for chunk in self.chunks], dim)

    def starts(self, length: int) -> list[tuple[int, int]]:
        """First row and stop of each of this rank's chunks in a row of `length`."""
        size = length // self.num_chunks
        return [(chunk * size, (chunk + 1) * size) for chunk in self.chunks]

    def gather(self, part: Tensor, dim: int = 1) -> Tensor:
        """Whole rows on every rank from every rank's part; gradients are summed and scattered back."""
        if self.ranks == 1:
            return part
        return _GatherRows.apply(part.movedim(dim, 0), self).movedim(0, dim)

    def in_order(self, gathered: Tensor) -> Tensor:
        """[C, n, ...] parts by rank -> [S, ...]."""
        pieces = [None] * self.num_chunks
        for rank, part in enumerate(gathered):
            for chunk, piece in zip(chunks_of(rank, self.ranks), part.chunk(2), strict=True):
                pieces[chunk] = piece
        return torch.cat(pieces)

    def by_rank(self, whole: Tensor) -> Tensor:
        """[S, ...] -> [C, n, ...], the inverse of :meth:`in_order`."""
        pieces = whole.chunk(self.num_chunks)
        return torch.stack(
            [torch.cat([pieces[chunk] for chunk in chunks_of(rank, self.ranks)]) for rank in range(self.ranks)]
        )


class _GatherRows(torch.autograd.Function):
    """[n, ...] -> [S, ...]: all-gather forward, reduce-scatter backward."""

    @staticmethod
    def forward(ctx, part: Tensor, split: RowSplit) -> Tensor:
        ctx.split = split
        gathered = part.new_empty((split.ranks, *part.shape))
        distributed.all_gather_into_tensor(gathered, part.contiguous()[None], group=split.group)
        return split.in_order(gathered)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        parts = ctx.split.by_rank(gradient)
        own = torch.empty_like(parts[0])
        distributed.reduce_scatter_tensor(own, parts.flatten(0, 1), group=ctx.split.group)
        return own, None


def halo_rows(window_left: int, first: int) -> int:
    """Rows before row `first` that the window of the chunk beginning there reaches: none at the start of the row."""
    return min(window_left, first)


class _Halo(torch.autograd.Function):
    """What the chunks of this rank see of the chunks before them.

    `low_tail` and `high_tail` are the last rows of this rank's lower and upper chunk; the halos are the last rows
    before those chunks. Rank 0's lower chunk begins the row: its halo is zeros that nobody reads.

        rank c:   low halo  <- low tail of rank c-1           high halo <- high tail of rank c+1
                                                              (of the last rank: its own low tail)
    """

    @staticmethod
    def forward(ctx, low_tail: Tensor, high_tail: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
        ctx.group = group
        low_halo, high_halo = _exchange(to_next=low_tail, to_previous=high_tail, group=group)
        return low_halo, low_tail.clone() if _is_last(group) else high_halo

    @staticmethod
    def backward(ctx, low_gradient: Tensor, high_gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        # what came from the previous rank's lower chunk goes back there; the last rank's own low tail stays
        high_tail, low_tail = _exchange(to_next=high_gradient, to_previous=low_gradient, group=ctx.group)
        return high_gradient if _is_last(ctx.group) else low_tail, high_tail, None


def _exchange(*, to_next: Tensor, to_previous: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Send to both neighbours; returns what came from the previous and from the next, zeros at the ends."""
    rank, ranks = group.rank(), group.size()
    from_previous, from_next = to_next.new_zeros(to_next.shape), to_previous.new_zeros(to_previous.shape)
    operations = []
    for neighbour, outgoing, incoming in (
        (rank - 1, to_previous, from_previous),
        (rank + 1, to_next, from_next),
    ):
        if 0 <= neighbour < ranks:
            peer = distributed.get_global_rank(group, neighbour)
            operations.append(P2POp(distributed.isend, outgoing.contiguous(), peer, group))
            operations.append(P2POp(distributed.irecv, incoming, peer, group))
    for work in batch_isend_irecv(operations):
        work.wait()
    return from_previous, from_next


def _is_last(group: ProcessGroup) -> bool:
    return group.rank() == group.size() - 1


class SplitRows:
    """Both attention branches for this rank's chunks (see :class:`~loopcoder_train.model.gated_attention.Attend`).

    `shared` holds whole rows, as :meth:`gathered` made them; `own` holds each chunk behind its halo, as
    :meth:`with_halo` made it: [halo, lower chunk, halo, upper chunk], the first halo missing on rank 0.
    """

    def __init__(self, kernels: AttentionKernels, documents: Documents, window_left: int, split: RowSplit):
        self.kernels, self.documents, self.window_left, self.split = kernels, documents, window_left, split
        self._chunks = split.starts(documents.sequence_length)
        self._halos = [halo_rows(window_left, first) for first, _ in self._chunks]

    def gathered(self, own: SharedKV) -> SharedKV:
        """Whole rows of keys and values [B, S, G, D] from this rank's [B, n, G, D]."""
        together = self.split.gather(torch.stack([own.key, own.value]), dim=2)
        return SharedKV(together[0], together[1])

    def with_halo(self, own: SharedKV) -> SharedKV:
        """This rank's keys and values, each chunk behind the rows of the chunk before that its window reaches."""
        if self.window_left == 0:
            return own
        together = torch.stack([own.key, own.value])  # [2, B, n, G, D]: one message for both
        low, high = together.chunk(2, dim=2)
        assert low.shape[2] >= self.window_left, "a window reaches beyond the chunk before"
        tails = (chunk[:, :, chunk.shape[2] - self.window_left :] for chunk in (low, high))
        halos = _Halo.apply(*tails, self.split.group)
        low_halo, high_halo = (
            halo[:, :, self.window_left - rows :] for halo, rows in zip(halos, self._halos, strict=True)
        )
        together = torch.cat([low_halo, low, high_halo, high], dim=2)
        return SharedKV(together[0], together[1])

    def global_attention(self, query: Tensor, shared: SharedKV) -> Tensor:
        """Every chunk against all rows up to its end: [B, n, H, D]."""
        return self._by_chunk(query, [(shared, 0, stop) for _, stop in self._chunks], None)

    def local_attention(self, query: Tensor, own: SharedKV) -> Tensor:
        """Every chunk against itself and its halo: [B, n, H, D]."""
        size = self._chunks[0][1] - self._chunks[0][0]
        lengths = [halo + size for halo in self._halos]
        parts = zip(own.key.split(lengths, dim=1), own.value.split(lengths, dim=1), strict=True)
        spans = zip(parts, self._chunks, self._halos, strict=True)
        return self._by_chunk(
            query,
            [(SharedKV(key, value), first - halo, stop) for (key, value), (first, stop), halo in spans],
            self.window_left,
        )

    def _by_chunk(self, query: Tensor, spans: Sequence[tuple[SharedKV, int, int]], window_left: int | None) -> Tensor:
        """Each chunk of queries against the keys of its span of rows [first, stop)."""
        outputs = []
        for part, (seen, first, stop) in zip(query.chunk(len(spans), dim=1), spans, strict=True):
            key, value = (x[:, : stop - first] for x in (seen.key, seen.value))
            documents = self.documents.cached(("span", first, stop), lambda a=first, b=stop: self.documents.span(a, b))
            if window_left is None:
                outputs.append(self.kernels.global_attention(part, key, value, documents))
            else:
                outputs.append(self.kernels.local_attention(part, key, value, documents, window_left))
        return torch.cat(outputs, dim=1)

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

from functools import partial

import torch
from torch import Tensor, distributed
from torch.distributed import P2POp, ProcessGroup, batch_isend_irecv

from loopcoder_train.model.attention import AttentionKernels
from loopcoder_train.model.documents import Documents
from loopcoder_train.model.gated_attention import SharedKV


def chunks_of(rank: int, ranks: int) -> tuple[int, ...]:
    """The chunks of a row that context rank `rank` of `ranks` holds; one chunk is the row where there is one rank."""
    return (0,) if ranks == 1 else (rank, 2 * ranks - 1 - rank)


class ZigZag:
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
        """Whole rows, contiguous, on every rank from every rank's part; gradients are summed and scattered back."""
        return part if self.ranks == 1 else _GatherRows.apply(part, self, dim)

    def in_order(self, gathered: Tensor, dim: int) -> Tensor:
        """Parts by rank, stacked in front [C, ...], -> whole rows."""
        pieces = [None] * self.num_chunks
        for rank, part in enumerate(gathered):
            for chunk, piece in zip(chunks_of(rank, self.ranks), part.chunk(2, dim), strict=True):
                pieces[chunk] = piece
        return torch.cat(pieces, dim)

    def by_rank(self, whole: Tensor, dim: int) -> Tensor:
        """Whole rows -> parts by rank [C, ...], the inverse of :meth:`in_order`."""
        pieces = whole.chunk(self.num_chunks, dim)
        size = pieces[0].shape[dim]
        shape = list(whole.shape)
        shape[dim] = 2 * size
        parts = whole.new_empty((self.ranks, *shape))
        for rank, part in enumerate(parts):
            for place, chunk in enumerate(chunks_of(rank, self.ranks)):
                part.narrow(dim, place * size, size).copy_(pieces[chunk])
        return parts


class _GatherRows(torch.autograd.Function):
    """This rank's part of the rows -> whole rows: all-gather forward, reduce-scatter backward."""

    @staticmethod
    def forward(ctx, part: Tensor, zigzag: ZigZag, dim: int) -> Tensor:
        ctx.zigzag, ctx.dim = zigzag, dim
        gathered = part.new_empty((zigzag.ranks, *part.shape))
        distributed.all_gather_into_tensor(gathered, part.contiguous()[None], group=zigzag.group)
        return zigzag.in_order(gathered, dim)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        parts = ctx.zigzag.by_rank(gradient, ctx.dim)
        own = torch.empty_like(parts[0])
        distributed.reduce_scatter_tensor(own[None], parts, group=ctx.zigzag.group)
        return own, None, None


class _Prefixes(torch.autograd.Function):
    """The first `stop` rows of `whole` [B, S, ...] for every stop; their gradients meet in one buffer."""

    @staticmethod
    def forward(ctx, whole: Tensor, *stops: int) -> tuple[Tensor, ...]:
        ctx.shape = whole.shape
        return tuple(whole[:, :stop] for stop in stops)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = gradients[0].new_zeros(ctx.shape)
        for gradient in gradients:
            total[:, : gradient.shape[1]] += gradient
        return total, *(None for _ in gradients)


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

    def __init__(self, kernels: AttentionKernels, documents: Documents, window_left: int, zigzag: ZigZag):
        self.kernels, self.documents, self.window_left, self.zigzag = kernels, documents, window_left, zigzag
        self._chunks = zigzag.starts(documents.sequence_length)
        self._halos = [halo_rows(window_left, first) for first, _ in self._chunks]

    def gathered(self, own: SharedKV) -> SharedKV:
        """Whole rows of keys and values [B, S, G, D] from this rank's [B, n, G, D]."""
        together = self.zigzag.gather(torch.stack([own.key, own.value]), dim=2)
        return SharedKV(together[0], together[1])

    def with_halo(self, own: SharedKV) -> SharedKV:
        """This rank's keys and values, each chunk behind the rows of the chunk before that its window reaches."""
        if self.window_left == 0:
            return own
        chunks = [x.chunk(2, dim=1) for x in (own.key, own.value)]
        assert chunks[0][0].shape[1] >= self.window_left, "a window reaches beyond the chunk before"
        tails = [torch.stack([x[which][:, -self.window_left :] for x in chunks]) for which in (0, 1)]
        low_halo, high_halo = (
            halo[:, :, self.window_left - rows :]
            for halo, rows in zip(_Halo.apply(*tails, self.zigzag.group), self._halos, strict=True)
        )
        return SharedKV(
            *(
                torch.cat([low_halo[which], low, high_halo[which], high], dim=1)
                for which, (low, high) in enumerate(chunks)
            )
        )

    def global_attention(self, query: Tensor, shared: SharedKV) -> Tensor:
        """Every chunk against all rows up to its end: [B, n, H, D]."""
        stops = [stop for _, stop in self._chunks]
        seen = zip(_Prefixes.apply(shared.key, *stops), _Prefixes.apply(shared.value, *stops), stops, strict=True)
        outputs = [
            self.kernels.global_attention(part, key, value, self._span(0, stop))
            for part, (key, value, stop) in zip(query.chunk(len(stops), dim=1), seen, strict=True)
        ]
        return torch.cat(outputs, dim=1)

    def local_attention(self, query: Tensor, own: SharedKV) -> Tensor:
        """Every chunk against itself and its halo: [B, n, H, D]."""
        size = self._chunks[0][1] - self._chunks[0][0]
        lengths = [halo + size for halo in self._halos]
        spans = [self._span(first - halo, stop) for (first, stop), halo in zip(self._chunks, self._halos, strict=True)]
        seen = zip(own.key.split(lengths, dim=1), own.value.split(lengths, dim=1), spans, strict=True)
        outputs = [
            self.kernels.local_attention(part, key, value, documents, self.window_left)
            for part, (key, value, documents) in zip(query.chunk(len(lengths), dim=1), seen, strict=True)
        ]
        return torch.cat(outputs, dim=1)

    def _span(self, first: int, stop: int) -> Documents:
        """The documents of rows [first, stop), the same object for all layers and loops."""
        return self.documents.cached(("span", first, stop), partial(self.documents.span, first, stop))

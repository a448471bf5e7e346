"""Packed documents: which positions of a row see each other, and where each document begins.

One :class:`Documents` is made per forward pass and shared by all layers and loops, so masks are built once. Document
boundaries reach three places: attention (no key of another document), RoPE (positions restart) and the cross-loop
shift (zero at the first token of every document).

Where only the last rows of a span ask (a rank of a context-parallel group attends the keys before its own part of the
row), the number of queries is given: query i of Q stands at row S - Q + i, as in FlashAttention.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Documents:
    """Document structure of a batch of `[B, S]` rows.

    Attributes:
        ids: int64 [B, S], non-decreasing inside a row, or None when every row is one document.
        positions: int64 [B, S], position of each token inside its own document (RoPE).
        starts: bool [B, S], true at the first token of every document.
    """

    def __init__(self, batch_size: int, sequence_length: int, ids: Tensor | None, device: torch.device):
        self.batch_size, self.sequence_length, self.ids, self.device = batch_size, sequence_length, ids, device
        index = torch.arange(sequence_length, device=device).expand(batch_size, -1)
        if ids is None:
            self.positions, self.starts = index, index == 0
        else:
            self.starts = torch.cat([torch.ones_like(ids[:, :1], dtype=torch.bool), ids[:, 1:] != ids[:, :-1]], dim=1)
            self.positions = index - torch.where(self.starts, index, 0).cummax(dim=1).values
        self._cache: dict[object, object] = {}

    @classmethod
    def of(cls, input_ids: Tensor, document_ids: Tensor | None) -> "Documents":
        """Documents of `input_ids` [B, S]; `document_ids` of the same shape, or None for one document per row."""
        if document_ids is not None and document_ids.shape != input_ids.shape:
            raise ValueError(
                f"document_ids has shape {tuple(document_ids.shape)}: must equal input_ids' {tuple(input_ids.shape)}"
            )
        return cls(*input_ids.shape, document_ids, input_ids.device)

    def cached(self, key: object, make: Callable[[], T]) -> T:
        """What `make()` returned the first time it was asked for under `key`."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def span(self, first: int, stop: int) -> "Documents":
        """The documents of rows [first, stop) alone: for attention inside the span only.

        A document that `first` cuts begins there: `positions` and `starts` are those of the span.
        """
        ids = None if self.ids is None else self.ids[:, first:stop]
        return Documents(self.batch_size, stop - first, ids, self.device)

    def visible(self, window_left: int | None, num_queries: int | None = None) -> Tensor:
        """Bool [B or 1, Q, S]: may query i see key j? Causal, same document, at most `window_left` keys to the left."""
        index = torch.arange(self.sequence_length, device=self.device)
        first = self.sequence_length - (self.sequence_length if num_queries is None else num_queries)
        distance = index[first:, None] - index[None, :]
        seen = distance >= 0
        if window_left is not None:
            seen &= distance <= window_left
        seen = seen[None]
        return seen if self.ids is None else seen & (self.ids[:, first:, None] == self.ids[:, None, :])

    def additive_mask(self, window_left: int | None, dtype: torch.dtype, num_queries: int | None = None) -> Tensor:
        """`visible` as 0 / -inf, [B or 1, 1, Q, S] in `dtype`, built once per window, dtype and Q."""
        queries = self.sequence_length if num_queries is None else num_queries
        return self.cached(
            ("mask", window_left, dtype, queries),
            lambda: additive(self.visible(window_left, queries), dtype).unsqueeze(1),
        )

    def cumulative_lengths(self) -> Tensor:
        """int32 [documents + 1]: where each document begins in the flattened batch, and its end (varlen kernels)."""

        def make() -> Tensor:
            return _with_end(self.starts.flatten().nonzero().flatten(), self.batch_size * self.sequence_length)

        return self.cached("cumulative_lengths", make)

    def asked(self, num_queries: int) -> "AskedDocuments":
        """What varlen kernels need when only the last `num_queries` rows ask."""
        return self.cached(("asked", num_queries), lambda: AskedDocuments(self, num_queries))


class AskedDocuments:
    """The documents that the last `num_queries` rows of a span lie in, for varlen kernels.

    Attributes:
        query_lengths, key_lengths: int32 [documents + 1], where each document's queries and keys begin, and their end.
        kept: int64 [keys], the rows of the flattened [B * S] keys that belong to them; keys of documents that end
            before the first query are left out, because a document without queries is no case for such kernels.
    """

    def __init__(self, documents: Documents, num_queries: int):
        batch, length = documents.batch_size, documents.sequence_length
        index = torch.arange(length, device=documents.device)
        begin = torch.where(documents.starts, index, 0).cummax(dim=1).values  # [B, S], of each row's document
        first = length - num_queries
        kept = index >= begin[:, first, None]
        starts = documents.starts & kept
        key_begin = starts.flatten()[kept.flatten()].nonzero().flatten()
        query_starts = documents.starts[:, first:].clone()
        query_starts[:, 0] = True  # the document that the first query lies in may begin before it
        query_begin = query_starts.flatten().nonzero().flatten()
        self.kept = kept.flatten().nonzero().flatten()
        self.key_lengths = _with_end(key_begin, len(self.kept))
        self.query_lengths = _with_end(query_begin, batch * num_queries)


def _with_end(begin: Tensor, end: int) -> Tensor:
    return torch.cat([begin, begin.new_tensor([end])]).to(torch.int32)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible`, -inf elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))

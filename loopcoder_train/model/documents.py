"""Packed documents: which positions of a row see each other, and where each document begins.

One :class:`Documents` is made per forward pass and shared by all layers and loops, so masks are built once. Document
boundaries reach three places: attention (no key of another document), RoPE (positions restart) and the cross-loop
shift (zero at the first token of every document).

Where only the last rows of a span ask (a rank of a context-parallel group attends the keys before its own part of the
row), the number of queries is given: query i of Q stands at row S - Q + i, as in FlashAttention.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
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
        result = Documents(self.batch_size, stop - first, ids, self.device)
        starts = self.host_starts()[:, first:stop].copy()
        starts[:, 0] = True
        result.cached("host_starts", lambda: starts)  # not the row itself: its cache holds the span
        return result

    def host_starts(self) -> np.ndarray:
        """`starts` in CPU memory; spans cut their row's, so that a GPU is waited for once per forward pass."""
        return self.cached("host_starts", lambda: self.starts.cpu().numpy())

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

    Keys of documents that end before the first query are left out: a document without queries is no case for such
    kernels. What is kept is the end of every row.

    Attributes:
        query_lengths, key_lengths: int32 [documents + 1], where each document's queries and keys begin, and their end.
    """

    def __init__(self, documents: Documents, num_queries: int):
        starts, length = documents.host_starts(), documents.sequence_length
        first = length - num_queries
        self._begins = [int(np.flatnonzero(row[: first + 1])[-1]) for row in starts]  # of the first query's document
        query_starts = starts[:, first:].copy()
        query_starts[:, 0] = True  # that document may begin before its first query
        kept_starts = [row[begin:] for row, begin in zip(starts, self._begins, strict=True)]
        self.query_lengths = _lengths(query_starts.ravel(), documents.device)
        self.key_lengths = _lengths(np.concatenate(kept_starts), documents.device)

    def kept(self, rows: Tensor) -> Tensor:
        """[keys, ...] of the rows [B, S, ...] that are kept; a view where they follow each other in memory."""
        if len(self._begins) == 1:
            return rows[0, self._begins[0] :]
        if not any(self._begins):
            return rows.flatten(0, 1)
        return torch.cat([row[begin:] for row, begin in zip(rows, self._begins, strict=True)])


def _lengths(starts: np.ndarray, device: torch.device) -> Tensor:
    """int32 [documents + 1]: where `starts` (bool) is true, and the end."""
    return torch.from_numpy(np.append(np.flatnonzero(starts), len(starts)).astype(np.int32)).to(device)


def _with_end(begin: Tensor, end: int) -> Tensor:
    return torch.cat([begin, begin.new_tensor([end])]).to(torch.int32)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible`, -inf elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))

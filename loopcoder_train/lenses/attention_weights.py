"""A(r): how a query's attention is distributed over the keys of its document, as logarithms.

    loop 1, and every sequential loop    softmax(q K^T / sqrt(D)), causal
    global branch of a loop r >= 2       the same over loop 1's keys K1
    local branch                         the loop's own keys, at most `window_left` to the left and the query's own
    mixture                              g A_global + (1 - g) A_local: what really multiplies the values, position by
                                         position, if V1 and V were alike; the A(r) of the lenses

No lens ever holds a whole [H, n, n]: queries come in pieces.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from loopcoder_train.lenses.precision import wide

MIXTURE, GLOBAL, LOCAL = "", "_global", "_local"  # what a lens's name ends with
_LEAST_GATE = 1e-6  # a saturated gate is moved this far from 0 and 1, so that no logarithm is infinite


@dataclass(frozen=True, slots=True)
class Visit:
    """What attention of one layer in one loop read, for the n tokens of one document.

    `query` [n, H, D] and `key` [n, G, D] after RoPE, G divides H; in a gated loop also loop 1's `shared_key` [n, G, D]
    and the `gate` [n, H].
    """

    query: Tensor
    key: Tensor
    shared_key: Tensor | None = None
    gate: Tensor | None = None

    def tokens(self, first: int, stop: int) -> "Visit":
        """The tokens [first, stop) alone."""
        parts = (self.query, self.key, self.shared_key, self.gate)
        return Visit(*(None if part is None else part[first:stop] for part in parts))

    def log_weights(self, queries: Tensor, window_left: int) -> dict[str, Tensor]:
        """ln A of the queries at `queries` (int64 [Q], ascending): [H, Q, keys up to the last query's] by kind.

        Full attention has the one kind MIXTURE. -inf where a key is not visible.
        """
        query = self.query[queries]
        if self.shared_key is None:
            return {MIXTURE: _log_softmax(query, self.key, queries, None)}
        to_global = _log_softmax(query, self.shared_key, queries, None)
        to_local = _log_softmax(query, self.key, queries, window_left)
        gate = wide(self.gate[queries]).clamp(_LEAST_GATE, 1 - _LEAST_GATE).T[..., None]
        mixture = torch.logaddexp(gate.log() + to_global, (-gate).log1p() + to_local)
        return {MIXTURE: mixture, GLOBAL: to_global, LOCAL: to_local}


def spread_queries(num_tokens: int, most: int | None, device: torch.device) -> Tensor:
    """Positions of at most `most` queries (None: all), int64 ascending: the middles of equal parts of the document."""
    if most is None or most >= num_tokens:
        return torch.arange(num_tokens, device=device)
    return (2 * torch.arange(most, device=device) + 1) * num_tokens // (2 * most)


def _log_softmax(query: Tensor, key: Tensor, queries: Tensor, window_left: int | None) -> Tensor:
    """[H, Q, n] from `query` [Q, H, D] at the positions `queries` and the document's `key`."""
    length = int(queries[-1]) + 1
    query, key = wide(query), wide(key[:length])
    num_queries, heads, head_dim = query.shape
    groups = key.shape[1]
    grouped = query.transpose(0, 1).reshape(groups, -1, head_dim)  # [G, H / G * Q, D]: head h reads keys h // (H / G)
    scores = grouped @ key.permute(1, 2, 0) * head_dim**-0.5
    distance = queries[:, None] - torch.arange(length, device=queries.device)
    hidden = distance < 0
    if window_left is not None:
        hidden |= distance > window_left
    scores = scores.view(heads, num_queries, length).masked_fill_(hidden, float("-inf"))
    return torch.log_softmax(scores, dim=-1)

"""Token-by-token decoding (plt.md section 5): the layers are streamed once per token, whatever the number of loops.

A step feeds R rows for the SAME token through the stack as one batch: row 1 is E(t), row r is a E(t) + b s(r-1), where
s(r-1) = N(h(r-1)) of the token before. In every layer row 1's key and value are written first, then all rows attend
loop 1's cache, and rows >= 2 also their own last `window_left + 1` keys. Logits come from row R.

Matrices, and loop 1's keys and values, are read once for all rows; the number of operations does not depend on R.
docs/benchmarks/decoding.md has what that gives.

Memory of one sequence: loop 1's cache, R - 1 rings, and R - 1 vectors s. Rows of sequential loops depend on each other
within one token, so that comparison model is decoded loop by loop with R whole caches.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from loopcoder_train.config import LoopKind
from loopcoder_train.model.cross_loop import loop_input
from loopcoder_train.model.gated_attention import SharedKV, blend
from loopcoder_train.model.kv_cache import KVCache
from loopcoder_train.model.plt import PLT, Layer
from loopcoder_train.model.rope import Rope, rope_tables


class Decoder:
    """Decodes `batch_size` sequences of equal length with one model. Call :meth:`prefill` once, then :meth:`step`."""

    def __init__(self, model: PLT):
        self.model, self.config = model, model.config
        self.length = 0  # tokens consumed so far
        self._batch_size = 0
        self._caches: list[list[KVCache]] = []  # [loop][layer] of the loops that keep everything, batch B
        self._rings: list[KVCache] = []  # [layer], those of loops 2..R after each other: batch (R-1) * B
        self._states = torch.empty(0)  # s(r) of the last token for r = 1..R-1, [R-1, B, 1, d]

    @torch.no_grad()
    def prefill(self, input_ids: Tensor) -> Tensor:
        """Consume the prompt `input_ids` [B, S] (S >= 1) in R passes; returns the next token's logits [B, V]."""
        if input_ids.shape[1] < 1:
            raise ValueError("prompt length=0: must be at least 1 token")
        return self.take_over(self.model.loops(input_ids))

    @torch.no_grad()
    def take_over(self, passes: Iterable[tuple[Tensor, list[SharedKV]]]) -> Tensor:
        """Go on after a prompt from the R passes over it, as :meth:`PLT.loops` yields them.

        Args:
            passes: for every loop h(r) [B, S, d], and every layer's keys and values [B, S, G, D]. Those of loops that
                keep everything become this decoder's own.

        Returns:
            The next token's logits [B, V].
        """
        self._caches, states, tails = [], [], []
        for hidden, own in passes:
            if self._keeps_everything(len(states)):
                self._caches.append([KVCache(kv) for kv in own])
            else:
                tails.append([self._tail(kv) for kv in own])
            states.append(self.model.between_loops(hidden[:, -1:]))
        self._rings = [self._ring_of(layer_tails) for layer_tails in zip(*tails, strict=True)]
        self._states = torch.stack(states)[:-1]
        self._batch_size, self.length = hidden.shape[:2]
        return self.model.logits(hidden[:, -1:])[:, 0]

    @torch.no_grad()
    def step(self, token_ids: Tensor) -> Tensor:
        """Consume one token per sequence, `token_ids` [B]; returns the next token's logits [B, V].

        ValueError before a prompt, or for another number of sequences than the prompt had.
        """
        if not self.length or len(token_ids) != self._batch_size:
            raise ValueError(
                f"{len(token_ids)} tokens after a prompt of {self._batch_size} sequences: give one for each"
            )
        position = torch.full((1, 1), self.length, device=token_ids.device)  # the same for all sequences and rows
        rope = rope_tables(position, self.config.head_dim, self.config.rope_theta)
        embedding = self.model.model.embed_tokens(token_ids[:, None])  # [B, 1, d]
        advance = self._step_sequential if self.config.loop_kind is LoopKind.sequential else self._step_parallel
        hidden = advance(embedding, rope)
        self.length += 1
        return self.model.logits(hidden)[:, 0]

    def cache_bytes(self) -> int:
        """Bytes of the keys and values of all sequences: `batch_size` times :func:`counts.kv_cache_bytes`."""
        return sum(cache.used_bytes for cache in self._all_caches())

    def allocated_bytes(self) -> int:
        """Bytes of the memory that holds them. After a prompt the same; later there is room for tokens to come."""
        return sum(cache.allocated_bytes for cache in self._all_caches())

    def _all_caches(self) -> list[KVCache]:
        return [cache for loop in self._caches for cache in loop] + self._rings

    def _keeps_everything(self, loop_index: int) -> bool:
        return loop_index == 0 or self.config.loop_kind is LoopKind.sequential

    def _tail(self, kv: SharedKV) -> SharedKV:
        """A copy of what the window leaves: views would hold every loop's whole prompt until the last pass is done."""
        keep = slice(-self.config.window_left - 1, None)
        return SharedKV(kv.key[:, keep].clone(), kv.value[:, keep].clone())

    def _ring_of(self, tails: Iterable[SharedKV]) -> KVCache:
        """One cache for the rings of loops 2..R in one layer, which are always equally long."""
        key, value = (torch.cat(x) for x in zip(*((kv.key, kv.value) for kv in tails), strict=True))
        return KVCache(SharedKV(key, value), limit=self.config.window_left + 1)

    def _step_parallel(self, embedding: Tensor, rope: Rope) -> Tensor:
        """All loops at once: rows [R, B, 1, d]. Returns h(R) [B, 1, d]."""
        later = loop_input(embedding, self._states, self.config.embedding_scale, self.config.hidden_scale)
        rows = torch.cat([embedding[None], later])
        for layer in self.model.model.layers:
            rows = self._visit_parallel(layer, rows, rope)
        self._states = self.model.between_loops(rows[:-1])
        return rows[-1]

    def _visit_parallel(self, layer: Layer, rows: Tensor, rope: Rope) -> Tensor:
        attention, (loops, batch_size) = layer.self_attn, rows.shape[:2]
        merged = rows.flatten(0, 1)  # [R * B, 1, d]: one pass through every matrix
        query, own = attention.project(layer.input_layernorm(merged), rope)
        first = self._caches[0][layer.layer_index]
        first.append(own.key[:batch_size], own.value[:batch_size])
        output = _attend(query.unflatten(0, (loops, batch_size)), first.view()).flatten(0, 1)
        if loops > 1:
            later = slice(batch_size, None)
            ring = self._rings[layer.layer_index]
            ring.append(own.key[later], own.value[later])
            local_output = _attend(query[None, later], ring.view())[0]
            gate = attention.plt_gate(merged[later], query[later])
            output = torch.cat([output[:batch_size], blend(gate, output[later], local_output)])
        merged = merged + attention.o_proj(output.flatten(-2))
        merged = merged + layer.mlp(layer.post_attention_layernorm(merged))
        return merged.unflatten(0, (loops, batch_size))

    def _step_sequential(self, hidden: Tensor, rope: Rope) -> Tensor:
        """Loop after loop, each with its own whole cache. Returns h(R) [B, 1, d]."""
        for caches in self._caches:
            for layer in self.model.model.layers:
                query, own = layer.self_attn.project(layer.input_layernorm(hidden), rope)
                cache = caches[layer.layer_index]
                cache.append(own.key, own.value)
                output = _attend(query[None], cache.view())[0]
                hidden = hidden + layer.self_attn.o_proj(output.flatten(-2))
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden


def _attend(query: Tensor, seen: SharedKV) -> Tensor:
    """Rows of one query per sequence, [rows, B, 1, H, D], each over everything in `seen` [B, n, G, D].

    Without a mask it does not matter which queries are heads and which are positions: all rows and heads that share a
    key are handed over as positions, so that keys and values are read once and never repeated.
    """
    rows, groups = len(query), seen.key.shape[2]
    grouped = query[:, :, 0].unflatten(2, (groups, -1))  # [rows, B, G, H / G, D]
    positions = grouped.permute(1, 2, 0, 3, 4).flatten(2, 3)  # [B, G, rows * H / G, D]
    output = F.scaled_dot_product_attention(positions, seen.key.transpose(1, 2), seen.value.transpose(1, 2))
    return output.unflatten(2, (rows, -1)).permute(2, 0, 1, 3, 4).flatten(2, 3)[:, :, None]

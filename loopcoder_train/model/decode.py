"""Token-by-token decoding (plt.md section 5): the layers are streamed once per token, whatever the number of loops.

A step feeds R rows for the SAME token through the stack as one batch: row 1 is E(t), row r is a E(t) + b s(r-1), where
s(r-1) = N(h(r-1)) of the token before. In every layer row 1's key and value are written first, then all rows attend
loop 1's cache, and rows >= 2 also their own last `window_left + 1` keys. Logits come from row R.

Memory of one sequence: loop 1's cache, R - 1 rings, and R - 1 vectors s. Rows of sequential loops depend on each other
within one token, so that comparison model is decoded loop by loop with R whole caches.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from loopcoder_train.config import LoopKind
from loopcoder_train.model.cross_loop import loop_input
from loopcoder_train.model.gated_attention import SharedKV, blend
from loopcoder_train.model.plt import PLT, Layer
from loopcoder_train.model.rope import Rope, rope_tables


class Decoder:
    """Decodes `batch_size` sequences of equal length with one model. Call :meth:`prefill` once, then :meth:`step`."""

    def __init__(self, model: PLT):
        self.model, self.config = model, model.config
        self.length = 0  # tokens consumed so far
        self._caches: list[list[SharedKV]] = []  # [loop][layer], keys and values [B, positions, G, D]
        self._states: list[Tensor] = []  # s(r) of the last token for r = 1..R-1, [B, 1, d]

    @torch.no_grad()
    def prefill(self, input_ids: Tensor) -> Tensor:
        """Consume the prompt `input_ids` [B, S] (S >= 1) in R passes; returns the next token's logits [B, V]."""
        if input_ids.shape[1] < 1:
            raise ValueError("prompt length=0: must be at least 1 token")
        self._caches, self._states = [], []
        for hidden, own in self.model.loops(input_ids):
            keep = (
                slice(None) if self._keeps_everything(len(self._caches)) else slice(-self.config.window_left - 1, None)
            )
            self._caches.append([SharedKV(kv.key[:, keep], kv.value[:, keep]) for kv in own])
            self._states.append(self.model.between_loops(hidden[:, -1:]))
        self._states.pop()
        self.length = input_ids.shape[1]
        return self.model.logits(hidden[:, -1:])[:, 0]

    @torch.no_grad()
    def step(self, token_ids: Tensor) -> Tensor:
        """Consume one token per sequence, `token_ids` [B]; returns the next token's logits [B, V]."""
        positions = torch.full((len(token_ids), 1), self.length, device=token_ids.device)
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta)
        embedding = self.model.model.embed_tokens(token_ids[:, None])  # [B, 1, d]
        advance = self._step_sequential if self.config.loop_kind is LoopKind.sequential else self._step_parallel
        hidden = advance(embedding, rope)
        self.length += 1
        return self.model.logits(hidden)[:, 0]

    def _keeps_everything(self, loop_index: int) -> bool:
        return loop_index == 0 or self.config.loop_kind is LoopKind.sequential

    def _step_parallel(self, embedding: Tensor, rope: Rope) -> Tensor:
        """All loops at once: rows [R, B, 1, d]. Returns h(R) [B, 1, d]."""
        a, b = self.config.embedding_scale, self.config.hidden_scale
        rows = torch.stack([embedding] + [loop_input(embedding, state, a, b) for state in self._states])
        for layer in self.model.model.layers:
            rows = self._visit_parallel(layer, rows, rope)
        self._states = list(self.model.between_loops(rows[:-1]))
        return rows[-1]

    def _visit_parallel(self, layer: Layer, rows: Tensor, rope: Rope) -> Tensor:
        attention, loops = layer.self_attn, len(rows)
        merged = rows.flatten(0, 1)  # [R * B, 1, d]: one pass through every matrix
        tiled = Rope(rope.cos.repeat(loops, 1, 1, 1), rope.sin.repeat(loops, 1, 1, 1))
        query, own = attention.project(layer.input_layernorm(merged), tiled)
        queries, keys, values = (x.unflatten(0, (loops, -1)) for x in (query, own.key, own.value))
        for loop_index in range(loops):
            self._append(loop_index, layer.layer_index, keys[loop_index], values[loop_index])
        first = self._caches[0][layer.layer_index]
        outputs = [_attend_one(queries[0], first)]
        if loops > 1:
            gates = attention.plt_gate(merged, query).unflatten(0, (loops, -1))
            for loop_index in range(1, loops):
                global_output = _attend_one(queries[loop_index], first)
                local_output = _attend_one(queries[loop_index], self._caches[loop_index][layer.layer_index])
                outputs.append(blend(gates[loop_index], global_output, local_output))
        merged = merged + attention.o_proj(torch.cat(outputs).flatten(-2))
        merged = merged + layer.mlp(layer.post_attention_layernorm(merged))
        return merged.unflatten(0, (loops, -1))

    def _step_sequential(self, hidden: Tensor, rope: Rope) -> Tensor:
        """Loop after loop, each with its own whole cache. Returns h(R) [B, 1, d]."""
        for loop_index in range(self.config.num_loops):
            for layer in self.model.model.layers:
                query, own = layer.self_attn.project(layer.input_layernorm(hidden), rope)
                self._append(loop_index, layer.layer_index, own.key, own.value)
                output = _attend_one(query, self._caches[loop_index][layer.layer_index])
                hidden = hidden + layer.self_attn.o_proj(output.flatten(-2))
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden

    def _append(self, loop_index: int, layer_index: int, key: Tensor, value: Tensor) -> None:
        """Add one position [B, 1, G, D]; rings drop what left the window."""
        kept = self._caches[loop_index][layer_index]
        drop = 0
        if not self._keeps_everything(loop_index):
            drop = max(0, kept.key.shape[1] - self.config.window_left)
        kept.key = torch.cat([kept.key[:, drop:], key], dim=1)
        kept.value = torch.cat([kept.value[:, drop:], value], dim=1)


def _attend_one(query: Tensor, cache: SharedKV) -> Tensor:
    """One query per sequence, [B, 1, H, D], over everything in `cache` [B, n, G, D]."""
    repeats = query.shape[2] // cache.key.shape[2]
    key, value = (x.repeat_interleave(repeats, dim=2).transpose(1, 2) for x in (cache.key, cache.value))
    return F.scaled_dot_product_attention(query.transpose(1, 2), key, value).transpose(1, 2)

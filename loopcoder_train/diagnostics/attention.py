"""Where the heads look: entropy, change between loops, diversity of heads, gates; layer by layer.

The forward pass shows queries, keys and gates of every visit. Attention weights are made again from them, for some
queries of one document at a time, and thrown away; what each layer keeps for the next loop is its queries and keys.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from loopcoder_train.config import ModelConfig
from loopcoder_train.diagnostics.measurements import Key, Measurements
from loopcoder_train.diagnostics.pieces import PIECE_ELEMENTS, piece_bounds
from loopcoder_train.diagnostics.samples import Sample
from loopcoder_train.lenses.attention_entropy import attention_entropy
from loopcoder_train.lenses.attention_kl import attention_kl
from loopcoder_train.lenses.attention_weights import MIXTURE, Visit, spread_queries
from loopcoder_train.lenses.gate_mean import gate_mean
from loopcoder_train.lenses.head_diversity import head_cosine, head_rank
from loopcoder_train.lenses.shares import change_shares
from loopcoder_train.model.observer import Observer


class AttentionReader(Observer):
    """Observer of one row [1, S]; after the pass, :meth:`finish`.

    most_queries: of each document, evenly spread (None: all); gates are read at every token.
    """

    def __init__(
        self,
        config: ModelConfig,
        samples: Sequence[Sample],
        found: Measurements,
        *,
        most_queries: int | None,
        piece_elements: int = PIECE_ELEMENTS,
    ):
        self._config, self._samples, self._found = config, samples, found
        self._most_queries, self._piece_elements = most_queries, piece_elements
        self._gate: Tensor | None = None  # of the layer that is about to show its attention
        self._visits: dict[int, Visit] = {}  # each layer's in the loop before
        self._changes = {sample: [0.0] * (config.num_loops - 1) for sample in samples}

    def gate(self, loop_number: int, layer_index: int, gate: Tensor) -> None:
        """Gates [1, S, H]."""
        self._gate = gate[0]
        for sample in self._samples:
            values = gate_mean(self._gate[sample.first : sample.stop])
            self._found.add_layer(loop_number, layer_index, "gate_mean", sample, values)

    def attention(self, loop_number: int, layer_index: int, tensors: dict[str, Tensor]) -> None:
        """Queries and keys [1, S, heads, D]."""
        shared = tensors.get("shared_key")
        visit = Visit(
            tensors["query"][0],
            tensors["key"][0],
            None if shared is None else shared[0],
            None if shared is None else self._gate,
        )
        before = self._visits.get(layer_index)
        for sample in self._samples:
            self._look(loop_number, layer_index, sample, visit, before)
        self._visits[layer_index] = visit

    def finish(self) -> None:
        """Shares of the loops in the change of attention."""
        for sample, changes in self._changes.items():
            numerators, denominator = change_shares(torch.tensor(changes)[:, None])
            for loop_number, numerator in enumerate(numerators.tolist(), start=2):
                key = Key(loop_number, "attention_kl_share")
                self._found.add_ratio(key, sample, numerator, float(denominator))

    def _look(self, loop_number: int, layer: int, sample: Sample, visit: Visit, before: Visit | None) -> None:
        """All lenses on one document in one layer, piece by piece."""
        span = sample.first, sample.stop
        visit, before = visit.tokens(*span), None if before is None else before.tokens(*span)
        queries = spread_queries(len(sample), self._most_queries, visit.query.device)
        row_elements = self._config.num_attention_heads * len(sample)
        for first, stop in piece_bounds(len(queries), row_elements, self._piece_elements):
            piece = queries[first:stop]
            now = visit.log_weights(piece, self._config.window_left)
            for kind, log_weights in now.items():
                for lens, values in _shape_lenses(log_weights):
                    self._found.add_layer(loop_number, layer, lens + kind, sample, values)
            if before is not None:
                self._change(loop_number, layer, sample, now, before.log_weights(piece, self._config.window_left))

    def _change(
        self, loop_number: int, layer: int, sample: Sample, now: dict[str, Tensor], before: dict[str, Tensor]
    ) -> None:
        """KL to the loop before, each kind to its like; loop 1 has one kind only, which all of loop 2 are held to."""
        for kind, log_weights in now.items():
            values = attention_kl(log_weights, before.get(kind, before[MIXTURE]))
            self._found.add_layer(loop_number, layer, "attention_kl" + kind, sample, values)
            if kind == MIXTURE:
                self._changes[sample][loop_number - 2] += float(values.double().sum())


def _shape_lenses(log_weights: Tensor) -> list[tuple[str, Tensor]]:
    """The lenses on one loop's weights [H, Q, n]; diversity needs two heads."""
    values = [("attention_entropy", attention_entropy(log_weights))]
    if len(log_weights) > 1:
        weights = log_weights.exp()
        values += [("head_rank", head_rank(weights)), ("head_cosine", head_cosine(weights))]
    return values

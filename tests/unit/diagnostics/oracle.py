"""Every number of a diagnosis once more, in numpy and fp64, from what a forward pass showed, head by head.

States, queries, keys and gates are saved whole by :class:`Saved`; nothing of the package computes with them. The fixed
points come from naive.py, which shares no code with the model either.
"""

from collections import defaultdict

import numpy as np
import torch

from loopcoder_train.config import LoopKind
from loopcoder_train.model.observer import Observer
from tests.unit.model.naive import _rms_norm, _stack


class Saved(Observer):
    """Everything that one row showed."""

    def __init__(self):
        self.states, self.attention_of, self.gates = [], {}, {}

    def loop_input(self, loop_number, embedding, previous):
        if loop_number == 1:
            self.states.append(embedding[0].numpy())

    def attention(self, loop_number, layer_index, tensors):
        self.attention_of[loop_number, layer_index] = {name: x[0].numpy() for name, x in tensors.items()}

    def gate(self, loop_number, layer_index, gate):
        self.gates[loop_number, layer_index] = gate[0].numpy()

    def loop_output(self, loop_number, hidden):
        self.states.append(hidden[0].numpy())


def expected(model, input_ids, labels, saved, first, stop, queries=None):
    """{(loop, lens, layer or None): mean} of the document [first, stop) of a row; `queries`: those looked at."""
    config = model.config
    weights = {name: p.detach() for name, p in model.named_parameters()}
    numbers = {}
    states = [h[first:stop] for h in saved.states]
    _dynamics(numbers, config, weights, states)
    _fixed_points(numbers, config, weights, input_ids[first:stop].tolist(), states)
    _output(numbers, config, weights, states, labels[first:stop])
    _attention(numbers, config, saved, first, range(stop - first) if queries is None else queries)
    _gates(numbers, config, saved, first, stop)
    return numbers


def norm(config, weights, h):
    w = weights["model.norm.weight"].numpy()
    return h / np.sqrt((h * h).mean(-1, keepdims=True) + config.rms_norm_eps) * w


def rank(matrix):
    s = np.linalg.svd(matrix, compute_uv=False)
    s = s[s > 0] / s.sum()
    return float(np.exp(-(s * np.log(s)).sum()))


def length(x):
    return np.sqrt((x * x).sum(-1))


def _cosine(u, v, scale):
    """0 where an update is rounding: with a = 1 the first token of a document reads E in every loop."""
    return u @ v / length(u) / length(v) if min(length(u), length(v)) > 1e-4 * scale else 0.0


def _dynamics(numbers, config, weights, states):
    for r in range(1, len(states)):
        h, before = states[r], states[r - 1]
        normed, normed_before = norm(config, weights, h), norm(config, weights, before)
        numbers[r, "step_size", None] = length(h - before).mean()
        numbers[r, "step_size_normed", None] = length(normed - normed_before).mean()
        numbers[r, "effective_rank", None] = rank(normed)
        numbers[r, "effective_rank_raw", None] = rank(h)
        if r == 1:
            continue
        updates = zip(h - before, before - states[r - 2], length(before), strict=True)
        cosines = [_cosine(u, v, scale) for u, v, scale in updates]
        numbers[r, "angular_change", None] = np.mean(cosines)
        if config.loop_kind is LoopKind.parallel:
            jumps = [length(before[i] - before[i - 1]) for i in range(1, len(before))]
            numbers[r, "offset_cost", None] = np.mean(jumps)
            numbers[r, "offset_cost_relative", None] = np.sum(jumps) / length(before[1:]).sum()
            jumps = [length(normed_before[i] - normed_before[i - 1]) for i in range(1, len(before))]
            numbers[r, "offset_cost_normed", None] = np.mean(jumps)


def _fixed_points(numbers, config, weights, tokens, states):
    embeddings = [weights["model.embed_tokens.weight"][t] for t in tokens]
    _, stored = _stack(weights, config, embeddings, None)
    if not config.has_gates:
        stored = None
    loops = len(states) - 1
    for r in range(1, loops + 1):
        h = [torch.from_numpy(row) for row in states[r]]
        visited = torch.stack(_stack(weights, config, h, stored)[0]).numpy()
        gaps = length(visited - states[r])
        numbers[r, "fixed_point_gap", None] = gaps.mean()
        numbers[r, "fixed_point_gap_relative", None] = gaps.sum() / length(states[r]).sum()
        if config.loop_kind is LoopKind.sequential:
            numbers[r, "fixed_point_gap_loop", None] = gaps.mean()
        elif config.has_gates:
            read = [torch.zeros_like(h[0]), *h[:-1]]
            if config.normalize_between_loops:
                read = [read[0], *(_rms_norm(x, weights["model.norm.weight"], config) for x in read[1:])]
            inputs = [
                config.embedding_scale * e + config.hidden_scale * x for e, x in zip(embeddings, read, strict=True)
            ]
            visited = torch.stack(_stack(weights, config, inputs, stored)[0]).numpy()
            numbers[r, "fixed_point_gap_loop", None] = length(visited - states[r]).mean()


def _output(numbers, config, weights, states, labels):
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).numpy()
    p = []
    for h in states[1:]:
        logits = norm(config, weights, h) @ head.T
        exp = np.exp(logits - logits.max(-1, keepdims=True))
        p.append(exp / exp.sum(-1, keepdims=True))
    true = [(i, int(y)) for i, y in enumerate(labels)]
    shifts = []
    for r, now in enumerate(p, start=1):
        numbers[r, "loss", None] = np.mean([-np.log(now[at]) for at in true])
        numbers[r, "output_entropy", None] = -(now * np.log(now)).sum(-1).mean()
        numbers[r, "true_token_rank", None] = np.mean([1 + (now[i] > now[i, y]).sum() for i, y in true])
        if r > 1:
            shifts.append((now * np.log(now / p[r - 2])).sum(-1))
            numbers[r, "output_kl", None] = shifts[-1].mean()
    for r, shift in enumerate(shifts, start=2):
        numbers[r, "output_kl_share", None] = shift.sum() / np.sum(shifts)
        numbers[r, "peak_loop_share", None] = np.mean(
            [np.argmax([s[i] for s in shifts]) == r - 2 for i in range(len(true))]
        )


def _softmax(scores):
    exp = np.exp(scores - scores.max())
    return exp / exp.sum()


def _weights(config, seen, gates, first, i, head):
    """Mixture and branches [i + 1] of one query and head."""
    group = head // (config.num_attention_heads // config.num_key_value_heads)
    query = seen["query"][first + i, head] / np.sqrt(config.head_dim)
    if "shared_key" not in seen:
        return {"": _softmax(seen["key"][first : first + i + 1, group] @ query)}
    to_global = _softmax(seen["shared_key"][first : first + i + 1, group] @ query)
    begin = max(0, i - config.window_left)
    to_local = np.zeros(i + 1)
    to_local[begin:] = _softmax(seen["key"][first + begin : first + i + 1, group] @ query)
    gate = gates[first + i, head]
    return {"": gate * to_global + (1 - gate) * to_local, "_global": to_global, "_local": to_local}


def _kl(p, q):
    used = p > 0
    return (p[used] * np.log(p[used] / q[used])).sum()


def _attention(numbers, config, saved, first, queries):
    per_query = defaultdict(list)
    heads = range(config.num_attention_heads)
    for (loop, layer), seen in saved.attention_of.items():
        for i in queries:
            now = [_weights(config, seen, saved.gates.get((loop, layer)), first, i, h) for h in heads]
            for kind in now[0]:
                matrix = np.stack([of_head[kind] for of_head in now])
                used = np.where(matrix > 0, matrix, 1.0)
                per_query[loop, "attention_entropy" + kind, layer].append(-(used * np.log(used)).sum(-1).mean())
                per_query[loop, "head_rank" + kind, layer].append(rank(matrix))
                cosines = [m @ n / length(m) / length(n) for a, m in enumerate(matrix) for n in matrix[:a]]
                per_query[loop, "head_cosine" + kind, layer].append(np.mean(cosines))
            if loop > 1:
                seen_before, gates = saved.attention_of[loop - 1, layer], saved.gates.get((loop - 1, layer))
                before = [_weights(config, seen_before, gates, first, i, h) for h in heads]
                for kind in now[0]:
                    kl = np.mean([_kl(now[h][kind], before[h].get(kind, before[h][""])) for h in heads])
                    per_query[loop, "attention_kl" + kind, layer].append(kl)
    numbers.update({key: np.mean(values) for key, values in per_query.items()})
    _over_layers(numbers, config)
    changes = {loop: numbers[loop, "attention_kl", None] for loop in range(2, config.num_loops + 1)}
    for loop, change in changes.items():
        numbers[loop, "attention_kl_share", None] = change / sum(changes.values())


def _gates(numbers, config, saved, first, stop):
    """Mean gates of every token of the document; layer by layer and over layers."""
    for (loop, layer), gates in saved.gates.items():
        numbers[loop, "gate_mean", layer] = gates[first:stop].mean()
    for loop in {loop for loop, _ in saved.gates}:
        numbers[loop, "gate_mean", None] = np.mean(
            [numbers[loop, "gate_mean", layer] for layer in range(config.num_layers)]
        )


def _over_layers(numbers, config):
    lenses = {(loop, lens) for loop, lens, layer in numbers if layer is not None}
    for loop, lens in lenses:
        numbers[loop, lens, None] = np.mean([numbers[loop, lens, layer] for layer in range(config.num_layers)])

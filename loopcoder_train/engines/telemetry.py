"""Cheap loop telemetry while training, computed by every engine from the same gathered tensors.

An engine runs one no-gradient forward pass with a :class:`LoopRecorder` (or fills one from its own parallel pieces) and
hands it to :func:`telemetry_values`. Keys and meanings are plt.md section 4's; h(0) is the embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from loopcoder_train.config import ModelConfig
from loopcoder_train.model.observer import Observer

_PIECE = 512  # tokens per row whose logits are held at a time


@dataclass(slots=True)
class LoopRecorder(Observer):
    """Keeps what telemetry reads: `embedding` E, `previous[r]` = shift(N(h(r-1))), `states[r-1]` = h(r), all
    [B, S, d], and `gates[r, layer]` [B, S, H]."""

    embedding: Tensor | None = None
    previous: dict[int, Tensor] = field(default_factory=dict)
    states: list[Tensor] = field(default_factory=list)
    gates: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def loop_input(self, loop_number: int, embedding: Tensor | None, previous: Tensor | None) -> None:
        """Keep E once and each loop's hidden term."""
        if loop_number == 1:
            self.embedding = embedding
        else:
            self.previous[loop_number] = previous

    def gate(self, loop_number: int, layer_index: int, gate: Tensor) -> None:
        """Keep the gates of one layer."""
        self.gates[loop_number, layer_index] = gate

    def loop_output(self, loop_number: int, hidden: Tensor) -> None:
        """Keep h(r)."""
        self.states.append(hidden)


def telemetry_values(
    config: ModelConfig, record: LoopRecorder, supervised: Tensor, logits_of: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Means over the tokens where `supervised` (bool [B, S]) is true.

    Args:
        logits_of: h(r) [B, S, d] -> logits [B, S, V] (final norm and head).

    Returns:
        For every loop r: `loop{r}/step_size` = ||h(r) - h(r-1)||, `loop{r}/hidden_rms`; for r >= 2 also
        `loop{r}/gate_mean` (1 = global branch), `loop{r}/layer{i}/gate_mean`, `loop{r}/input_rms_embedding` =
        rms(a E), `loop{r}/input_rms_hidden` = rms(b shift(N(h(r-1)))) and `loop{r}/output_kl` =
        KL(p(r) || p(r-1)) in nats.
    """
    values: dict[str, float] = {}
    before = record.embedding
    for loop_number, state in enumerate(record.states, start=1):
        key = f"loop{loop_number}"
        values[f"{key}/step_size"] = _mean((state.float() - before.float()).norm(dim=-1), supervised)
        values[f"{key}/hidden_rms"] = _rms(state, supervised)
        if loop_number > 1:
            values |= _input_values(key, config, record, loop_number, supervised)
            values[f"{key}/output_kl"] = _mean(_divergence(state, before, logits_of), supervised)
        before = state
    return values | _gate_values(record, supervised)


def _divergence(now: Tensor, before: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
    """KL(p(now) || p(before)) in nats, [B, S], in pieces: whole logits would outweigh the model."""
    pieces = []
    for now_piece, before_piece in zip(now.split(_PIECE, dim=1), before.split(_PIECE, dim=1), strict=True):
        log_now, log_before = (F.log_softmax(logits_of(x).float(), dim=-1) for x in (now_piece, before_piece))
        pieces.append((log_now.exp() * (log_now - log_before)).sum(dim=-1))
    return torch.cat(pieces, dim=1)


def _input_values(
    key: str, config: ModelConfig, record: LoopRecorder, loop_number: int, supervised: Tensor
) -> dict[str, float]:
    """RMS of the two terms that a later loop adds."""
    return {
        f"{key}/input_rms_embedding": config.embedding_scale * _rms(record.embedding, supervised),
        f"{key}/input_rms_hidden": config.hidden_scale * _rms(record.previous[loop_number], supervised),
    }


def _gate_values(record: LoopRecorder, supervised: Tensor) -> dict[str, float]:
    """Mean gate per layer, and per loop over its layers."""
    by_loop: dict[int, list[float]] = {}
    values = {}
    for (loop_number, layer_index), gate in record.gates.items():
        mean = _mean(gate.float().mean(dim=-1), supervised)
        values[f"loop{loop_number}/layer{layer_index}/gate_mean"] = mean
        by_loop.setdefault(loop_number, []).append(mean)
    return values | {f"loop{r}/gate_mean": sum(means) / len(means) for r, means in by_loop.items()}


def _mean(per_token: Tensor, supervised: Tensor) -> float:
    return float(per_token[supervised].double().mean())


def _rms(states: Tensor, supervised: Tensor) -> float:
    return float(torch.sqrt(states[supervised].double().square().mean()))

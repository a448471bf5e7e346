"""Cheap loop telemetry while training, computed by every engine from the same gathered tensors.

An engine runs one no-gradient forward pass with a :class:`LoopRecorder` (or fills one from its own parallel pieces) and
hands it to :func:`telemetry_values`. The lenses are those of `loopcoder diagnose`; h(0) is the embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from loopcoder_train.config import LoopKind, ModelConfig
from loopcoder_train.lenses.angular_change import angular_change
from loopcoder_train.lenses.gate_mean import gate_mean
from loopcoder_train.lenses.output_kl import output_kl
from loopcoder_train.lenses.step_size import step_size
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
        `loop{r}/angular_change` = cos(h(r) - h(r-1), h(r-1) - h(r-2)), `loop{r}/gate_mean` (1 = global branch),
        `loop{r}/layer{i}/gate_mean`, `loop{r}/input_rms_embedding` = rms(a E), `loop{r}/input_rms_hidden` =
        rms(b shift(N(h(r-1)))) and `loop{r}/output_kl` = KL(p(r) || p(r-1)) in nats. Sequential loops have no gates and
        read h(r-1) alone: neither those nor the two `input_rms` are there.
    """
    values: dict[str, float] = {}
    states = [record.embedding, *record.states]
    for loop_number, (before, state) in enumerate(pairwise(states), start=1):
        key = f"loop{loop_number}"
        values[f"{key}/step_size"] = _mean(step_size(state, before), supervised)
        values[f"{key}/hidden_rms"] = _rms(state, supervised)
        if loop_number > 1:
            two_before = states[loop_number - 2]
            values[f"{key}/angular_change"] = _mean(angular_change(state, before, two_before), supervised)
            if config.loop_kind is LoopKind.parallel:
                values |= _input_values(key, config, record, loop_number, supervised)
            values[f"{key}/output_kl"] = _mean(_output_kl(state, before, logits_of), supervised)
    return values | _gate_values(record, supervised)


def _output_kl(now: Tensor, before: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, S], in pieces: whole logits would outweigh the model."""
    pieces = []
    for now_piece, before_piece in zip(now.split(_PIECE, dim=1), before.split(_PIECE, dim=1), strict=True):
        log_now, log_before = (F.log_softmax(logits_of(x).float(), dim=-1) for x in (now_piece, before_piece))
        pieces.append(output_kl(log_now, log_before))
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
        mean = _mean(gate_mean(gate), supervised)
        values[f"loop{loop_number}/layer{layer_index}/gate_mean"] = mean
        by_loop.setdefault(loop_number, []).append(mean)
    return values | {f"loop{r}/gate_mean": sum(means) / len(means) for r, means in by_loop.items()}


def _mean(per_token: Tensor, supervised: Tensor) -> float:
    return float(per_token[supervised].double().mean())


def _rms(states: Tensor, supervised: Tensor) -> float:
    return float(torch.sqrt(states[supervised].double().square().mean()))

"""Gathers what telemetry reads, so that every engine's numbers come from the same function on whole tensors."""

from collections.abc import Sequence

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, gather_from_tensor_model_parallel_region
from torch import Tensor, distributed

from loopcoder_train.config import LoopKind
from loopcoder_train.engines.megatron.stage import Stage
from loopcoder_train.engines.telemetry import LoopRecorder


class GatheringRecorder(LoopRecorder):
    """A LoopRecorder fed with one rank's pieces: states [S_local, B, d] become [B, S, d], gates [B, S, H].

    It sees what its stage does: E and the loops' inputs on the first, gates of the stage's layers, h(r) on the last.
    """

    def __init__(self, stage: Stage):
        super().__init__()
        self._stage = stage

    def loop_input(self, loop_number: int, embedding: Tensor | None, previous: Tensor | None) -> None:
        """Keep the whole E once and each loop's whole hidden term."""
        super().loop_input(loop_number, self._rows(embedding), self._rows(previous))

    def gate(self, loop_number: int, layer_index: int, gate: Tensor) -> None:
        """Keep the gates of all heads and rows."""
        gate = gather_from_tensor_model_parallel_region(gate, group=self._stage.mesh.tensor)
        super().gate(loop_number, layer_index, self._stage.zigzag.gather(gate))

    def loop_output(self, loop_number: int, hidden: Tensor) -> None:
        """Keep the whole h(r)."""
        super().loop_output(loop_number, self._rows(hidden))

    def _rows(self, states: Tensor | None) -> Tensor | None:
        if states is None:
            return None
        mesh = self._stage.mesh
        if mesh.sequence_parallel:
            states = gather_from_sequence_parallel_region(states, group=mesh.tensor)
        return self._stage.zigzag.gather(states, dim=0).transpose(0, 1)


def recorded(records: Sequence[LoopRecorder], stage: Stage, shape: tuple[int, int]) -> LoopRecorder | None:
    """The records of all microbatches and stages as one, over rows of `shape` (B, S); None but on the last stage."""
    model, (rows, length) = stage.model, shape

    def whole(parts: list[Tensor | None]) -> Tensor | None:
        return None if parts[0] is None else torch.cat(parts)[:rows, :length]

    def told(parts: list[Tensor | None], width: int, source: int) -> Tensor:
        return from_stage(whole(parts), (rows, length, width), source, stage, stage.config.params_dtype)

    result = LoopRecorder()
    result.embedding = told([record.embedding for record in records], model.hidden_size, 0)
    for number in range(2, model.num_loops + 1):
        result.previous[number] = told([record.previous.get(number) for record in records], model.hidden_size, 0)
        for layer, source in enumerate(stage.stage_of_layer if model.loop_kind is LoopKind.parallel else ()):
            gates = [record.gates.get((number, layer)) for record in records]
            result.gates[number, layer] = told(gates, model.num_attention_heads, source)
    if not stage.mesh.is_last_stage:
        return None
    states = zip(*(record.states for record in records), strict=True)
    result.states = [whole(list(parts)) for parts in states]
    return result


def from_stage(tensor: Tensor | None, shape: tuple[int, ...], source: int, stage: Stage, dtype: torch.dtype) -> Tensor:
    """What pipeline stage `source` has, of a known shape and dtype, on every stage."""
    mesh = stage.mesh
    if mesh.num_stages == 1:
        return tensor
    if mesh.stage_index == source:
        result = tensor.to(dtype).contiguous()
    else:
        result = torch.empty(shape, dtype=dtype, device=stage.device)
    distributed.broadcast(result, src=distributed.get_global_rank(mesh.pipeline, source), group=mesh.pipeline)
    return result

"""Gathers what telemetry reads, so that every engine's numbers come from the same function on whole tensors."""

from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, gather_from_tensor_model_parallel_region
from torch import Tensor

from loopcoder_train.engines.megatron.stage import Stage
from loopcoder_train.engines.telemetry import LoopRecorder


class GatheringRecorder(LoopRecorder):
    """A LoopRecorder fed with one rank's pieces: states [S_local, B, d] become [B, S, d], gates [B, S, H]."""

    def __init__(self, stage: Stage):
        super().__init__()
        self._stage = stage

    def loop_input(self, loop_number: int, embedding: Tensor | None, previous: Tensor | None) -> None:
        """Keep the whole E once and each loop's whole hidden term."""
        super().loop_input(loop_number, self._rows(embedding), self._rows(previous))

    def gate(self, loop_number: int, layer_index: int, gate: Tensor) -> None:
        """Keep the gates of all heads."""
        super().gate(loop_number, layer_index, gather_from_tensor_model_parallel_region(gate, group=self._stage.group))

    def loop_output(self, loop_number: int, hidden: Tensor) -> None:
        """Keep the whole h(r)."""
        super().loop_output(loop_number, self._rows(hidden))

    def _rows(self, states: Tensor | None) -> Tensor | None:
        if states is None:
            return None
        group = self._stage.sequence_group
        if group is not None:
            states = gather_from_sequence_parallel_region(states, group=group)
        return states.transpose(0, 1)

"""How the states move from loop to loop: step size, angular change, effective rank, offset cost.

Reads E and h(1) .. h(R) as they come and keeps the last three.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from loopcoder_train.config import LoopKind, ModelConfig
from loopcoder_train.diagnostics.measurements import Key, Measurements
from loopcoder_train.diagnostics.samples import Sample
from loopcoder_train.lenses.angular_change import angular_change
from loopcoder_train.lenses.effective_rank import effective_rank
from loopcoder_train.lenses.offset_cost import offset_cost
from loopcoder_train.lenses.precision import wide
from loopcoder_train.lenses.step_size import step_size
from loopcoder_train.model.observer import Observer


class DynamicsReader(Observer):
    """Observer of one row [1, S]. `norm`: the model's final RMSNorm, for the lenses that read normed states."""

    def __init__(
        self, config: ModelConfig, samples: Sequence[Sample], norm: Callable[[Tensor], Tensor], found: Measurements
    ):
        self._has_offset = config.loop_kind is LoopKind.parallel
        self._samples, self._norm, self._found = samples, norm, found
        self._states: list[Tensor] = []  # h(r-2), h(r-1), as far as they exist

    def loop_input(self, loop_number: int, embedding: Tensor | None, previous: Tensor | None) -> None:
        """h(0) = E; and before a loop that reads neighbours, what they differ by."""
        if loop_number == 1:
            self._states = [embedding]
        elif self._has_offset:
            for sample in self._samples:
                self._offset(loop_number, sample)

    def loop_output(self, loop_number: int, hidden: Tensor) -> None:
        """h(r) against the states before."""
        self._states = [*self._states[-2:], hidden]
        for sample in self._samples:
            self._moves(loop_number, sample)
            self._ranks(loop_number, sample)

    def _moves(self, loop_number: int, sample: Sample) -> None:
        *older, before, state = self._of(sample)
        self._found.add(Key(loop_number, "step_size"), sample, step_size(state, before))
        normed = step_size(self._norm(state), self._norm(before))
        self._found.add(Key(loop_number, "step_size_normed"), sample, normed)
        if older:
            self._found.add(Key(loop_number, "angular_change"), sample, angular_change(state, before, older[0]))

    def _ranks(self, loop_number: int, sample: Sample) -> None:
        state = self._of(sample)[-1]
        self._found.add(Key(loop_number, "effective_rank"), sample, effective_rank(self._norm(state)))
        self._found.add(Key(loop_number, "effective_rank_raw"), sample, effective_rank(state))

    def _offset(self, loop_number: int, sample: Sample) -> None:
        """Omega of the loop that is about to read h(r-1)."""
        previous = self._of(sample)[-1]
        distances = offset_cost(previous)
        self._found.add(Key(loop_number, "offset_cost"), sample, distances)
        self._found.add(Key(loop_number, "offset_cost_normed"), sample, offset_cost(self._norm(previous)))
        length = float(wide(previous)[1:].norm(dim=-1).double().sum())
        self._found.add_ratio(Key(loop_number, "offset_cost_relative"), sample, float(distances.double().sum()), length)

    def _of(self, sample: Sample) -> list[Tensor]:
        return [state[0, sample.first : sample.stop] for state in self._states]

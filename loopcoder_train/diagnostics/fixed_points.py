"""How near the states are to a fixed point: one more visit of the stack after every loop.

fixed_point_gap        || h(r) - f(h(r)) ||: the stack reads h(r) itself, as a later loop would attend (K1, V1)
fixed_point_gap_loop   || h(r) - F(h(r)) ||, F = the whole loop map, f(a E + b shift(N(.))): for r < R the step size
                       of loop r+1. A model of one loop has no such map.
"""

from collections.abc import Sequence

from torch import Tensor

from loopcoder_train.config import LoopKind
from loopcoder_train.diagnostics.measurements import Key, Measurements
from loopcoder_train.diagnostics.samples import Sample, SampledRow
from loopcoder_train.lenses.fixed_point_gap import fixed_point_gap
from loopcoder_train.lenses.precision import wide
from loopcoder_train.model import PLT
from loopcoder_train.model.gated_attention import SharedKV
from loopcoder_train.model.observer import Observer


class FixedPointReader:
    """Told h(r) of one row [1, S] and the loop's own keys and values, for r = 1..R; then :meth:`finish`."""

    def __init__(self, model: PLT, row: SampledRow, found: Measurements):
        self._model, self._samples, self._found = model, row.samples, found
        self._rows = model.rows(row.batch.input_ids, row.batch.document_ids)
        self._shared: Sequence[SharedKV | None] = [None] * model.config.num_layers
        self._loops = model.config.has_gates or model.config.loop_kind is LoopKind.sequential
        self._state: Tensor | None = None
        self._loop_number = 0

    def loop_output(self, hidden: Tensor, own: list[SharedKV]) -> None:
        """One loop is done."""
        if self._state is not None:
            self._add("fixed_point_gap_loop", hidden)
        elif self._model.config.has_gates:
            self._shared = own
        self._state, self._loop_number = hidden, self._loop_number + 1
        visited = self._visit(hidden)
        self._add("fixed_point_gap", visited)
        for sample in self._samples:
            gap, length = self._gap(visited, sample), wide(hidden[0, sample.first : sample.stop]).norm(dim=-1)
            key = Key(self._loop_number, "fixed_point_gap_relative")
            self._found.add_ratio(key, sample, float(gap.double().sum()), float(length.double().sum()))

    def finish(self) -> None:
        """One loop more than the model has, for the last loop's gap."""
        if self._loops:
            step = self._rows.step(self._loop_number + 1, Observer())
            self._add("fixed_point_gap_loop", self._visit(self._model.loop_input(self._rows, self._state, step)))

    def _visit(self, x: Tensor) -> Tensor:
        step = self._rows.step(self._loop_number + 1, Observer())
        return self._model.visit_layers(x, self._shared, step)[0]

    def _add(self, lens: str, visited: Tensor) -> None:
        for sample in self._samples:
            self._found.add(Key(self._loop_number, lens), sample, self._gap(visited, sample))

    def _gap(self, visited: Tensor, sample: Sample) -> Tensor:
        tokens = slice(sample.first, sample.stop)
        return fixed_point_gap(self._state[0, tokens], visited[0, tokens])

"""What a forward pass shows to whoever measures it (telemetry, diagnostics). Every method is optional to override."""

from torch import Tensor


class Observer:
    """Called during a forward pass with live tensors; loops are numbered from 1, layers from 0."""

    def loop_input(self, loop_number: int, embedding: Tensor | None, previous: Tensor | None) -> None:
        """What the loop reads, before the scales: E and shift(N(h(r-1))), each [B, S, d].

        `previous` is None in loop 1; `embedding` is None in later loops of the sequential comparison.
        """

    def attention(self, loop_number: int, layer_index: int, tensors: dict[str, Tensor]) -> None:
        """`query` [B, S, H, D], `key`, `value` [B, S, G, D]; in loops >= 2 also `shared_key`, `shared_value`,
        `global_output`, `local_output` [B, S, H, D]."""

    def gate(self, loop_number: int, layer_index: int, gate: Tensor) -> None:
        """The global gate [B, S, H] of a loop >= 2."""

    def loop_output(self, loop_number: int, hidden: Tensor) -> None:
        """h(r), [B, S, d], before the final norm."""

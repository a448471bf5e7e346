"""What a forward pass shows to whoever measures it (telemetry, diagnostics). Every method is optional to override."""

from collections.abc import Sequence

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


class Observers(Observer):
    """Several observers of one forward pass, called in order."""

    def __init__(self, observers: Sequence[Observer]):
        self._observers = tuple(observers)

    def loop_input(self, loop_number: int, embedding: Tensor | None, previous: Tensor | None) -> None:
        """Show it to everyone."""
        for observer in self._observers:
            observer.loop_input(loop_number, embedding, previous)

    def attention(self, loop_number: int, layer_index: int, tensors: dict[str, Tensor]) -> None:
        """Show it to everyone."""
        for observer in self._observers:
            observer.attention(loop_number, layer_index, tensors)

    def gate(self, loop_number: int, layer_index: int, gate: Tensor) -> None:
        """Show it to everyone."""
        for observer in self._observers:
            observer.gate(loop_number, layer_index, gate)

    def loop_output(self, loop_number: int, hidden: Tensor) -> None:
        """Show it to everyone."""
        for observer in self._observers:
            observer.loop_output(loop_number, hidden)

"""What a stretch of the model holds in memory while it runs forward and backward, operation by operation.

An :class:`Op` says which tensors it reads and makes, which of them its backward pass needs, and what it needs only
while it runs. Playing a list of them forward and backward, and dropping every tensor when nothing needs it any more,
gives what autograd would hold: what is kept for the backward pass, and the peaks on the way. Nothing is allocated.

All sizes are bytes. Tensors that are views name the tensor whose storage they share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation: `inputs` -> `outputs`.

    Attributes:
        saves: inputs, outputs or `makes` that the backward pass needs.
        makes: further tensors that are made and, unless saved, dropped at once.
        forward_work, backward_work: bytes that exist only while it runs, beside inputs, outputs and gradients.
        weight_gradient: bytes of the weight gradients that its backward pass makes.
        passes_gradient: backward hands the output's gradient on as it is (a sum, a view of the same shape).
        without_gradient: inputs that get none.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    saves: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    forward_work: int = 0
    backward_work: int = 0
    weight_gradient: int = 0
    passes_gradient: bool = False
    without_gradient: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """Operations of which only the inputs are kept; the backward pass runs them forward again first."""

    ops: tuple["Op | Recomputed", ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    makes: ClassVar[tuple[str, ...]] = ()

    @property
    def saves(self) -> tuple[str, ...]:
        """Its inputs."""
        return self.inputs


Step = Op | Recomputed


class Tensors:
    """Sizes of tensors by name; some are views of another's storage."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self._views: dict[str, str] = {}

    def add(self, name: str, size: int, view_of: str | None = None) -> str:
        """Declare a tensor of `size` bytes; returns its name."""
        self.sizes[name] = size
        if view_of is not None:
            self._views[name] = self.storage(view_of)
        return name

    def storage(self, name: str) -> str:
        """The tensor whose storage `name` uses."""
        return self._views.get(name, name)


@dataclass(frozen=True, slots=True)
class Played:
    """What playing a tape showed.

    Attributes:
        kept: held between forward and backward.
        forward_peak: most at one time while running forward, inputs included.
        backward_extra: most at one time while running backward, beyond `kept`; the output's gradient included.
    """

    kept: int
    forward_peak: int
    backward_extra: int


class _Memory:
    """Storages with counted references, and the most bytes at one time."""

    def __init__(self, sizes: dict[str, int]):
        self.sizes, self.bytes, self.peak = sizes, 0, 0
        self._references: dict[str, int] = {}

    def hold(self, name: str) -> None:
        """One more reference; the first brings the storage in."""
        if name not in self._references:
            self._references[name] = 0
            self.bytes += self.sizes[name]
            self.peak = max(self.peak, self.bytes)
        self._references[name] += 1

    def release(self, name: str) -> None:
        """One reference less; the last takes it out."""
        self._references[name] -= 1
        if self._references[name] == 0:
            del self._references[name]
            self.bytes -= self.sizes[name]

    def work(self, size: int) -> None:
        """`size` bytes more for a moment."""
        self.peak = max(self.peak, self.bytes + size)


def play(
    ops: Sequence[Step],
    tensors: Tensors,
    inputs: tuple[str, ...],
    output: str,
    *,
    until_end: tuple[str, ...] = (),
    gradients_wait: bool = False,
) -> Played:
    """Run `ops` forward and backward.

    Args:
        inputs: tensors that are there before and stay until the forward pass is over; what the backward pass needs of
            them counts as kept here.
        output: the last tensor; it belongs to whoever reads it next and is not kept here.
        until_end: tensors that the code around holds until the forward pass is over.
        gradients_wait: weight gradients stay until the whole tape has been played back.
    """
    memory = _Memory(dict(tensors.sizes))
    player = _Player(tensors, memory)
    for name in inputs:
        memory.hold(tensors.storage(name))
    kept = player.forward(ops, keep=True, leave=(output, *until_end))
    forward_peak = memory.peak
    for name in (*inputs, output, *until_end):
        memory.release(tensors.storage(name))
    kept_bytes = memory.peak = memory.bytes
    player.begin_gradient(output)
    player.backward(ops, kept, gradients_wait=gradients_wait)
    return Played(kept_bytes, forward_peak, memory.peak - kept_bytes)


def _until_last_saved(ops: Sequence[Step]) -> list[Step]:
    """What torch's checkpoint runs again: it stops when the last tensor to be saved has been made."""
    last = max(index for index, op in enumerate(ops) if op.saves)
    made = {*ops[last].outputs, *ops[last].makes}
    if isinstance(ops[last], Op) and not made.intersection(ops[last].saves):
        return [*ops[:last], replace(ops[last], outputs=(), makes=(), forward_work=0)]
    return [*ops[: last + 1]]


class _Player:
    """Plays operations on a :class:`_Memory`. A gradient that two tensors share is one buffer, held twice."""

    def __init__(self, tensors: Tensors, memory: _Memory):
        self._tensors, self._memory = tensors, memory
        self._gradients: dict[str, str] = {}  # tensor -> the buffer its gradient is in

    def forward(self, ops: Sequence[Step], *, keep: bool, leave: tuple[str, ...]) -> list[list[str]]:
        """Play forward; returns the storages that each operation keeps. Tensors in `leave` stay held."""
        storage, memory = self._tensors.storage, self._memory
        last_use = {name: index for index, op in enumerate(ops) for name in op.inputs}
        live: list[str] = []
        kept = []
        for index, op in enumerate(ops):
            if isinstance(op, Recomputed):
                self.forward(op.ops, keep=False, leave=op.outputs)
            else:
                for name in (*op.outputs, *op.makes):
                    memory.hold(storage(name))
                memory.work(op.forward_work)
            kept.append([storage(name) for name in op.saves] if keep else [])
            for name in kept[-1]:
                memory.hold(name)
            for name in op.makes:
                memory.release(storage(name))
            live += op.outputs
            for name in [name for name in live if last_use.get(name, -1) <= index and name not in leave]:
                live.remove(name)
                memory.release(storage(name))
        return kept

    def backward(self, ops: Sequence[Step], kept: list[list[str]], *, gradients_wait: bool) -> None:
        """Play backward what :meth:`forward` kept."""
        for op, own in zip(reversed(ops), reversed(kept), strict=True):
            if isinstance(op, Recomputed):
                again = _until_last_saved(op.ops)
                inner = self.forward(again, keep=True, leave=())
                self.backward(op.ops, inner + [[]] * (len(op.ops) - len(again)), gradients_wait=gradients_wait)
            else:
                self._flow(op)
                if gradients_wait and op.weight_gradient:
                    self._memory.sizes[f"weight of {op.name}"] = op.weight_gradient
                    self._memory.hold(f"weight of {op.name}")
            for name in own:
                self._memory.release(name)

    def begin_gradient(self, name: str) -> None:
        """Make a buffer for the gradient of `name`."""
        self._gradients[name] = f"gradient of {name}"
        self._memory.sizes[self._gradients[name]] = self._tensors.sizes[name]
        self._memory.hold(self._gradients[name])

    def _flow(self, op: Op) -> None:
        """Make the gradients of `op`'s inputs, then drop those of its outputs."""
        work = op.backward_work + op.weight_gradient
        for name in dict.fromkeys(op.inputs):
            if name in op.without_gradient:
                continue
            if name in self._gradients:  # added in place; what is added is there for a moment
                work += 0 if op.passes_gradient else self._tensors.sizes[name]
            elif op.passes_gradient:
                self._gradients[name] = self._gradients[op.outputs[0]]
                self._memory.hold(self._gradients[name])
            else:
                self.begin_gradient(name)
        self._memory.work(work)
        for name in op.outputs:
            if name in self._gradients:
                self._memory.release(self._gradients.pop(name))

"""Bytes of one rank at its fullest moment, by kind.

What stays for the whole run is counted (`planning.weights`). The rest is played: one step of the rank, pass by pass in
the order of its schedule, every visit of a layer with what it keeps and what it needs for a moment
(`planning.layer`). The moment with most bytes is reported.

One pipeline stage runs all loops of a micro-batch in one graph, so autograd adds up a weight's gradients over the loops
before it hands them on: from loop R's backward pass to loop 1's every layer holds one more gradient in the precision of
the weights. Several stages run every loop as a graph of its own; there K1 and V1 stay as leaves until loop 1's backward
pass, and so does E on the first stage.
"""

from dataclasses import dataclass, fields, replace

from loopcoder_train.config import ActivationCheckpointing
from loopcoder_train.planning.attention import global_pairs, local_pairs
from loopcoder_train.planning.layer import play_visit
from loopcoder_train.planning.parts import (
    NOTHING,
    embedding_gradient_bytes,
    fp32_logits_bytes,
    play_head,
    play_loop_input,
)
from loopcoder_train.planning.rank import FP32_BYTES, AttentionMemory, Rank
from loopcoder_train.planning.schedule import Pass, stage_passes
from loopcoder_train.planning.tape import Played
from loopcoder_train.planning.weights import layer_parameters, optimizer_bytes, optimizer_work_bytes, stage_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by kind at one moment; :attr:`total` is their sum."""

    weights: int = 0  # in the run's precision
    gradients: int = 0  # fp32 sums over micro-batches and ranks (DDP's buffer)
    optimizer: int = 0  # both Adam moments; in bf16 also the fp32 masters
    activations: int = 0  # kept for the backward pass, all live (loop, micro-batch) pairs
    shared_kv: int = 0  # K1 and V1 of every layer and live micro-batch
    shared_kv_gradients: int = 0  # theirs, and that of E, from the first later loop's backward pass on
    logits: int = 0  # this rank's vocabulary, in the run's precision and in fp32
    weight_gradients: int = 0  # added up over the loops of one graph, not yet in `gradients`
    buffers: int = 0  # what sequence parallelism gathers, pipeline messages, masks and tables
    workspace: int = 0  # for a moment: gradients of activations, recomputation, temporaries

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(getattr(self, field.name) for field in fields(self))


def peak_memory(rank: Rank) -> Memory:
    """The fullest moment of a step on this rank."""
    return max(pass_memory(rank), update_memory(rank), key=lambda memory: memory.total)


def pass_memory(rank: Rank) -> Memory:
    """The fullest moment of the forward and backward passes."""
    moments = _Moments(rest_memory(rank))
    (_play_one_graph if rank.pipeline == 1 else _play_pipeline)(_Stage(rank), moments)
    return moments.peak


def update_memory(rank: Rank) -> Memory:
    """The fullest moment of AdamW's step: activations are gone, its temporaries are there."""
    return replace(rest_memory(rank), workspace=optimizer_work_bytes(rank))


def rest_memory(rank: Rank) -> Memory:
    """What is there between steps."""
    parameters = stage_parameters(rank)
    return Memory(
        weights=parameters * rank.element_bytes,
        gradients=parameters * FP32_BYTES,
        optimizer=optimizer_bytes(rank),
        buffers=gather_buffer_bytes(rank),
    )


def gather_buffer_bytes(rank: Rank) -> int:
    """Megatron's buffer for what a column-parallel linear gathers under sequence parallelism; it is never freed."""
    return rank.inner_rows * rank.model.hidden_size * rank.element_bytes if rank.sequence_parallel else 0


def batch_bytes(rank: Rank) -> int:
    """One micro-batch's ids, labels, documents, positions, RoPE tables and, without a flash kernel, masks."""
    rows, element = rank.whole_rows, rank.element_bytes
    size = 4 * 8 * rows + rows + FP32_BYTES * rank.model.head_dim * rank.inner_rows
    if rank.kernels.global_attention is not AttentionMemory.flash:
        size += global_pairs(rank) * element
    if rank.model.has_gates and rank.kernels.local_attention is not AttentionMemory.flash:
        size += local_pairs(rank) * element
    return size


class _Moments:
    """What is held now, by kind, and the fullest moment so far."""

    def __init__(self, rest: Memory):
        self._now = {field.name: getattr(rest, field.name) for field in fields(rest)}
        self._total = self._highest = rest.total
        self._fullest = dict(self._now)

    @property
    def peak(self) -> Memory:
        """The fullest moment so far."""
        return Memory(**self._fullest)

    def change(self, **kinds: int) -> None:
        """Add bytes that stay (negative: that go)."""
        for kind, size in kinds.items():
            self._now[kind] += size
            self._total += size

    def moment(self, workspace: int) -> None:
        """Something runs that needs `workspace` bytes beside what is held."""
        if self._total + workspace > self._highest:
            self._highest = self._total + workspace
            self._fullest = self._now | {"workspace": workspace}

    def forward(self, played: Played, *, logits: int = 0) -> None:
        """Run forward; `logits` of what is kept are logits."""
        self.moment(played.forward_peak)
        self.change(activations=played.kept - logits, logits=logits)

    def backward(self, played: Played, *, logits: int = 0) -> None:
        """Run backward what :meth:`forward` kept."""
        self.moment(played.backward_extra)
        self.change(activations=logits - played.kept, logits=-logits)


class _Stage:
    """The parts of one rank's stage, played once each."""

    def __init__(self, rank: Rank):
        self.rank, self.loops = rank, rank.model.num_loops
        self.gated = rank.model.has_gates
        self.copies_kv = rank.checkpointing is ActivationCheckpointing.layer
        # Which visits' weight gradients stay in autograd: the first of several to run backward in one graph.
        self._wait_in_loop = self.loops if rank.pipeline == 1 and self.loops > 1 else 0
        self._visits: dict[tuple[bool, bool], Played] = {}
        self._around: dict[int, tuple[Played, Played]] = {}
        self.layer_gradient = layer_parameters(rank) * rank.element_bytes if self._wait_in_loop else 0
        self.tied_gradient = embedding_gradient_bytes(rank) if rank.model.tie_embeddings and rank.pipeline == 1 else 0
        self.held_by_leaves = 0 if self.copies_kv or rank.pipeline == 1 else self._held_by_leaves()
        self.head = play_head(rank)
        self.logits = fp32_logits_bytes(rank)

    def visit(self, loop: int) -> Played:
        """One layer in loop `loop`."""
        kind = (loop == 1 or not self.gated, loop == self._wait_in_loop)
        if kind not in self._visits:
            self._visits[kind] = play_visit(self.rank, full=kind[0], gradients_wait=kind[1])
        return self._visits[kind]

    def around(self, loop: int) -> tuple[Played, Played]:
        """What one of several stages runs before and after its layers in loop `loop`."""
        if loop not in self._around:
            rank = self.rank
            before = play_loop_input(rank, norm=False, shift=True) if rank.is_first and loop > 1 else NOTHING
            after = play_loop_input(rank, norm=True, shift=False) if rank.is_last else NOTHING
            self._around[loop] = before, self.head if rank.is_last and loop == self.loops else after
        return self._around[loop]

    def shared_kv(self) -> int:
        """K1 and V1 of one layer, when later loops read them."""
        return self.rank.shared_kv_bytes if self.gated else 0

    def _held_by_leaves(self) -> int:
        """Bytes of one layer that only the leaves of K1 and V1 hold: the storage that loop 1's own graph lets go."""
        rank, kernel = self.rank, self.rank.kernels.global_attention
        if not self.gated or rank.checkpointing is ActivationCheckpointing.selective:
            return 0
        if rank.context > 1:
            return rank.shared_kv_bytes
        is_view = rank.micro_batch_size == 1 if kernel is AttentionMemory.flash else rank.heads == rank.kv_heads
        if is_view and kernel is not AttentionMemory.written_out:
            return 0
        return rank.inner_rows * (rank.query_width + 2 * rank.kv_width) * rank.element_bytes

    def keeps_input(self) -> bool:
        """Whether the first layer's visit keeps its input for itself."""
        fp32 = self.rank.element_bytes == FP32_BYTES
        return self.copies_kv or fp32 or self.rank.kernels.fused_norm


def _play_one_graph(stage: _Stage, moments: _Moments) -> None:
    """One micro-batch through all loops and back; every micro-batch is like it."""
    rank, loops = stage.rank, stage.loops
    between = play_loop_input(rank, norm=True, shift=True)
    moments.change(buffers=batch_bytes(rank))
    for loop in range(1, loops + 1):
        if loop > 1:
            moments.forward(between)
        for _ in range(rank.num_layers):
            moments.forward(stage.visit(loop))
            if loop == 1:
                _keep_shared_kv(stage, moments, +1)
    moments.forward(stage.head, logits=stage.logits)
    moments.backward(stage.head, logits=stage.logits)
    moments.change(weight_gradients=stage.tied_gradient)
    for loop in range(loops, 0, -1):
        for _ in range(rank.num_layers):
            _visit_backward_in_one_graph(stage, moments, loop)
        if loop > 1:
            moments.backward(between)
            moments.change(shared_kv_gradients=rank.hidden_bytes if loop == loops and stage.gated else 0)
    moments.moment(embedding_gradient_bytes(rank) + rank.hidden_bytes)


def _visit_backward_in_one_graph(stage: _Stage, moments: _Moments, loop: int) -> None:
    """One layer backward, and what autograd holds for it from loop R to loop 1."""
    moments.backward(stage.visit(loop))
    if loop == stage.loops > 1:
        moments.change(weight_gradients=stage.layer_gradient, shared_kv_gradients=stage.shared_kv())
    if loop == 1 and stage.loops > 1:
        moments.change(weight_gradients=-stage.layer_gradient, shared_kv_gradients=-stage.shared_kv())
    if loop == (2 if stage.copies_kv else 1):
        _keep_shared_kv(stage, moments, -1)


def _keep_shared_kv(stage: _Stage, moments: _Moments, sign: int) -> None:
    """K1 and V1 of one layer: copies under layer recomputation, else part of what loop 1's visit keeps."""
    size = sign * stage.shared_kv()
    moments.change(shared_kv=size, activations=0 if stage.copies_kv else sign * stage.held_by_leaves - size)


def _play_pipeline(stage: _Stage, moments: _Moments) -> None:
    """The stage's passes in the order of the schedule; after three groups of micro-batches it repeats itself."""
    rank = stage.rank
    micro_batches = min(rank.micro_batches, 3 * rank.pipeline)
    moments.change(buffers=2 * rank.hidden_bytes)  # a message in and one out, while the stage computes
    with_gradients: set[int] = set()  # micro-batches whose later loops have begun to run backward
    for unit in stage_passes(rank.pipeline, stage.loops, micro_batches, rank.stage):
        if unit.forward:
            _pass_forward(stage, moments, unit)
            continue
        _pass_backward(stage, moments, unit)
        leaves = rank.num_layers * stage.shared_kv() + (rank.hidden_bytes if rank.is_first and stage.gated else 0)
        if unit.loop > 1 and unit.micro_batch not in with_gradients:
            with_gradients.add(unit.micro_batch)
            moments.change(shared_kv_gradients=leaves)
        elif unit.loop == 1 and unit.micro_batch in with_gradients:
            moments.change(shared_kv_gradients=-leaves)


def _messages(stage: _Stage, loop: int) -> int:
    """What the schedule itself holds of a pass until it runs backward: what it received and what it sent."""
    rank = stage.rank
    sent = 0 if rank.is_last and loop == stage.loops else rank.hidden_bytes
    in_layer = stage.keeps_input() and not (rank.is_first and loop > 1)
    return sent + (0 if in_layer else rank.hidden_bytes)


def _pass_forward(stage: _Stage, moments: _Moments, unit: Pass) -> None:
    before, after = stage.around(unit.loop)
    batch = batch_bytes(stage.rank) if unit.loop == 1 else 0
    moments.change(buffers=_messages(stage, unit.loop) + batch)
    moments.forward(before)
    for _ in range(stage.rank.num_layers):
        moments.forward(stage.visit(unit.loop))
        if unit.loop == 1:
            _keep_shared_kv(stage, moments, +1)
    moments.forward(after, logits=stage.logits if after is stage.head else 0)


def _pass_backward(stage: _Stage, moments: _Moments, unit: Pass) -> None:
    before, after = stage.around(unit.loop)
    moments.backward(after, logits=stage.logits if after is stage.head else 0)
    for _ in range(stage.rank.num_layers):
        moments.backward(stage.visit(unit.loop))
        if unit.loop == 1:
            _keep_shared_kv(stage, moments, -1)
    moments.backward(before)
    if stage.rank.is_first and unit.loop == 1:
        moments.moment(embedding_gradient_bytes(stage.rank) + stage.rank.hidden_bytes)
    batch = batch_bytes(stage.rank) if unit.loop == 1 else 0
    moments.change(buffers=-_messages(stage, unit.loop) - batch)

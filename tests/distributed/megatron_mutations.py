"""Plausible mistakes, each put into the engine by patching one function."""

from contextlib import AbstractContextManager, ExitStack
from unittest import mock

import torch

from loopcoder_train.engines.megatron import (
    context,
    engine,
    gate,
    layers,
    norm,
    optimizer,
    pipeline,
    setup,
    shift,
    stage,
)
from loopcoder_train.model.gated_attention import SharedKV, WholeRows, gated_attention

_shift_right = shift.shift_right
_rope_tables, _loop_input, _finalize = stage.rope_tables, stage.Stage.loop_input, engine.finalize_model_grads
_exchange = context._exchange


def _swapped(query, own, shared, gates, *rest):
    return gated_attention(query, own, shared, 1 - gates, *rest)


def _wider(query, own, shared, gates, attend):
    wider = WholeRows(attend.kernels, attend.documents, attend.window_left + 1)
    return gated_attention(query, own, shared, gates, wider)


def _detached(query, own, shared, *rest):
    return gated_attention(query, own, SharedKV(shared.key.detach(), shared.value.detach()), *rest)


def _not_shifted(hidden, starts, seams):
    return hidden.masked_fill(starts[..., None], 0.0)


def _crossing(hidden, starts, seams):
    return _shift_right(hidden, torch.zeros_like(starts), seams)


def _crossing_at_the_seam(hidden, starts, seams):
    starts = starts.clone()
    for stretch, before in zip(starts.chunk(len(seams.before)), seams.before, strict=True):
        stretch[0] &= before is None
    return _shift_right(hidden, starts, seams)


def _no_neighbour(rows, seams, places):
    return torch.zeros_like(rows)


def _own_heads_sliced(logits, group, sequence_parallel):
    return logits.chunk(group.size(), dim=-1)[group.rank()]


def _not_summed(parameter, config):
    parameter.sequence_parallel = False


def _short_halo(window_left, first):
    return max(0, min(window_left, first) - 1)


def _no_halo_gradient(ctx, low, high):
    return torch.zeros_like(low), torch.zeros_like(high), None


def _own_rows_only(ctx, gradient):
    return ctx.zigzag.by_rank(gradient, ctx.dim)[ctx.zigzag.group.rank()], None, None


def _restarting_positions(positions, head_dim, theta):
    first, *rest = positions.chunk(2, dim=1)
    return _rope_tables(torch.cat([first - first[:, :1], *(x - x[:, :1] for x in rest)], dim=1), head_dim, theta)


def _boundary_times(factor):
    def backward(ctx, gradient):
        return gradient, None, *(factor * other for other in ctx.begins())

    return staticmethod(backward)


def _embedding_gradient_dropped(ctx, gradient):
    others = list(ctx.begins())
    if len(others) % 2:  # E comes before pairs of keys and values
        others[0] = None
    return gradient, None, *others


def _wrong_neighbour(*, to_next, to_previous, group):
    return _exchange(to_next=to_previous, to_previous=to_next, group=group)


def _copies_unmarked(self):
    self.pre_process, self.share_embeddings_and_output_weights = self.mesh.is_first_stage, False


def _normed_again(self, loop_number, embedding, previous, geometry, observer):
    if previous is not None:
        previous = torch.nn.functional.rms_norm(previous, previous.shape[-1:])
    return _loop_input(self, loop_number, embedding, previous, geometry, observer)


def _batch_messages(config):
    config.overlap_p2p_comm, config.batch_p2p_comm = False, True


def _finalize_per_chunk(models, *rest, **options):
    return _finalize(models * 3, *rest, **options)


def _one_step_tensor(self, step):
    shared = torch.tensor(float(step))
    for main in self._mains:
        self._adam_state(main.tensor)["step"] = shared


def _patches(name: str) -> list[AbstractContextManager]:
    patch = mock.patch.object
    return {
        "gate_direction_swapped": lambda: [patch(layers, "gated_attention", _swapped)],
        "shift_dropped": lambda: [patch(stage, "shift_right", _not_shifted)],
        "shift_crosses_documents": lambda: [patch(stage, "shift_right", _crossing)],
        "window_off_by_one": lambda: [patch(layers, "gated_attention", _wider)],
        "shared_kv_detached": lambda: [patch(layers, "gated_attention", _detached)],
        "shift_stops_at_the_seam": lambda: [patch(shift, "_elsewhere", _no_neighbour)],
        "seam_gradient_dropped": lambda: [
            patch(shift.RowsBefore, "backward", staticmethod(lambda ctx, g: (torch.zeros_like(g), None)))
        ],
        "documents_cross_at_the_seam": lambda: [patch(stage, "shift_right", _crossing_at_the_seam)],
        "gate_gradient_of_own_heads_only": lambda: [patch(gate, "own_heads", _own_heads_sliced)],
        "gate_gradient_not_summed_over_rows": lambda: [patch(gate, "sum_over_sequence_parts", _not_summed)],
        "norm_gradient_not_summed_over_rows": lambda: [patch(norm, "sum_over_sequence_parts", _not_summed)],
        "embedding_gradient_dropped": lambda: [
            patch(pipeline.LoopBoundary, "backward", staticmethod(_embedding_gradient_dropped))
        ],
        "halos_from_the_wrong_neighbour": lambda: [patch(context, "_exchange", _wrong_neighbour)],
        "tied_copies_not_summed": lambda: [patch(stage.Stage, "_mark_tied_copies", _copies_unmarked)],
        "halo_too_short_by_one": lambda: [patch(context, "halo_rows", _short_halo)],
        "halo_gradient_dropped": lambda: [patch(context._Halo, "backward", staticmethod(_no_halo_gradient))],
        "gathered_gradient_not_summed": lambda: [patch(context._GatherRows, "backward", staticmethod(_own_rows_only))],
        "positions_restart_at_the_seam": lambda: [patch(stage, "rope_tables", _restarting_positions)],
        "shared_kv_gradient_twice": lambda: [patch(pipeline.LoopBoundary, "backward", _boundary_times(2))],
        "shared_kv_gradient_not_at_all": lambda: [patch(pipeline.LoopBoundary, "backward", _boundary_times(0))],
        "normed_twice_between_loops": lambda: [patch(stage.Stage, "loop_input", _normed_again)],
        "messages_swapped": lambda: [patch(setup, "refuse_silent_mistakes", _batch_messages)],
        "finalized_once_per_chunk": lambda: [patch(engine, "finalize_model_grads", _finalize_per_chunk)],
        "step_tensor_shared": lambda: [
            patch(optimizer.OptimizerState, "step", optimizer.OptimizerState.step.setter(_one_step_tensor))
        ],
    }[name]()


def mistake(name: str) -> ExitStack:
    """A context in which engines are built and run with the mistake called `name`."""
    stack = ExitStack()
    for patch in _patches(name):
        stack.enter_context(patch)
    return stack

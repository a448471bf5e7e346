"""Plausible mistakes, each put into the engine by patching one function."""

from contextlib import AbstractContextManager, ExitStack
from unittest import mock

import torch

from loopcoder_train.engines.megatron import gate, layers, norm, shift, stage
from loopcoder_train.model.gated_attention import SharedKV, WholeRows, gated_attention

_shift_right = shift.shift_right


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
    }[name]()


def mistake(name: str) -> ExitStack:
    """A context in which engines are built and run with the mistake called `name`."""
    stack = ExitStack()
    for patch in _patches(name):
        stack.enter_context(patch)
    return stack

"""Plausible mistakes, each put into the engine by patching one function."""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from unittest import mock

import torch
from deepspeed import DeepSpeedEngine

from loopcoder_train.engines.deepspeed import setup
from loopcoder_train.engines.deepspeed.engine import ZeroEngine
from loopcoder_train.engines.deepspeed.partitions import FlatPartitions, SplitPartitions
from loopcoder_train.engines.deepspeed.state import OptimizerState

_VIEWS = (FlatPartitions, SplitPartitions)
_backward, _set_boundary = DeepSpeedEngine.backward, DeepSpeedEngine.set_gradient_accumulation_boundary
_options, _sum, _train_step = setup.deepspeed_options, ZeroEngine.sum_over_data_parallel, ZeroEngine.train_step


def _own_tokens(self, tensor):
    return tensor if tensor.dtype == torch.int64 else _sum(self, tensor)


def _off_by_one(pieces):
    def shifted(self):
        for piece in pieces(self):
            fits = piece.offset + 1 + piece.stop - piece.start <= len(piece.main)
            yield replace(piece, offset=piece.offset + fits)

    return shifted


def _rounded(config, device):
    return _options(config, device) | {"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}


# mistake -> what is patched: (object, attribute, replacement)
_PATCHES = {
    "mean_over_ranks": [
        (DeepSpeedEngine, "backward", lambda self, loss: _backward(self, loss / torch.distributed.get_world_size()))
    ],
    "tokens_of_one_rank": [(ZeroEngine, "sum_over_data_parallel", _own_tokens)],
    "every_micro_batch_is_the_last": [
        (DeepSpeedEngine, "set_gradient_accumulation_boundary", lambda self, last: _set_boundary(self, True))
    ],
    "refused_gradients_stay": [(view, "discard", lambda self: None) for view in _VIEWS],
    "refused_sums_stay": [(view, "discard", lambda self: None) for view in _VIEWS],
    "infinite_sums_stay": [(view, "discard", lambda self: None) for view in _VIEWS],
    "biases_and_norms_decayed": [(setup, "is_decayed", lambda name: True)],
    "not_clipped": [(setup, "deepspeed_options", lambda *args: _options(*args) | {"gradient_clipping": 0.0})],
    "sums_in_bf16": [(setup, "deepspeed_options", _rounded)],
    "one_learning_rate": [
        (ZeroEngine, "train_step", lambda self, batches, rate, **accept: _train_step(self, batches, 1e-3, **accept))
    ],
    "pieces_off_by_one": [(view, "pieces", _off_by_one(view.pieces)) for view in _VIEWS],
    "live_weights_not_loaded": [(view, "live_shards", lambda self, prefix: iter(())) for view in _VIEWS],
    "optimizer_step_not_loaded": [
        (OptimizerState, "step", property(OptimizerState.step.fget, lambda self, step: None))
    ],
    "weights_not_released": [(setup, "release_after_every_visit", lambda offload: None)],
}


def mistake(name: str) -> AbstractContextManager:
    """The engine with this mistake in it."""
    stack = ExitStack()
    for target, attribute, replacement in _PATCHES[name]:
        stack.enter_context(mock.patch.object(target, attribute, replacement))
    return stack

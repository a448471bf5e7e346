"""Which changes a resumed run refuses: one table, complete and not contradicting itself."""

import copy

import pytest

from loopcoder_train.config import ParallelConfig, RunConfig
from loopcoder_train.config.compare import (
    FREE_TO_CHANGE,
    RESULT_CHANGING,
    changed_keys,
    changes_result,
    result_changing_keys,
)
from loopcoder_train.config.keys import dotted_keys
from tests.unit.config.test_config_io import make_config


def test_every_option_is_classified_exactly_once():
    known = set(dotted_keys(RunConfig))
    assert not set(RESULT_CHANGING) & set(FREE_TO_CHANGE)
    assert set(RESULT_CHANGING) | set(FREE_TO_CHANGE) <= known
    groups = {key.partition(".")[0] for key in known if "." in key}
    for key in known - groups:
        changes_result(key)  # KeyError for an option that nobody thought about


@pytest.mark.parametrize(
    "key",
    ["seed", "model.num_loops", "model.init_std", "model.init_from", "data.text_share", "data.shares.python",
     "data.sequence_length", "optimizer.peak_lr", "schedule.kind", "training.num_steps",
     "training.global_batch_size", "training.precision"],
)  # fmt: skip
def test_changes_the_result(key):
    assert changes_result(key)


@pytest.mark.parametrize(
    "key",
    ["run_dir", "fresh", "accept_config_changes", "data.prefetch_steps", "parallel.world_size",
     "parallel.tensor_parallel_size", "kernels.local_attention", "training.micro_batch_size",
     "training.activation_checkpointing", "training.stop_after_step", "training.device", "training.num_threads",
     "checkpoint.every_steps", "checkpoint.asynchronous", "evaluation.every_steps", "telemetry.every_steps",
     "logging.wandb", "launch.max_restarts"],
)  # fmt: skip
def test_may_change(key):
    assert not changes_result(key)


def test_differences_carry_both_values():
    old, new = make_config(), make_config(seed=3, parallel=ParallelConfig(world_size=2))
    new = copy.deepcopy(new)
    new.optimizer.peak_lr = 1e-3
    new.data.shares = {"python": 0.25, "java": 0.5}
    assert result_changing_keys(old, new) == [
        ("seed", 0, 3),
        ("data.shares.c", 1e-7, None),
        ("optimizer.peak_lr", 4e-4, 1e-3),
        ("data.shares.java", None, 0.5),
    ]
    assert ("parallel.world_size", 1, 2) in changed_keys(old, new)
    assert changed_keys(old, make_config()) == []


def test_emptied_dictionary_is_seen_by_its_keys_only():
    old, new = make_config(), copy.deepcopy(make_config())
    new.data.shares = {}
    assert [key for key, _, _ in changed_keys(old, new)] == ["data.shares.c", "data.shares.python"]

"""The name that a misspelt option probably meant."""

import pytest

from loopcoder_train.config import RunConfig
from loopcoder_train.config.keys import dotted_keys, free_form_keys, nearest


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("model.num_lops", "model.num_loops"),
        ("num_loops", "model.num_loops"),
        ("training.num_loops", "model.num_loops"),
        ("modle.num_loops", "model.num_loops"),
        ("optimizer.lr", "optimizer.peak_lr"),
        ("peak_learning_rate", None),
        ("sede", "seed"),
        ("modle", "model"),
        ("rundir", "run_dir"),
        ("parallel.tensor_parallel", "parallel.tensor_parallel_size"),
        ("checkpoint.every_step", "checkpoint.every_steps"),
        ("training.batch_size", "training.micro_batch_size"),
        ("model.foo", None),
        ("banana", None),
    ],
)
def test_nearest(written, meant):
    assert nearest(written, dotted_keys(RunConfig)) == meant


def test_free_form_keys():
    assert free_form_keys(RunConfig) == ["data.shares", "launch.environment"]

"""One bit of one weight of one replica of a real run flips; a rank gets other gradients from the same data."""

import pytest

from loopcoder_train.checkpoint import find_checkpoint
from tests.faults.conftest import start
from tests.integration.conftest import losses
from tests.integration.running import events

FLIP = {"kind": "flip", "rank": 1, "batch": 5, "tensor": "model/model.layers.1.mlp.down_proj.weight"}
OFTEN = "guards.compare_replicas_every_steps=7"


def error_line(outcome) -> str:
    assert outcome.code == 1, outcome.stderr + outcome.stdout
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("loopcoder: error")]
    return line


def test_two_replicas_that_differ_are_found_before_anything_is_saved(tmp_path, corpus):
    run_dir = tmp_path / "run"
    line = error_line(start(run_dir, corpus, OFTEN, fault=FLIP).wait())
    assert "silent corruption found after step 7: rank 0 (" in line and ") and rank 1 (" in line
    assert "no majority says which is right" in line and "guards.recompute_every_steps=1" in line
    assert find_checkpoint(run_dir).checkpoint.step == 4
    (event,) = events(run_dir, "replicas_differ")
    assert event["differing_ranks"] == [0, 1] and event["wrong_ranks"] == []


@pytest.mark.faults
def test_of_three_replicas_the_wrong_one_is_named_and_the_run_goes_on_without_the_flip(tmp_path, corpus):
    """A restart goes on from the last checkpoint by itself; the flip is found when the next save is due."""
    run_dir, straight = tmp_path / "run", tmp_path / "straight"
    three = ("training.global_batch_size=6", "guards.compare_replicas_every_steps=100")
    options = {"world_size": 3, "max_restarts": 1}
    outcome = start(run_dir, corpus, *three, fault=FLIP | {"once": True}, **options).wait()
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    (line,) = [line for line in outcome.stderr.splitlines() if "restart 1 of 1" in line]
    assert "after step 8: rank 1 (" in line and "differ(s) from the other 2 replicas in" in line
    (event,) = events(run_dir, "replicas_differ")
    assert event["wrong_ranks"] == [1]
    outcome = start(straight, corpus, *three, fault=FLIP | {"batch": 10**6}, world_size=3).wait()
    assert outcome.code == 0 and losses(run_dir) == losses(straight)


@pytest.mark.faults
def test_what_becomes_of_it_without_a_comparison(tmp_path, corpus):
    """The flip alone stops nothing: only the comparison finds it."""
    outcome = start(tmp_path / "run", corpus, "guards.compare_replicas_every_steps=null", fault=FLIP).wait()
    assert outcome.code == 0, outcome.stderr


@pytest.mark.faults
def test_a_flipped_moment_is_found_and_named(tmp_path, corpus):
    moment = "adam_second_moment/model.layers.0.input_layernorm.weight"
    line = error_line(start(tmp_path / "run", corpus, OFTEN, fault=FLIP | {"batch": 6, "tensor": moment}).wait())
    assert f"differ in {moment}, and no majority" in line


@pytest.mark.faults
def test_a_rank_that_computes_wrongly_is_named_by_recomputation(tmp_path, corpus):
    fault = {"kind": "wrong_sum", "rank": 1, "batch": 5}
    run_dir = tmp_path / "run"
    line = error_line(start(run_dir, corpus, "guards.recompute_every_steps=3", fault=fault).wait())
    assert "silent corruption found at step 6: rank 1 (" in line and "two different gradients" in line
    assert find_checkpoint(run_dir).checkpoint.step == 4

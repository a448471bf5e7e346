"""NaN in one micro-batch of one rank of a real two-process run."""

import pytest

from loopcoder_train.checkpoint import checkpoints_of, find_checkpoint
from tests.faults.conftest import SLOWLY, TWO, start
from tests.integration.conftest import NUM_STEPS, losses, pretrain
from tests.integration.running import events

NAN = {"kind": "nan", "rank": 1, "batch": 5}


def finished(job):
    outcome = job.wait()
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    return outcome


def tensors(run_dir):
    """Every tensor of the last checkpoint."""
    checkpoint = find_checkpoint(run_dir).checkpoint
    assert checkpoint.step == NUM_STEPS
    return {name: checkpoint.read_tensor(name) for name in checkpoint.tensor_names()}, checkpoint.state


def assert_same_end(run_dir, other):
    (mine, state), (theirs, expected) = tensors(run_dir), tensors(other)
    assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)
    for key in ("stream", "engine", "history"):
        assert state[key] == expected[key], key
    assert losses(run_dir) == losses(other)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus):
    """The uninterrupted run in which batch 5 is bad."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    outcome = finished(start(run_dir, corpus, fault=NAN))
    assert "WARNING: step 6 was not made: loss=nan, gradient norm=nan; its batch 5 is skipped" in outcome.stdout
    return run_dir


def test_all_ranks_skip_what_one_rank_cannot_use(straight):
    (event,) = events(straight, "step_skipped")
    assert (event["step"], event["bad_step"]["batch"]) == (5, 5)
    assert list(losses(straight)) == list(range(1, NUM_STEPS + 1))
    state = find_checkpoint(straight).checkpoint.state
    assert state["training"]["discarded_batches"] == 1 and state["engine"]["optimizer_step"] == NUM_STEPS
    assert state["stream"]["position"] == 4 * (NUM_STEPS + 1)


@pytest.mark.faults
@pytest.mark.parametrize("once", [False, True], ids=["again", "only once"])
def test_killed_after_the_skip_and_resumed_equals_the_uninterrupted_run(tmp_path, corpus, straight, once):
    """Checkpoints are at 4, 8 and 12: killed before 8, the resumed attempt meets batch 5 again."""
    run_dir = tmp_path / "run"
    job = start(run_dir, corpus, *SLOWLY, fault=NAN | {"once": once})
    job.wait_for(lambda: len(events(run_dir, "step_skipped")) == 1 and checkpoints_of(run_dir))
    job.kill_all()
    assert find_checkpoint(run_dir).checkpoint.step == 4
    outcome = finished(start(run_dir, corpus, *SLOWLY, fault=NAN | {"once": once}))
    assert "resuming after step 4" in outcome.stdout
    if once:
        assert "an attempt before this one decided so" in outcome.stdout
        (mine,), (theirs,) = (find_checkpoint(d).checkpoint.state["history"]["ledger"] for d in (run_dir, straight))
        assert mine["batch"] == theirs["batch"] and mine["loss"] is not None
        assert losses(run_dir) == losses(straight)
    else:
        assert_same_end(run_dir, straight)


@pytest.mark.faults
def test_killed_after_a_rewind_and_resumed_equals_the_uninterrupted_run(tmp_path, corpus):
    fault, rewind = NAN | {"batch": 6}, "guards.nonfinite=rewind"
    straight, run_dir = tmp_path / "straight", tmp_path / "run"
    outcome = finished(start(straight, corpus, rewind, fault=fault))
    assert "back to the checkpoint of step 4, 2 step(s) are undone and their batches up to 6" in outcome.stdout
    assert find_checkpoint(straight).checkpoint.state["stream"]["position"] == 4 * (NUM_STEPS + 3)
    job = start(run_dir, corpus, rewind, *SLOWLY, fault=fault)
    job.wait_for(lambda: len(events(run_dir, "step_rewound")) == 1)
    job.kill_all()
    finished(start(run_dir, corpus, rewind, *SLOWLY, fault=fault))
    assert_same_end(run_dir, straight)


@pytest.mark.faults
def test_stopping_is_an_error_of_one_line(tmp_path, corpus):
    outcome = start(tmp_path / "run", corpus, "guards.nonfinite=stop", fault=NAN).wait()
    assert outcome.code == 2
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("loopcoder: error")]
    assert "training diverged at step 6: loss=nan" in line and "guards.nonfinite=stop" in line


@pytest.mark.faults
def test_another_layout_skips_too(tmp_path, corpus, straight):
    """The NaN of a tensor-parallel rank reaches all ranks as well."""
    run_dir = tmp_path / "run"
    finished(start(run_dir, corpus, "parallel.tensor_parallel_size=2", fault=NAN))
    assert [event["bad_step"]["batch"] for event in events(run_dir, "step_skipped")] == [5]


@pytest.mark.faults
def test_without_a_fault_nothing_is_skipped(tmp_path, corpus):
    run_dir = tmp_path / "run"
    outcome = pretrain(run_dir, corpus, TWO)
    assert outcome.code == 0 and not events(run_dir, "step_skipped")

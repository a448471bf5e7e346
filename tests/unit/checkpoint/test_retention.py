"""What stays after a save, and how a run's history is put aside."""

import pytest

from loopcoder_train.checkpoint import checkpoints_of, find_checkpoint, set_aside
from tests.unit.checkpoint.builders import assert_holds, save_step


def steps(run_dir):
    return [checkpoint.step for checkpoint in checkpoints_of(run_dir)]


@pytest.mark.parametrize(
    ("keep_last", "keep_every_steps", "kept"),
    [(1, None, [7]), (3, None, [5, 6, 7]), (2, 3, [3, 6, 7]), (1, 2, [2, 4, 6, 7]), (99, None, [1, 2, 3, 4, 5, 6, 7])],
)
def test_keeps_the_newest_and_the_multiples(tmp_path, keep_last, keep_every_steps, kept):
    pruned = []
    for step in range(1, 8):
        pruned += save_step(tmp_path, step, keep_last=keep_last, keep_every_steps=keep_every_steps).pruned
    assert steps(tmp_path) == kept
    assert pruned == [f"step-{step:08d}" for step in range(1, 8) if step not in kept]


def test_bad_checkpoints_do_not_count(tmp_path):
    for step in (1, 2, 3):
        save_step(tmp_path, step)
    (tmp_path / "checkpoints/step-00000003/index.json").unlink()
    save_step(tmp_path, 4, keep_last=2)
    assert steps(tmp_path) == [2, 4]


def test_what_was_just_saved_stays_below_a_bad_newer_one(tmp_path):
    """After falling back from a bad step 9 the run saves step 5: neither is pruned, and 5 is found."""
    save_step(tmp_path, 4)
    save_step(tmp_path, 9)
    (tmp_path / "checkpoints/step-00000009/state.json").write_text("{}")
    save_step(tmp_path, 5, keep_last=1)
    assert steps(tmp_path) == [5, 9]
    assert_holds(find_checkpoint(tmp_path).checkpoint, 5)


def test_uncommitted_folders_go_with_the_old_ones_even_at_multiples(tmp_path):
    save_step(tmp_path, 2)
    (tmp_path / "checkpoints/step-00000002/COMMIT").unlink()
    assert save_step(tmp_path, 3, keep_every_steps=2).pruned == ["step-00000002"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save_step(tmp_path, 1)
    (tmp_path / "checkpoints/step-00000001/state.json").write_text("{}")
    save_step(tmp_path, 1)
    assert_holds(find_checkpoint(tmp_path).checkpoint, 1)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-00000001", "latest"}


def test_set_aside(tmp_path):
    assert set_aside(tmp_path) is None
    for step in (1, 2, 3):
        save_step(tmp_path, step)
    first = set_aside(tmp_path, after_step=1)
    assert {path.name for path in first.iterdir()} == {"step-00000002", "step-00000003"}
    assert_holds(find_checkpoint(tmp_path).checkpoint, 1)
    assert set_aside(tmp_path, after_step=1) is None
    second = set_aside(tmp_path)
    assert second != first and find_checkpoint(tmp_path).checkpoint is None
    save_step(tmp_path, 1)
    assert_holds(find_checkpoint(tmp_path).checkpoint, 1)

"""Runs with a second location: what they tell, how they end, and from where they resume."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from loopcoder_train import build
from loopcoder_train.checkpoint import Mirror, find_checkpoint
from loopcoder_train.checkpoint import mirror as mirror_module
from loopcoder_train.config import CheckpointConfig, UserError
from loopcoder_train.runtime.mirror_owner import OWNER_FILE, check_mirror_owner, claim_mirror
from loopcoder_train.training.loop import Hook
from loopcoder_train.training.mirror_hook import MirrorHook
from tests.unit.checkpoint.builders import save_step
from tests.unit.config.test_config_io import make_config
from tests.unit.training.test_async_checkpoints import events, train

TENSORS = "tensors-00000-of-00001.safetensors"


class Ends(Hook):
    """Asks for an end after step 4, as a signal does."""

    def after_step(self, run, step):
        if step.number == 4:
            run.stop_reason = "SIGTERM"


def mirrored(run_dir, mirror, *others, patience_seconds=30.0, **options):
    def behind(saving):
        copies = Mirror(mirror, keep_last=1)
        return [MirrorHook(copies, saved_at=lambda: saving.saved_at, patience_seconds=patience_seconds)]

    return train(run_dir, *others, behind=behind, **options)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_last_checkpoint_is_in_the_mirror_when_the_run_ends(tmp_path, asynchronous):
    mirrored(tmp_path / "run", tmp_path / "mirror", num_steps=6, asynchronous=asynchronous)
    told = [e["checkpoint_step"] for e in events(tmp_path / "run", "mirrored")]
    assert told[-1] == 6 and set(told) <= {4, 6}
    assert find_checkpoint(tmp_path / "mirror").checkpoint.step == 6
    assert events(tmp_path / "run", "mirror_failed") == []


def test_a_copy_that_a_killed_attempt_lost_is_made_by_the_next(tmp_path):
    save_step(tmp_path / "run", 4)
    mirrored(tmp_path / "run", tmp_path / "mirror", num_steps=1, every_steps=100)
    assert next(e["checkpoint_step"] for e in events(tmp_path / "run", "mirrored")) == 4


def test_a_mirror_that_fails_is_told_and_training_goes_on(tmp_path):
    (tmp_path / "mirror").write_text("a file, not a folder")
    state = mirrored(tmp_path / "run", tmp_path / "mirror", num_steps=6, every_steps=2, asynchronous=False)
    assert state.step == 6 and find_checkpoint(tmp_path / "run").checkpoint.step == 6
    failed = events(tmp_path / "run", "mirror_failed")
    assert failed and "was not copied to" in failed[0]["message"] and "training goes on" in failed[0]["message"]
    assert (tmp_path / "run" / "console").read_text().count("WARNING: the checkpoint of step") == len(failed)


def test_the_end_waits_for_a_slow_copy_only_so_long(tmp_path, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(mirror_module, "copy_checkpoint", lambda *_, **__: never.wait(60))
    state = mirrored(tmp_path / "run", tmp_path / "mirror", Ends(), patience_seconds=0.3, every_steps=2)
    never.set()
    assert state.step == 4
    (failed,) = [e for e in events(tmp_path / "run", "mirror_failed") if "not finished" in e["message"]]
    assert "the next start of the run copies it" in failed["message"]


@pytest.fixture
def notes():
    lines = []
    return SimpleNamespace(lines=lines, note=lines.append)


def configured(tmp_path):
    options = CheckpointConfig(mirror_dir=str(tmp_path / "mirrors"))
    return replace(make_config(run_dir=str(tmp_path / "run")), checkpoint=options)


def look(config, notes):
    return build.look_in_mirror(config, find_checkpoint(Path(config.run_dir)), notes)


def flip(folder):
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(content)


def test_a_good_run_dir_is_preferred_and_the_mirror_not_even_read(tmp_path, notes, monkeypatch):
    save_step(tmp_path / "run", 2)
    flip(save_step(tmp_path / "mirrors/run", 1).path)
    flip(save_step(tmp_path / "mirrors/run", 2).path)
    found = look(configured(tmp_path), notes)
    assert found.checkpoint.path.parent.parent == tmp_path / "run" and notes.lines == []


@pytest.mark.parametrize("lost", ["all", "newest", "damaged"])
def test_the_mirror_is_taken_where_the_run_has_none_as_new_and_it_is_said(tmp_path, notes, lost):
    save_step(tmp_path / "run", 1)
    newest = save_step(tmp_path / "run", 2).path
    shutil.copytree(newest, tmp_path / "mirrors/run/checkpoints" / newest.name)
    if lost == "damaged":
        flip(newest)
    else:
        shutil.rmtree(newest if lost == "newest" else tmp_path / "run")
    found = look(configured(tmp_path), notes)
    assert found.checkpoint.path == tmp_path / "mirrors/run/checkpoints" / newest.name
    has = "no good checkpoint" if lost == "all" else "none newer than step 1"
    assert [line for line in notes.lines if has in line and "resuming from its mirror" in line]


def test_a_damaged_mirror_is_passed_over_like_any_checkpoint(tmp_path, notes):
    save_step(tmp_path / "run", 1)
    flip(save_step(tmp_path / "mirrors/run", 2).path)
    found = look(configured(tmp_path), notes)
    assert found.checkpoint.step == 1 and found.damaged
    assert "checkpoint of the mirror passed over" in notes.lines[0]
    shutil.rmtree(tmp_path / "run")
    found = look(configured(tmp_path), notes)
    assert found.checkpoint is None and found.damaged, "the run must not start over"


def test_a_mirror_belongs_to_one_run(tmp_path):
    mirror = tmp_path / "mirrors/run"
    claim_mirror(mirror, tmp_path / "a/run")
    claim_mirror(mirror, tmp_path / "a/run")
    for act in (claim_mirror, check_mirror_owner):
        with pytest.raises(UserError, match=r"checkpoint.mirror_dir=.* holds the checkpoints of the run in .*a/run"):
            act(mirror, tmp_path / "b/run")
    assert (mirror / OWNER_FILE).read_text().strip() == str(tmp_path / "a/run")

"""Copies of checkpoints in a second location: whole or not there, never in the way of training."""

import errno
import threading

import pytest
import torch

from loopcoder_train.checkpoint import CheckpointError, Mirror, find_checkpoint
from loopcoder_train.checkpoint import mirror as mirror_module
from loopcoder_train.checkpoint.mirror import copy_checkpoint
from tests.unit.checkpoint.builders import assert_holds, cut, save_on_ranks, save_step
from tests.unit.checkpoint.test_survival import small_disk

TENSORS = "tensors-00000-of-00001.safetensors"


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_copy_is_the_same_checkpoint_and_its_own_rule_keeps_it(tmp_path):
    for step in (1, 2, 3):
        source = save_step(tmp_path / "run", step).path
        total = copy_checkpoint(source, tmp_path / "mirror", keep_last=2)
        assert total == sum(p.stat().st_size for p in source.iterdir() if p.name != "COMMIT")
    assert names(tmp_path / "mirror") == ["latest", "step-00000002", "step-00000003"]
    for file in source.iterdir():
        assert file.read_bytes() == (tmp_path / "mirror/checkpoints/step-00000003" / file.name).read_bytes()
    assert_holds(find_checkpoint(tmp_path / "mirror").checkpoint, 3)


def test_a_damaged_source_is_never_committed_and_the_former_copy_stays(tmp_path):
    copy_checkpoint(save_step(tmp_path / "run", 1).path, tmp_path / "mirror", keep_last=1)
    source = save_step(tmp_path / "run", 2).path
    content = bytearray((source / TENSORS).read_bytes())
    content[-1] ^= 1
    (source / TENSORS).write_bytes(content)
    with pytest.raises(CheckpointError, match="does not have the SHA-256"):
        copy_checkpoint(source, tmp_path / "mirror", keep_last=1)
    assert names(tmp_path / "mirror") == ["latest", "step-00000001"]


def test_what_the_second_disk_changed_is_not_committed(tmp_path, monkeypatch):
    """The copy is read back: bytes that were right on the way and wrong on the disk are found."""
    copy_file = mirror_module._copy_file

    def copy_badly(source, target, record):
        copy_file(source, target, record)
        if record.name == TENSORS:
            (target / record.name).write_bytes(b"\0" * record.size_bytes)

    monkeypatch.setattr(mirror_module, "_copy_file", copy_badly)
    with pytest.raises(CheckpointError, match=TENSORS):
        copy_checkpoint(save_step(tmp_path / "run", 1).path, tmp_path / "mirror", keep_last=1)
    assert names(tmp_path / "mirror") == []


def test_killed_before_commit_the_mirror_holds_its_former_checkpoint(tmp_path, monkeypatch):
    copy_checkpoint(save_step(tmp_path / "run", 1).path, tmp_path / "mirror", keep_last=1)

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    source = save_step(tmp_path / "run", 2).path
    with monkeypatch.context() as patch:
        patch.setattr(mirror_module, "check_hash", die)
        with pytest.raises(Killed):
            copy_checkpoint(source, tmp_path / "mirror", keep_last=1)
    assert_holds(find_checkpoint(tmp_path / "mirror").checkpoint, 1)
    copy_checkpoint(source, tmp_path / "mirror", keep_last=1)
    assert names(tmp_path / "mirror") == ["latest", "step-00000002"], "what the kill left is gone"


def test_a_copy_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    source = save_on_ranks(tmp_path / "run", 1, cut("w", torch.zeros(50_000), "rows", 2))[0].path
    with small_disk(tmp_path / "disk", "4k") as disk:
        monkeypatch.setattr(mirror_module, "_copy_file", None)  # calling it would be a TypeError
        with pytest.raises(OSError, match=r"it needs .* bytes, .* are free"):
            copy_checkpoint(source, disk, keep_last=1)


class Gate:
    """Holds every copy until it is opened."""

    def __init__(self, monkeypatch):
        self.open, self.arrived = threading.Event(), threading.Event()
        real = mirror_module.copy_checkpoint

        def gated(*arguments, **options):
            self.arrived.set()
            assert self.open.wait(30)
            return real(*arguments, **options)

        monkeypatch.setattr(mirror_module, "copy_checkpoint", gated)


def test_start_returns_at_once_and_of_those_that_wait_the_newest_is_copied(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    mirror = Mirror(tmp_path / "mirror", keep_last=5)
    paths = [save_step(tmp_path / "run", step, keep_last=9).path for step in (1, 2, 3)]
    mirror.start(paths[0])
    assert gate.arrived.wait(30)
    mirror.start(paths[1])
    mirror.start(paths[2])
    assert not mirror.wait(0) and [o.step for o in mirror.outcomes()] == [2], "the one that never gets its turn is told"
    gate.open.set()
    assert mirror.wait(30)
    assert [(o.step, o.problem) for o in mirror.outcomes()] == [(1, None), (3, None)]
    assert names(tmp_path / "mirror") == ["latest", "step-00000001", "step-00000003"]
    mirror.start(paths[2])
    assert mirror.wait(30) and mirror.outcomes() == [], "what is there is not copied again"


def test_failures_are_outcomes_and_the_next_copy_is_tried(tmp_path, monkeypatch):
    mirror = Mirror(tmp_path / "mirror", keep_last=1)
    source = save_step(tmp_path / "run", 1).path

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(mirror_module, "copy_checkpoint", refuse)
        mirror.start(source)
        assert mirror.wait(30)
    assert [o.problem for o in mirror.outcomes()] == ["No space left on device (somewhere)"]
    mirror.start(source)
    assert mirror.wait(30) and [o.problem for o in mirror.outcomes()] == [None]

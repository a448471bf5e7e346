"""A disk with too little room: told ahead of time, no save is begun that must fail, training goes on."""

import pytest

from loopcoder_train.checkpoint import find_checkpoint
from loopcoder_train.checkpoint import save as save_module
from loopcoder_train.checkpoint.errors import Shortage
from loopcoder_train.config import UserError
from tests.unit.training.test_async_checkpoints import events, train


class Room:
    """Free bytes of the disk, one answer for each question in order; the last one for all further ones."""

    def __init__(self, *free_bytes):
        self.free_bytes = list(free_bytes)

    def shortage(self, folder, needed_bytes):
        free = self.free_bytes.pop(0) if len(self.free_bytes) > 1 else self.free_bytes[0]
        return Shortage(needed_bytes, free) if needed_bytes > free else None


PLENTY = 10**12


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_that_does_not_fit_is_told_ahead_and_not_begun(tmp_path, monkeypatch, asynchronous):
    # Step 1 fits, and whether step 2 will is asked; step 2 does not; step 3 does.
    room = Room(PLENTY, 7, 7, PLENTY)
    monkeypatch.setattr(save_module, "shortage", room.shortage)
    state = train(tmp_path / "run", num_steps=3, every_steps=1, asynchronous=asynchronous)
    assert state.step == 3 and find_checkpoint(tmp_path / "run").checkpoint.step == 3
    ahead, refused = events(tmp_path / "run", "disk_low")
    assert "the next checkpoint will not fit: it needs" in ahead["message"] and "checkpoint_step" not in ahead
    assert refused["checkpoint_step"] == 2 and "was not begun" in refused["message"]
    assert "training goes on, last good checkpoint: step 1" in refused["message"]
    for event in (ahead, refused):
        assert event["free_bytes"] == 7 < event["needed_bytes"]
        assert f"{event['needed_bytes']:,} bytes, 7 are free" in event["message"]
    assert [event["checkpoint_step"] for event in events(tmp_path / "run", "saved")] == [1, 3]
    assert events(tmp_path / "run", "save_failed") == []
    console = (tmp_path / "run" / "console").read_text()
    assert console.count("will not fit") == 1 and console.count("was not begun") == 1


def test_the_warning_is_given_once_until_there_was_room_again(tmp_path, monkeypatch):
    # before and after each of five saves: low after 1, 2, 4 and 5
    room = Room(PLENTY, 7, PLENTY, 7, PLENTY, PLENTY, PLENTY, 7, PLENTY, 7)
    monkeypatch.setattr(save_module, "shortage", room.shortage)
    train(tmp_path / "run", num_steps=5, every_steps=1, asynchronous=False)
    assert [event["step"] for event in events(tmp_path / "run", "disk_low")] == [1, 4]


def test_without_room_for_the_last_step_the_run_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "shortage", Room(7).shortage)
    with pytest.raises(UserError, match=r"last step 2 could not be written .*it needs .* 7 are free.*make room"):
        train(tmp_path / "run", num_steps=2)
    assert [event["checkpoint_step"] for event in events(tmp_path / "run", "disk_low")] == [2]

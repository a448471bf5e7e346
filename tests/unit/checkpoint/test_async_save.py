"""The saver's thread: one save at a time, buffers used again, errors that reach the main thread."""

import threading

import pytest
import torch

from loopcoder_train.checkpoint import AsyncSaver, Ranks, SaveFailed, find_checkpoint
from loopcoder_train.checkpoint import save as save_module
from loopcoder_train.model.state import TensorShard, whole
from tests.unit.checkpoint.builders import cut, on_ranks


@pytest.fixture
def gate(monkeypatch):
    """Holds every writing thread at its tensors until it is set."""
    opened, write = threading.Event(), save_module.write_tensors

    def wait_and_write(path, tensors):
        assert opened.wait(30)
        return write(path, tensors)

    monkeypatch.setattr(save_module, "write_tensors", wait_and_write)
    yield opened
    opened.set()


def saver_for(run_dir, ranks=None, **options):
    return AsyncSaver(run_dir, ranks or Ranks.alone(), **{"keep_last": 3, "keep_every_steps": None, **options})


def test_values_changed_in_place_while_they_are_written_are_saved_as_they_were(tmp_path, gate):
    live, saver = torch.arange(6.0).reshape(2, 3), saver_for(tmp_path)
    saver.start(1, [whole("w", live)], {"step": 1}, rank_state={"rng": [1]})
    live.zero_()
    assert saver.in_flight and not saver.done() and not saver.wait(0.05)
    assert find_checkpoint(tmp_path).checkpoint is None
    gate.set()
    assert saver.result().path.name == "step-00000001" and not saver.in_flight
    checkpoint = find_checkpoint(tmp_path).checkpoint
    assert torch.equal(checkpoint.read_tensor("w"), torch.arange(6.0).reshape(2, 3))
    assert checkpoint.state == {"step": 1} and checkpoint.rank_state(0, 1) == {"rng": [1]}


def test_buffers_are_used_again_and_hold_the_new_values(tmp_path):
    live, saver, places = torch.zeros(4), saver_for(tmp_path), set()
    for step in (1, 2, 3):
        live.fill_(step)
        saver.start(step, [whole("w", live), whole("alias", live)], {})
        places.add(saver._buffers.for_copy_of("w", live).data_ptr())
        saver.result()
    assert len(places) == 1 and live.data_ptr() not in places
    for step in (1, 2, 3):
        saved = find_checkpoint(tmp_path, step).checkpoint
        assert saved.read_tensor("w").tolist() == saved.read_tensor("alias").tolist() == [step] * 4


def test_a_second_save_before_the_first_was_taken_is_a_mistake(tmp_path, gate):
    saver = saver_for(tmp_path)
    saver.start(1, [whole("w", torch.ones(2))], {})
    with pytest.raises(AssertionError, match="in flight"):
        saver.start(2, [whole("w", torch.zeros(2))], {})
    gate.set()
    saver.result()
    assert find_checkpoint(tmp_path).checkpoint.read_tensor("w").tolist() == [1, 1]


def test_another_box_under_the_same_name_is_a_mistake(tmp_path):
    saver = saver_for(tmp_path)
    saver.start(1, [whole("w", torch.ones(2))], {})
    saver.result()
    with pytest.raises(AssertionError, match="w: another box"):
        saver.start(2, [whole("w", torch.ones(3))], {})


def test_ranks_save_together_and_fail_together(tmp_path, monkeypatch):
    shards = cut("w", torch.arange(12.0).reshape(4, 3), "rows", 2)

    def save(ranks):
        saver = saver_for(tmp_path, ranks, keep_last=1)
        saver.start(7, shards[ranks.rank], {"step": 7})
        return saver.result()

    reports = on_ranks(2, save)
    assert reports[0] == reports[1] and reports[0].path.name == "step-00000007"
    assert torch.equal(find_checkpoint(tmp_path).checkpoint.read_tensor("w"), torch.arange(12.0).reshape(4, 3))

    def full(path, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save_module, "write_tensors", full)
    outcomes = on_ranks(2, save)
    assert all(isinstance(outcome, SaveFailed) and "No space left" in str(outcome) for outcome in outcomes)
    assert find_checkpoint(tmp_path).checkpoint.step == 7


def test_a_mistake_of_an_engine_reaches_the_main_thread(tmp_path):
    saver = saver_for(tmp_path)
    saver.start(1, [TensorShard("w", (4,), (0,), torch.ones(3))], {})
    assert saver.wait(30) and isinstance(saver.error(), AssertionError)
    with pytest.raises(AssertionError, match=r"w: .*has 3 of 4 elements"):
        saver.result()
    assert not saver.in_flight and find_checkpoint(tmp_path).checkpoint is None

import errno
import itertools
import json
import os

import pytest

from loopcoder_train.config import UserError
from loopcoder_train.training import metrics as metrics_module
from loopcoder_train.training.metrics import Metrics, MetricsWriter, last_attempt, last_step, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write_steps(path, steps, loss):
    with MetricsWriter(path) as metrics:
        for step in steps:
            metrics.write("train", step, {"loss": loss})


def test_last_line_per_step_and_kind_wins(path):
    write_steps(path, [1, 2, 3], loss=1.0)
    write_steps(path, [3, 4], loss=2.0)
    with MetricsWriter(path) as metrics:
        metrics.write("evaluation", 3, {"loss": 9.0})
    records = read_metrics(path)
    assert [(r["kind"], r["step"], r["loss"]) for r in records] == [
        ("train", 1, 1.0),
        ("train", 2, 1.0),
        ("train", 3, 2.0),
        ("train", 4, 2.0),
        ("evaluation", 3, 9.0),
    ]
    assert [r["attempt"] for r in records] == [1, 1, 2, 2, 3]
    assert len(path.read_text().splitlines()) == 6


def test_events_are_all_kept(path):
    with MetricsWriter(path) as metrics:
        metrics.event("saved", 5, "one")
        metrics.event("saved", 5, "two")
    assert [r["message"] for r in read_metrics(path, ["event"])] == ["one", "two"]


def test_torn_last_line_is_skipped_said_and_repaired(path, caplog):
    write_steps(path, [1, 2], loss=1.0)
    os.truncate(path, path.stat().st_size - 7)
    assert [r["step"] for r in read_metrics(path)] == [1]
    assert "1 line(s) were cut off" in caplog.text
    assert last_attempt(path) == 1
    write_steps(path, [2, 3], loss=2.0)
    assert [(r["step"], r["loss"]) for r in read_metrics(path, ["train"])] == [(1, 1.0), (2, 2.0), (3, 2.0)]
    assert [r["event"] for r in read_metrics(path, ["event"])] == ["metrics_repaired"]


def test_a_whole_line_without_its_newline_is_not_lost(path):
    write_steps(path, [1, 2], loss=1.0)
    os.truncate(path, path.stat().st_size - 1)
    write_steps(path, [3], loss=1.0)
    assert [r["step"] for r in read_metrics(path, ["train"])] == [1, 2, 3]


def test_every_line_is_on_disk_at_once(path):
    metrics = MetricsWriter(path)
    metrics.write("train", 1, {"loss": 1.0})
    assert json.loads(path.read_text())["loss"] == 1.0
    metrics.close()
    metrics.close()


def test_numbers_that_json_does_not_know(path):
    with MetricsWriter(path) as metrics:
        metrics.write("train", 1, {"loss": float("nan"), "more": [float("inf"), {"x": -float("inf")}]})
    record = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert record["loss"] is None and record["more"] == [None, {"x": None}]


def test_full_disk_keeps_lines_and_writes_them_later(path, monkeypatch, caplog):
    real, room = os.write, [None]

    def write(descriptor, content):
        if room[0] is None:
            return real(descriptor, content)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(descriptor, bytes(content)[: room[0]])
        room[0] = 0
        return done

    monkeypatch.setattr(metrics_module.os, "write", write)
    metrics = MetricsWriter(path)
    metrics.write("train", 1, {"loss": 1.0})
    room[0] = 10  # the disk fills in the middle of the next line
    metrics.write("train", 2, {"loss": 1.0})
    metrics.write("train", 3, {"loss": 1.0})
    assert len(read_metrics(path)) == 1
    assert caplog.text.count("training goes on") == 1 and "cut off" not in caplog.text
    room[0] = None
    metrics.write("train", 4, {"loss": 1.0})
    metrics.close()
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4]
    assert "is written again" in caplog.text


def test_lines_lost_to_a_full_disk_are_counted(path, monkeypatch, caplog):
    def no_space(descriptor, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(metrics_module.os, "write", no_space)
    monkeypatch.setattr(metrics_module, "MAX_WAITING_LINES", 3)
    with MetricsWriter(path) as metrics:
        for step in range(5):
            metrics.write("train", step, {})
    assert "5 lines could not be written and are lost" in caplog.text


def test_last_step_of_an_attempt(path, monkeypatch):
    """The launcher tells how far the attempt came that just ended, not the one before it."""
    monkeypatch.setattr(metrics_module.time, "time", itertools.count(100.0).__next__)
    assert last_step(path, since=0.0) is None
    with MetricsWriter(path) as first:
        first.event("started", 0, "")  # at 100
        assert last_step(path, since=100.0) == 0
        for step in (1, 2, 3):
            first.write("train", step, {"loss": 1.0})
        first.event("diverged", 9, "")  # at 104; events of other kinds say nothing about finished steps
    assert last_step(path, since=100.0) == 3
    assert last_step(path, since=105.0) is None
    with MetricsWriter(path) as second:
        second.event("resumed", 2, "")
    assert last_step(path, since=105.0) == 2
    os.truncate(path, path.stat().st_size - 3)
    assert last_step(path, since=100.0) == 3


def test_a_folder_that_is_not_there_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot be opened for writing"):
        MetricsWriter(tmp_path / "missing" / "metrics.jsonl")


def test_attempt_continues_the_checkpoints(path):
    assert MetricsWriter(path, previous_attempt=4).attempt == 5


def test_other_ranks_write_nothing(tmp_path):
    with Metrics() as metrics:
        metrics.write("train", 1, {"loss": 1.0})
        metrics.event("saved", 1, "")
    assert not list(tmp_path.iterdir())


def test_no_file(path):
    with pytest.raises(FileNotFoundError):
        read_metrics(path)


def test_steps_after_the_one_that_was_resumed_from_do_not_count(tmp_path):
    """The weights that survive never took them."""
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as first:
        for step in range(1, 11):
            first.write("train", step, {"loss": float(step)})
    with MetricsWriter(path) as second:
        second.event("resumed", 5, "resumed after step 5")
        for step in (6, 7):
            second.write("train", step, {"loss": -1.0})
    assert [record["step"] for record in read_metrics(path, ["train"])] == [1, 2, 3, 4, 5, 6, 7]

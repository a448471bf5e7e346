import json

import pytest

from loopcoder_train.config import LoggingConfig, UserError, WandbMode
from loopcoder_train.training.metrics import MetricsWriter, read_metrics
from loopcoder_train.training.sinks import GuardedSink, TensorBoardSink, numbers, open_sinks, stable_wandb_id


class BrokenSink:
    """Fails in the method that it is told to, and counts calls."""

    def __init__(self, fails_in: str) -> None:
        self.fails_in, self.calls = fails_in, []

    def open(self) -> "BrokenSink":
        self._call("open")
        return self

    def write(self, record) -> None:
        self._call("write")

    def close(self, *, failed: bool) -> None:
        self._call("close")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails_in:
            raise RuntimeError(f"broken\nin {name}")


@pytest.mark.parametrize(
    ("fails_in", "calls"),
    [
        ("open", ["open"]),
        ("write", ["open", "write"]),
        ("close", ["open", "write", "write", "close"]),
        ("nothing", ["open", "write", "write", "close"]),
    ],
)
def test_a_broken_sink_is_switched_off_and_said_once(tmp_path, caplog, fails_in, calls):
    sink = BrokenSink(fails_in)
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, sinks=[GuardedSink("broken", sink.open)]) as metrics:
        metrics.write("train", 1, {"loss": 1.0})
        metrics.write("train", 2, {"loss": 1.0})
    assert sink.calls == calls
    assert len(read_metrics(path)) == 2
    assert caplog.text.count("switched off") == (fails_in != "nothing")
    if fails_in != "nothing":
        assert f"RuntimeError: broken in {fails_in}" in caplog.text


def test_an_interrupt_is_not_swallowed():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GuardedSink("x", interrupt).write({})


def test_numbers():
    record = {"kind": "train", "step": 3, "attempt": 1, "time": 1.0, "loss": 2.0, "bad": float("nan"), "text": "x"}
    assert numbers(record) == {"train/loss": 2.0}


def test_wandb_id_is_stable_before_and_after_the_first_checkpoint(tmp_path):
    first = stable_wandb_id(tmp_path, None)
    assert stable_wandb_id(tmp_path, None) == first
    assert stable_wandb_id(tmp_path, "from-checkpoint") == "from-checkpoint"
    assert stable_wandb_id(tmp_path, None) == "from-checkpoint"
    (tmp_path / "wandb_run_id").write_text("../../evil")
    with pytest.raises(UserError, match="no wandb run id"):
        stable_wandb_id(tmp_path, None)


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path, resumed_step=0)
    sink.write({"kind": "train", "step": 3, "attempt": 1, "time": 1.0, "loss": 2.0})
    sink.write({"kind": "event", "step": 3, "attempt": 1, "time": 1.0, "event": "saved", "message": "m"})
    sink.close(failed=False)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 2.0)]


def test_wandb_offline_keeps_the_id_and_sends_neither_arguments_nor_code(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--token=SECRET_ARGUMENT"])
    config = LoggingConfig(wandb=WandbMode.offline)
    for _attempt in range(2):
        sinks = open_sinks(config, tmp_path, wandb_id="abc123", resumed_step=0, run_config={"model": {"num_loops": 2}})
        with MetricsWriter(tmp_path / "metrics.jsonl", sinks=sinks) as metrics:
            metrics.write("train", 1, {"loss": 1.0})
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.name == "run-abc123.wandb" for path in files) == 2
    content = b"".join(path.read_bytes() for path in files)
    assert b"num_loops" in content and b"train/loss" in content
    assert b"SECRET_ARGUMENT" not in content
    assert not [path.name for path in files if path.suffix in (".py", ".patch", ".txt")]


def test_disabled_sinks(tmp_path):
    assert open_sinks(LoggingConfig(), tmp_path, wandb_id=None, resumed_step=0, run_config={}) == []
    assert json.dumps(numbers({"kind": "train"})) == "{}"

"""The real wandb and TensorBoard on disks that are full, read-only or gone: training's own record stays whole."""

import errno

import pytest

from loopcoder_train.config import LoggingConfig, WandbMode
from loopcoder_train.training.metrics import MetricsWriter, read_metrics
from loopcoder_train.training.sinks import GuardedSink, TensorBoardSink, open_sinks
from tests.unit.checkpoint.test_survival import small_disk

RECORDS = 400


def write_through(run_dir, sinks, records=RECORDS):
    path = run_dir / "metrics.jsonl"
    with MetricsWriter(path, sinks=sinks) as metrics:
        for step in range(1, records + 1):
            metrics.write("train", step, {"loss": 1.0 / step, "grad_norm": 2.0})
            if step % 50 == 0:
                metrics.event("saved", step, "x" * 2000)
    found = [record["step"] for record in read_metrics(path, ["train"])]
    assert found == list(range(1, records + 1)), "metrics.jsonl has every step"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_tensorboard_on_a_full_disk(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "16k") as disk:
        sink = GuardedSink("tensorboard", lambda: TensorBoardSink(disk / "tensorboard", resumed_step=0))
        write_through(tmp_path, [sink])
        assert sum(path.stat().st_size for path in disk.rglob("*") if path.is_file()) <= 16 * 1024
    assert caplog.text.count("tensorboard failed and is switched off") == 1
    assert "No space left" in caplog.text


def test_tensorboard_on_a_read_only_disk(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "1m", ",ro") as disk:
        sink = GuardedSink("tensorboard", lambda: TensorBoardSink(disk / "tensorboard", resumed_step=0))
        write_through(tmp_path, [sink])
    assert caplog.text.count("tensorboard failed and is switched off") == 1


def test_a_file_in_place_of_the_tensorboard_folder(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("mine")
    sinks = open_sinks(LoggingConfig(tensorboard=True), tmp_path, wandb_id=None, resumed_step=0, run_config={})
    write_through(tmp_path, sinks)
    assert caplog.text.count("switched off") == 1 and (tmp_path / "tensorboard").read_text() == "mine"


def test_wandb_offline_without_a_folder_that_can_be_written(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "1m", ",ro") as disk:
        config = LoggingConfig(wandb=WandbMode.offline)
        sinks = open_sinks(config, disk, wandb_id="abc123", resumed_step=0, run_config={})
        write_through(tmp_path, sinks, records=20)
    assert caplog.text.count("wandb failed and is switched off") == 1
    assert "Read-only file system" in caplog.text


UNREACHABLE = OSError(errno.ENETUNREACH, "Network is unreachable")


@pytest.mark.parametrize("error", [UNREACHABLE, SystemError("x"), TimeoutError()])
def test_wandb_online_that_cannot_be_reached(tmp_path, caplog, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("wandb.init", refuse)
    config = LoggingConfig(wandb=WandbMode.online)
    sinks = open_sinks(config, tmp_path, wandb_id="abc123", resumed_step=0, run_config={})
    write_through(tmp_path, sinks, records=20)
    assert caplog.text.count("wandb failed and is switched off") == 1

"""Weights & Biases and TensorBoard: copies of `metrics.jsonl` for other viewers. They may break; training may not.

Every sink is used through :class:`GuardedSink`. Sinks get the records of `training/metrics.py` unchanged.
"""

import logging
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loopcoder_train.config import LoggingConfig, UserError, WandbMode
from loopcoder_train.training.metrics import Record, Sink, finite

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

WANDB_ID_FILE = "wandb_run_id"
_BOOKKEEPING = ("kind", "step", "attempt", "time")


class GuardedSink:
    """A sink that is switched off by its first failure, with one line that says so.

    It is opened by the first record, so a slow or broken service costs nothing before training works.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink]) -> None:
        self._name, self._open_sink = name, open_sink
        self._sink: Sink | None = None
        self._disabled = False

    def write(self, record: Record) -> None:
        """Hand the record on, unless the sink has failed before."""
        if self._disabled:
            return
        # The one broad catch of the project: a sink runs other people's code against disks and networks, which raises
        # whatever it likes (wandb.Error, OSError, RuntimeError, protobuf and thread errors), and none of it is worth
        # a training run. Nothing of ours runs inside; KeyboardInterrupt and SystemExit pass.
        try:
            if self._sink is None:
                self._sink = self._open_sink()
            self._sink.write(record)
        except Exception as error:
            self._disable(error)

    def close(self, *, failed: bool) -> None:
        """Finish the sink; a failure here is reported like any other."""
        if self._disabled or self._sink is None:
            return
        try:
            self._sink.close(failed=failed)
        except Exception as error:  # see write
            self._disable(error)

    def _disable(self, error: Exception) -> None:
        self._disabled = True
        text = " ".join(f"{type(error).__name__}: {error}".split())
        logger.error("%s failed and is switched off; metrics.jsonl goes on (%s)", self._name, text)


class WandbSink:
    """One wandb run over all attempts: the same id is resumed. Nothing about the machine, code or arguments is sent."""

    def __init__(
        self, run_dir: Path, *, run_id: str, mode: WandbMode, project: str, config: Mapping[str, object]
    ) -> None:
        import wandb  # here: a broken installation is one more way for a sink to fail, and the import is slow

        # Where it cannot write, wandb takes a temporary folder instead and, being silent, does not say so.
        (run_dir / "wandb").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir / "wandb"):
            pass
        self._run = wandb.init(
            project=project,
            id=run_id,
            name=run_dir.name,
            dir=str(run_dir),
            resume="allow",
            config=dict(config),
            settings=private_settings(mode),
        )

    def write(self, record: Record) -> None:
        """Numbers only; steps trained again after a resume are dropped by wandb, which has their first values."""
        self._run.log(numbers(record), step=record["step"])

    def close(self, *, failed: bool) -> None:
        """Finish the run; a failed one is marked as crashed."""
        self._run.finish(exit_code=1 if failed else 0)


def private_settings(mode: WandbMode) -> "wandb.Settings":
    """wandb without arguments, code, git, requirements, console output, user or machine; a fixed program name."""
    import wandb

    program = "loopcoder_train/worker.py"
    return wandb.Settings(
        mode=mode.value,
        program=program,
        program_relpath=program,
        disable_code=True,
        save_code=False,
        disable_git=True,
        disable_job_creation=True,
        console="off",
        silent=True,
        host="",
        username="",
        email="",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


class TensorBoardSink:
    """Event files in `log_dir`; what a resumed run overwrites is purged from view."""

    def __init__(self, log_dir: Path, *, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here for the same reasons as wandb

        self._writer = SummaryWriter(str(log_dir), purge_step=resumed_step + 1 if resumed_step else None)

    def write(self, record: Record) -> None:
        """Numbers as scalars, events as text."""
        if record["kind"] == "event":
            self._writer.add_text("events", str(record["message"]), record["step"])
        for name, value in numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self, *, failed: bool) -> None:
        """Flush."""
        self._writer.close()


def numbers(record: Record) -> dict[str, float]:
    """`{"train/loss": 1.2, ...}`: the finite numbers of a record under the name of its kind."""
    return {
        f"{record['kind']}/{key}": value
        for key, value in record.items()
        if key not in _BOOKKEEPING and isinstance(value, int | float) and finite(value) is not None
    }


def stable_wandb_id(run_dir: Path, from_checkpoint: str | None) -> str:
    """The id of this run's wandb run: the checkpoint's, else the one of an attempt before any checkpoint, else new.

    Rank 0 calls this once per attempt; the id lies in `run_dir/wandb_run_id` until a checkpoint holds it.
    """
    path = run_dir / WANDB_ID_FILE
    saved = from_checkpoint
    if saved is None and path.exists():
        saved = path.read_text(encoding="utf-8").strip()
    if saved is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", saved):
        raise UserError(f"{path}: {saved[:80]!r} is no wandb run id; delete the file to start a new wandb run")
    run_id = saved or secrets.token_hex(8)
    path.write_text(run_id + "\n", encoding="utf-8")
    return run_id


def open_sinks(
    config: LoggingConfig, run_dir: Path, *, wandb_id: str | None, resumed_step: int, run_config: Mapping[str, object]
) -> list[Sink]:
    """The sinks that `config` asks for, guarded and not yet opened. `run_config` is shown in wandb: no secrets."""
    sinks: list[Sink] = []
    if config.wandb is not WandbMode.disabled:
        assert wandb_id is not None
        options = {"run_id": wandb_id, "mode": config.wandb, "project": config.wandb_project, "config": run_config}
        sinks.append(GuardedSink("wandb", lambda: WandbSink(run_dir, **options)))
    if config.tensorboard:
        log_dir = run_dir / "tensorboard"
        sinks.append(GuardedSink("tensorboard", lambda: TensorBoardSink(log_dir, resumed_step=resumed_step)))
    return sinks

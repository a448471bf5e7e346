"""`loopcoder pretrain`: check what can be checked without torch, write run.yaml, start workers or submit a job."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.segments import SegmentedStream
from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.cli.run_dir import check_init_source, checkpoints, prepare
from loopcoder_train.cli.submit import LAUNCHER_LOCK, submit
from loopcoder_train.config.launch import LaunchKind
from loopcoder_train.config.process import EXIT_USER_ERROR
from loopcoder_train.config.run import RunConfig
from loopcoder_train.runtime.lock import RunLock
from loopcoder_train.training.corpus import open_corpus
from loopcoder_train.training.metrics import METRICS_FILE, last_step
from loopcoder_train.training.token_stream import check_vocabulary, open_stream

PATHS = ("run_dir", "data.corpus_dir", "data.cache_dir", "model.init_from", "checkpoint.mirror_dir")


def run(arguments: list[str]) -> int:
    """Parse, compose, train: one run, or one per job of a sweep."""
    command = hydra_app.Command(
        name="pretrain", config_name="pretrain", schema=RunConfig, execute=pretrain, prepare=at_scale
    )
    return hydra_app.run(command, parse(arguments, paths=PATHS))


def at_scale(values: dict[str, Any]) -> None:
    """A dry run's ranks take the place of parallel.world_size; data parallelism fills up."""
    if values["dry_run"]:  # 0 has its own rule
        values["parallel"] |= {"world_size": values["dry_run"], "data_parallel_size": None}


def pretrain(config: RunConfig) -> int:
    """Train `config` on this machine and return the exit code of the workers, or submit it as a SLURM job.

    Two locks, because a launcher that was killed may leave workers for a few seconds: the launcher's is held as long
    as this process lives, the run's by whoever may write into run_dir - first this process, then rank 0.
    """
    if config.dry_run is not None:
        from loopcoder_train.cli.dry_run import dry_run_pretrain  # for dry runs only

        return dry_run_pretrain(config)
    check_corpus(config)
    check_init_source(config)
    if config.launch.kind is LaunchKind.slurm:
        return submit(config)
    with RunLock(config.run_dir, name=LAUNCHER_LOCK) as launcher_lock:
        run_yaml, previous = prepare(config, launcher_lock)
        if not config.launch.start_workers:
            print(torchrun_line(config, run_yaml))
            return 0
        from launch.local import run_workers  # imports torch

        saved = checkpoints(run_yaml.parent)
        code = run_workers(
            run_yaml,
            config.parallel.world_size,
            config.launch.max_restarts,
            Path(config.run_dir) / "logs",
            threads_per_worker=config.training.num_threads,
            progress=partial(progress, config),
        )
        if code == EXIT_USER_ERROR and previous is not None and checkpoints(run_yaml.parent) == saved:
            run_yaml.write_bytes(previous)  # the checkpoints are still those of the configuration before
        return code


def progress(config: RunConfig, since: float) -> str:
    """How far the attempt came that began at `since` (Unix seconds), as far as `metrics.jsonl` tells."""
    step = last_step(Path(config.run_dir) / METRICS_FILE, since=since)
    return f"after step {step} of {config.training.num_steps}" if step else "before its first step"


def torchrun_line(config: RunConfig, run_yaml: Path) -> str:
    """What to run on every machine; names in capitals are for the user to fill in."""
    return (
        f"written: {run_yaml}; on every machine, with run_dir and corpus on a shared file system:\n"
        "  torchrun --nnodes NODES --nproc-per-node PER_NODE --rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500 "
        f"-m loopcoder_train.worker --config {run_yaml}\n"
        f"where NODES x PER_NODE = parallel.world_size = {config.parallel.world_size}"
    )


def check_corpus(config: RunConfig) -> None:
    """The corpora exist, are whole, fit the model's vocabulary, and can give the tokens that the run asks for.

    Of a tuning run only the tokenizer counts.
    """
    if config.finetune is not None:
        with closing(open_corpus(config.data)) as corpus:
            check_vocabulary(config, corpus)
        return
    with open_stream(config) as stream:
        if config.accept_config_changes and not config.fresh:
            check_continuation(config, stream)


def check_continuation(config: RunConfig, stream: SegmentedStream) -> None:
    """The tokens that the newest checkpoint has read are those of this stream: better told before a job waits for it.

    Raises DataError. What is damaged is left to the workers, who may have an older checkpoint to go back to.
    """
    from loopcoder_train.checkpoint import CheckpointError, checkpoints_of  # imports torch

    try:
        saved = [checkpoint.state["stream"] for checkpoint in checkpoints_of(Path(config.run_dir))[-1:]]
    except CheckpointError:
        return
    for state in saved:
        stream.check_state(state)

"""`loopcoder pretrain`: check what can be checked without torch, write run.yaml, start the workers."""

from pathlib import Path

from data_pipeline.manifest import Corpus
from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.cli.run_dir import prepare
from loopcoder_train.config.errors import require
from loopcoder_train.config.run import RunConfig
from loopcoder_train.runtime.lock import RunLock

LAUNCHER_LOCK = "launcher"


def run(arguments: list[str]) -> int:
    """Parse, compose, train: one run, or one per job of a sweep."""
    command = hydra_app.Command(name="pretrain", config_name="pretrain", schema=RunConfig, execute=pretrain)
    return hydra_app.run(command, parse(arguments, paths=("run_dir", "data.corpus_dir")))


def pretrain(config: RunConfig) -> int:
    """Train `config` on this machine; returns the exit code of the workers.

    Two locks, because a launcher that was killed may leave workers for a few seconds: the launcher's is held as long
    as this process lives, the run's by whoever may write into run_dir - first this process, then rank 0.
    """
    check_corpus(config)
    with RunLock(config.run_dir, name=LAUNCHER_LOCK) as launcher_lock:
        run_yaml = prepare(config, launcher_lock)
        if not config.launch.start_workers:
            print(torchrun_line(config, run_yaml))
            return 0
        from launch.local import run_workers  # imports torch

        return run_workers(
            run_yaml,
            config.parallel.world_size,
            config.launch.max_restarts,
            Path(config.run_dir) / "logs",
            threads_per_worker=config.training.num_threads,
        )


def torchrun_line(config: RunConfig, run_yaml: Path) -> str:
    """What to run on every machine; names in capitals are for the user to fill in."""
    return (
        f"written: {run_yaml}; on every machine, with run_dir and corpus on a shared file system:\n"
        "  torchrun --nnodes NODES --nproc-per-node PER_NODE --rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500 "
        f"-m loopcoder_train.worker --config {run_yaml}\n"
        f"where NODES x PER_NODE = parallel.world_size = {config.parallel.world_size}"
    )


def check_corpus(config: RunConfig) -> None:
    """The corpus exists, is whole, and its tokens fit the model's vocabulary."""
    corpus = Corpus.open(config.data.corpus_dir)
    vocabulary = corpus.manifest.vocab_size
    corpus.close()
    require(
        vocabulary <= config.model.vocab_size,
        "model.vocab_size",
        config.model.vocab_size,
        f"must be at least {vocabulary}, the vocabulary of data.corpus_dir={config.data.corpus_dir}",
        f"set model.vocab_size={vocabulary} or more",
    )

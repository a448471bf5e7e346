"""Real runs: a small corpus from this repository's own files, and the `loopcoder` command in real processes."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.prepare.build import build_corpus
from data_pipeline.prepare.build_config import BuildConfig
from data_pipeline.prepare.documents import SourceConfig, SourceKind
from loopcoder_train.config import RunConfig
from loopcoder_train.config.io import read_run_config, write_run_config
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics

ROOT = Path(__file__).parents[2]
LOOPCODER = str(Path(sys.executable).parent / "loopcoder")
TORCHRUN = str(Path(sys.executable).parent / "torchrun")
NUM_STEPS = 12
BLOCK_TOKENS = 512  # of a block with one checksum
OPTIONS = [
    "model=debug",
    "model.vocab_size=512",
    "data.sequence_length=64",
    "data.max_repeats=1000",
    "data.shuffle_block_tokens=256",
    f"training.num_steps={NUM_STEPS}",
    "training.global_batch_size=4",
    "training.micro_batch_size=1",
    "optimizer.peak_lr=1e-3",
    "checkpoint.every_steps=4",
    "evaluation.every_steps=6",
    "evaluation.max_sequences_per_source=2",
    "telemetry.every_steps=6",
]


def make_corpus(directory: Path, seed: int = 0) -> Path:
    """Build a corpus of this repository's Python files (code) and their paragraphs of prose (text)."""
    text_file = directory.parent / f"{directory.name}-text.jsonl"
    files = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    paragraphs = [part for file in files for part in file.read_text().split("\n\n") if len(part) > 200]
    text_file.write_text("".join(json.dumps({"text": part}) + "\n" for part in paragraphs))
    config = BuildConfig(
        corpus_dir=str(directory),
        sources=[
            SourceConfig(name="own-code", kind=SourceKind.folder, path=str(ROOT / "loopcoder_train")),
            SourceConfig(name="own-text", kind=SourceKind.jsonl, path=str(text_file)),
        ],
        vocab_size=512,
        min_source_bytes=1024,
        block_tokens=BLOCK_TOKENS,
        heldout_fraction=0.05,
        seed=seed,
    )
    build_corpus(config, progress=lambda line: None)
    return directory


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """The corpus that integration tests share; those that damage one make their own copy."""
    return make_corpus(tmp_path_factory.mktemp("corpora") / "own")


@dataclass(slots=True)
class Outcome:
    """A finished command."""

    code: int
    stdout: str
    stderr: str


def command(*arguments: str) -> list[str]:
    """The `loopcoder` command line."""
    return [LOOPCODER, *arguments]


def environment() -> dict[str, str]:
    """One thread per worker: runs must not compete for the two cores, and bits must not depend on them."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def loopcoder(*arguments: str, cwd: Path = ROOT, timeout: float = 240) -> Outcome:
    """Run `loopcoder` to its end."""
    result = subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, env=environment(), timeout=timeout, check=False
    )
    return Outcome(result.returncode, result.stdout, result.stderr)


def pretrain_arguments(run_dir: Path, corpus_dir: Path, *options: str) -> list[str]:
    """`pretrain` of the small run; later options win."""
    keys = {option.partition("=")[0] for option in options}
    defaults = [option for option in OPTIONS if option.partition("=")[0] not in keys]
    return ["pretrain", "experiment=null", *defaults, f"run_dir={run_dir}", f"data.corpus_dir={corpus_dir}", *options]


def pretrain(run_dir: Path, corpus_dir: Path, *options: str) -> Outcome:
    """Run the small pretraining to its end."""
    return loopcoder(*pretrain_arguments(run_dir, corpus_dir, *options))


def run_in_turn(num_processes: int, *arguments: str | Path, timeout: float = 240) -> Outcome:
    """Runs by their run.yaml, one after the other in the same `num_processes` (runs_in_turn.py); all must succeed."""
    line = [TORCHRUN, "--standalone", "--nproc-per-node", str(num_processes), "-m", "tests.integration.runs_in_turn"]
    line += map(str, arguments)
    result = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, env=environment(), timeout=timeout, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return Outcome(result.returncode, result.stdout, result.stderr)


def base_config(folder: Path, corpus_dir: Path, *options: str) -> RunConfig:
    """The configuration of the small run on one process, as the command composes it."""
    outcome = pretrain(folder / "base", corpus_dir, "launch.start_workers=false", *options)
    assert outcome.code == 0, outcome.stderr
    return read_run_config(folder / "base" / "run.yaml")


def write_config(config: RunConfig, run_dir: Path, **changes: object) -> Path:
    """`config` with `changes` as the run.yaml of `run_dir`; returns the file."""
    run_dir.mkdir(exist_ok=True)
    write_run_config(dataclasses.replace(config, run_dir=str(run_dir), **changes), run_dir / "run.yaml")
    return run_dir / "run.yaml"


def losses(run_dir: Path) -> dict[int, float]:
    """Training loss of every step; the last attempt wins."""
    return {record["step"]: record["loss"] for record in read_metrics(run_dir / METRICS_FILE, ["train"])}


def supervised_tokens(run_dir: Path) -> dict[int, int]:
    """Tokens with a label up to every step: another token stream would have others."""
    return {r["step"]: r["supervised_tokens"] for r in read_metrics(run_dir / METRICS_FILE, ["train"])}


def logged_steps(run_dir: Path) -> list[int]:
    """Steps in the record so far, of all attempts, while the run may still be writing."""
    path = run_dir / METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and '"kind":"train"' in line]


def workers_of(pid: int) -> list[int]:
    """Processes that a launcher has started."""
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listing.stdout.split()]


def rank_of(pid: int) -> int:
    """RANK of a worker."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return int(next(value for name, _, value in (line.partition("=") for line in variables) if name == "RANK"))


def assert_one_line_error(outcome: Outcome, *said: str) -> None:
    """Exit code 2, one line on stderr without a traceback, saying what it must."""
    assert outcome.code == 2, outcome.stderr
    lines = outcome.stderr.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in outcome.stdout + outcome.stderr, outcome.stderr
    assert all(part in lines[0] for part in said), lines[0]

"""Synchronous against asynchronous saves, and loading: `make bench` runs this and rewrites
docs/benchmarks/checkpoint.md.

Two processes with 0.7 GB of state each. A round is: steps, a synchronous save, steps, an asynchronous save with steps
while it is written. Machines are noisy, so nothing is asserted here; medians and ranges over the rounds are shown.
"""

import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from loopcoder_train.checkpoint import AsyncSaver, Checkpoint, Ranks, SaveReport, find_checkpoint, save_checkpoint
from loopcoder_train.config import DataConfig, ModelConfig, ParallelConfig, Precision, RunConfig, TrainingConfig
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.megatron import MegatronEngine
from loopcoder_train.runtime import distributed
from loopcoder_train.runtime.memory import keep_freed_memory

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "benchmarks" / "checkpoint.md"
ROUNDS, STEPS, WARM_UP_STEPS, LOADS = 5, 5, 3, 3
CPU = torch.device("cpu")
TENSOR_PARALLEL = ParallelConfig(tensor_parallel_size=2, sequence_parallel=True)
DATA_PARALLEL = ParallelConfig(world_size=2, distributed_optimizer=True)
KEEP = {"keep_last": 2, "keep_every_steps": None}
T = TypeVar("T")


def run_config(parallel: ParallelConfig) -> RunConfig:
    """118 M parameters in fp32, and so few tokens that a save takes several steps."""
    model = ModelConfig(
        num_loops=2,
        num_layers=4,
        hidden_size=1024,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=32768,
        embedding_scale=0.707,
        hidden_scale=0.053,
        normalize_between_loops=True,
    )
    training = TrainingConfig(num_steps=1000, global_batch_size=2, micro_batch_size=1, precision=Precision.fp32)
    data = DataConfig(sequence_length=32)
    return RunConfig(run_dir="unused", model=model, training=training, data=data, parallel=parallel)


def batch() -> MicroBatch:
    """Random tokens in one document."""
    tokens = torch.randint(0, 32768, (1, 33), generator=torch.Generator().manual_seed(0))
    documents = torch.zeros(1, 32, dtype=torch.long)
    return MicroBatch(tokens[:, :-1], tokens[:, 1:], documents, torch.zeros(1, dtype=torch.long))


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the slowest rank, and this rank's result; all begin together."""
    dist.barrier()
    began = time.perf_counter()
    result = action()
    seconds = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds), result


@dataclasses.dataclass(slots=True)
class Round:
    """Seconds of one round."""

    step: list[float]  # without a save
    step_in_flight: list[float]
    synchronous_stall: float
    asynchronous_stall: float
    synchronous: SaveReport
    asynchronous: SaveReport
    asynchronous_total: float  # from the step until a step saw it saved


def measure_round(engine: MegatronEngine, saver: AsyncSaver, run_dir: Path, number: int) -> Round:
    """One round; the saves are those of steps 2 * number and 2 * number + 1."""

    def step() -> float:
        return timed(lambda: engine.train_step([batch(), batch()], 1e-4))[0]

    def save() -> SaveReport:
        return save_checkpoint(run_dir, 2 * number, engine.state_shards(loading=False), {}, **KEEP)

    def start() -> None:
        saver.start(2 * number + 1, engine.state_shards(loading=False), {})

    steps = [step() for _ in range(STEPS)]
    synchronous_stall, report = timed(save)
    steps += [step() for _ in range(STEPS)]
    began = time.perf_counter()
    asynchronous_stall, _ = timed(start)
    in_flight, ended = [], torch.zeros(1)
    while not ended:
        in_flight.append(step())
        ended.fill_(saver.done())
        dist.all_reduce(ended, op=dist.ReduceOp.MIN)
    total = time.perf_counter() - began
    if len(in_flight) > 1:
        in_flight.pop()  # it saw the end
    return Round(steps, in_flight, synchronous_stall, asynchronous_stall, report, saver.result(), total)


def evict(checkpoint: Checkpoint) -> None:
    """Ask the page cache to forget the files, so that a load reads the disk."""
    for path in checkpoint.path.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def load_seconds(engine: MegatronEngine, run_dir: Path) -> tuple[list[float], list[float]]:
    """Seconds of finding (with verification) and of filling the engine, one value per load."""
    finding, filling = [], []
    shards = engine.state_shards(loading=True)
    checkpoint = find_checkpoint(run_dir).checkpoint
    for _ in range(LOADS):
        evict(checkpoint)
        seconds, found = timed(partial(find_checkpoint, run_dir))
        finding.append(seconds)
        evict(checkpoint)
        filling.append(timed(partial(found.checkpoint.fill, shards))[0])
    return finding, filling


def spread(values: list[float]) -> str:
    """`median (min-max)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def measure(run_dir: Path) -> list[str]:
    """All measurements, as the lines of the page. Collective."""
    engine = MegatronEngine(run_config(TENSOR_PARALLEL), CPU)
    saver = AsyncSaver(run_dir, Ranks.for_a_thread(), **KEEP)
    for _ in range(WARM_UP_STEPS):
        engine.train_step([batch()] * 2, 1e-4)
    rounds = [measure_round(engine, saver, run_dir, number) for number in range(1, ROUNDS + 1)]
    loads = {"the same layout, TP2 + SP": load_seconds(engine, run_dir)}
    engine.close()
    del engine, saver
    other = MegatronEngine(run_config(DATA_PARALLEL), CPU)
    loads["another layout, DP2 with distributed optimizer"] = load_seconds(other, run_dir)
    other.close()
    return [*save_lines(rounds), "", *load_lines(loads, rounds[0].synchronous.total_bytes / 1e9)]


def save_lines(rounds: list[Round]) -> list[str]:
    """The table of saves. The first asynchronous save also makes the buffers, so it has a row of its own."""
    gigabytes = rounds[0].synchronous.total_bytes / 1e9

    def row(name: str, values: list[float], *, per_gigabyte: bool = True) -> str:
        share = spread([value / gigabytes for value in values]) if per_gigabyte else ""
        return f"| {name} | {spread(values)} | {share} |"

    def work(report: SaveReport) -> float:
        return report.write_seconds + report.verify_seconds + report.commit_seconds

    first, later = rounds[0], rounds[1:]
    slower = [statistics.median(r.step_in_flight) / statistics.median(r.step) for r in rounds]
    return [
        f"A checkpoint has {gigabytes:.2f} GB, half of it from each process. {ROUNDS} rounds; median (range).",
        "",
        "| | seconds | seconds per GB |",
        "|---|---|---|",
        row("synchronous save: training stands still", [r.synchronous_stall for r in rounds]),
        row("asynchronous save: training stands still", [r.asynchronous_stall for r in later]),
        row("the first one, which makes the buffers", [first.asynchronous_stall]),
        row("synchronous: write, verify, commit", [work(r.synchronous) for r in rounds]),
        row("asynchronous: the same beside training", [work(r.asynchronous) for r in rounds]),
        row("asynchronous: until training knows that it is saved", [r.asynchronous_total for r in rounds]),
        row("step without a save", [statistics.median(r.step) for r in rounds], per_gigabyte=False),
        row(
            "step while a save is in flight",
            [statistics.median(r.step_in_flight) for r in rounds],
            per_gigabyte=False,
        ),
        "",
        f"Stall, asynchronous / synchronous: "
        f"{spread([r.asynchronous_stall / r.synchronous_stall for r in later])}. "
        f"Step with a save in flight / without: {spread(slower)}, over "
        f"{sum(len(r.step_in_flight) for r in rounds)} steps in flight.",
    ]


def load_lines(loads: dict[str, tuple[list[float], list[float]]], gigabytes: float) -> list[str]:
    """The table of loads."""
    lines = ["| load into | find and verify, s per GB | fill the engine, s per GB |", "|---|---|---|"]
    for name, (finding, filling) in loads.items():
        shares = (spread([value / gigabytes for value in values]) for values in (finding, filling))
        lines.append(f"| {name} | {' | '.join(shares)} |")
    return lines


def head() -> list[str]:
    """Title, machine, versions, date, command."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core", "safetensors"))
    with Path("/proc/cpuinfo").open() as file:
        model = next((line.partition(": ")[2].strip() for line in file if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return [
        "# Checkpoints: what a save costs training, and loading",
        "",
        f"`python -m tests.benchmarks.checkpoint` (in `make bench`) on {datetime.now(UTC):%Y-%m-%d}: "
        f"{platform.machine()}, {model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB, {packages}.",
        "Two processes of one thread, TP2 + SP, 118 M parameters in fp32 with both moments. Nothing here was run on a",
        "GPU.",
        "",
    ]


def worker() -> None:
    """One of the two processes; rank 0 writes the page."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as every worker on a CPU does
    distributed.init_process_group(CPU)
    lines = measure(Path(sys.argv[2]))
    if dist.get_rank() == 0:
        notes = TARGET.read_text().split("\n## ", 1)[1:] if TARGET.exists() else []
        TARGET.write_text("\n".join([*head(), *lines]) + "\n" + "".join("\n## " + note for note in notes))
        print("\n".join(lines))
        print(f"written: {TARGET.relative_to(ROOT)}")
    distributed.destroy_process_group()


def main() -> None:
    """Start the two processes, with a temporary run folder."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        subprocess.run([*line, "tests.benchmarks.checkpoint", "worker", folder], cwd=ROOT, check=True)


if __name__ == "__main__":
    worker() if sys.argv[1:2] == ["worker"] else main()

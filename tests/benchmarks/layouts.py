"""Step times of two processes under different layouts, in turn in one job.

`make bench` runs this and rewrites the table of docs/benchmarks/layouts.md. Every process has one thread; the global
batch is the same. Rounds go A B C D A B C D ..., a new engine each time, because a process has one set of groups at a
time; ratios are taken round by round.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist

from loopcoder_train.config import DataConfig, ModelConfig, ParallelConfig, Precision, RunConfig, TrainingConfig
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.megatron import MegatronEngine

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "benchmarks" / "layouts.md"
BEGIN, END = "<!-- step times -->\n", "<!-- end -->\n"
ROUNDS, STEPS = 7, 3
SEQUENCE, MICRO_BATCH, BATCH = 512, 1, 16
LAYOUTS = {
    "DP2": {},
    "PP2": {"pipeline_parallel_size": 2},
    "TP2 + SP": {"tensor_parallel_size": 2, "sequence_parallel": True},
    "CP2": {"context_parallel_size": 2},
}


def run_config(num_loops: int, layout: str) -> RunConfig:
    """About 11 M parameters, 8 layers: large enough that passes, not Python, take the time."""
    return RunConfig(
        run_dir="unused",
        model=ModelConfig(
            num_loops=num_loops,
            num_layers=8,
            hidden_size=256,
            intermediate_size=768,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            vocab_size=4096,
            embedding_scale=0.707,
            hidden_scale=0.053,
            normalize_between_loops=True,
        ),
        training=TrainingConfig(
            num_steps=10, global_batch_size=BATCH, micro_batch_size=MICRO_BATCH, precision=Precision.fp32
        ),
        data=DataConfig(sequence_length=SEQUENCE),
        parallel=ParallelConfig(world_size=2, **LAYOUTS[layout]),
    )


def measure(num_loops: int, layout: str) -> float:
    """Seconds per step of this layout, of the slower process."""
    engine = MegatronEngine(run_config(num_loops, layout), torch.device("cpu"))
    share = BATCH // MICRO_BATCH // engine.data_parallel_size
    batches = [packed_batch(engine.data_parallel_rank * share + index) for index in range(share)]
    engine.train_step(batches, 1e-4)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(STEPS):
        engine.train_step(batches, 1e-4)
    seconds = torch.tensor([(time.perf_counter() - began) / STEPS])
    return float(engine.max_over_ranks(seconds))


def packed_batch(seed: int) -> MicroBatch:
    """Random tokens in documents of about 200 tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 4096, (MICRO_BATCH, SEQUENCE + 1), generator=generator)
    document_ids = (torch.rand(MICRO_BATCH, SEQUENCE, generator=generator) < 1 / 200).long().cumsum(1)
    return MicroBatch(tokens[:, :-1], tokens[:, 1:], document_ids, torch.zeros(MICRO_BATCH, dtype=torch.long))


def work(output: Path) -> None:
    """One process of the job: all rounds; rank 0 writes the seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for num_loops in (1, 2):
            for layout in LAYOUTS:
                seconds.setdefault(f"{num_loops} {layout}", []).append(measure(num_loops, layout))
    if dist.get_rank() == 0:
        output.write_text(json.dumps(seconds))
    dist.barrier()
    dist.destroy_process_group()


def rows(seconds: dict[str, list[float]]) -> list[str]:
    """The table: median seconds, and the ratio to DP2 round by round."""
    table = ["| R | layout | ms per step, median | / DP2, median (range) |", "|---|---|---|---|"]
    for num_loops in (1, 2):
        base = seconds[f"{num_loops} DP2"]
        for layout in LAYOUTS:
            own = seconds[f"{num_loops} {layout}"]
            ratios = [a / b for a, b in zip(own, base, strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            table.append(f"| {num_loops} | {layout} | {1e3 * statistics.median(own):.0f} | {spread} |")
    return table


def main() -> None:
    """Start the two processes, then rewrite the table between the markers of the document."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "tests.benchmarks.layouts", "--work", str(output)]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        table = rows(json.loads(output.read_text()))
    environment = (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, 2 processes of 1 thread, gloo,\n"
        f"torch {version('torch')}, megatron-core {version('megatron-core')}, fp32,\n"
        f"{BATCH} rows of {SEQUENCE} tokens in microbatches of {MICRO_BATCH}, {ROUNDS} rounds of {STEPS} steps.\n"
        "`python -m tests.benchmarks.layouts`"
    )
    print("\n".join(table))
    before, rest = TARGET.read_text().split(BEGIN)
    TARGET.write_text(before + BEGIN + "\n".join([environment, "", *table, ""]) + END + rest.split(END)[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]))
    else:
        main()

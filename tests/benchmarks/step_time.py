"""Side-by-side step times, data wait and mixture start-up: `make bench` runs this and rewrites
docs/benchmarks/step_time.md.

Machines are noisy, so nothing is asserted here and every figure is a ratio of two things measured in turn in one
process: A B A B ..., median and range of the per-round ratios.
"""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

from data_pipeline.loader import StreamLoader
from data_pipeline.manifest import Corpus
from data_pipeline.quotas import quotas_for
from data_pipeline.segments import one_segment
from data_pipeline.stream import TokenStream
from loopcoder_train.config import DataConfig, EngineKind, ModelConfig, Precision, RunConfig, TrainingConfig
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.megatron import MegatronEngine
from loopcoder_train.engines.plain import PlainEngine
from loopcoder_train.model import attention
from loopcoder_train.model.counts import attention_pairs, training_flops
from loopcoder_train.model.documents import Documents
from loopcoder_train.runtime import distributed
from loopcoder_train.runtime.memory import keep_freed_memory
from loopcoder_train.training.batch import to_micro_batch

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "benchmarks" / "step_time.md"
ROUNDS, STEPS_PER_ROUND, WARM_UP_STEPS = 9, 3, 3
CPU = torch.device("cpu")


def run_config(num_loops: int, precision: Precision, engine: EngineKind = EngineKind.plain) -> RunConfig:
    """The quick start's model and micro-batch (configs/model/tiny.yaml, configs/experiment/quickstart.yaml)."""
    model = ModelConfig(
        num_loops=num_loops,
        num_layers=4,
        hidden_size=128,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=4096,
        embedding_scale=0.707,
        hidden_scale=0.053,
        normalize_between_loops=True,
    )
    training = TrainingConfig(num_steps=1000, global_batch_size=8, micro_batch_size=8, precision=precision)
    return RunConfig(
        run_dir="unused", engine=engine, model=model, training=training, data=DataConfig(sequence_length=256)
    )


def packed_batch() -> MicroBatch:
    """Random tokens in documents of about 90 tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 4096, (8, 257), generator=generator)
    document_ids = (torch.rand(8, 256, generator=generator) < 1 / 90).long().cumsum(1)
    return MicroBatch(tokens[:, :-1], tokens[:, 1:], document_ids, torch.zeros(8, dtype=torch.long))


def in_turn(first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds per call of both, one value per round."""
    for _ in range(WARM_UP_STEPS):
        first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, seconds in zip((first, second), times, strict=True):
            started = time.perf_counter()
            for _ in range(STEPS_PER_ROUND):
                call()
            seconds.append((time.perf_counter() - started) / STEPS_PER_ROUND)
    return times


def spread(values: list[float]) -> str:
    """`median (min-max)`."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def engine_rows() -> list[str]:
    """Megatron step / plain step, and R = 2 step / R = 1 step."""
    batch, rows = packed_batch(), []
    rows += ["| what | precision | ms per step, A and B | A / B, median (range) | bound |", "|---|---|---|---|---|"]

    def step_of(engine):
        return lambda: engine.train_step([batch], 1e-4)

    for precision in Precision:
        for num_loops in (1, 2):
            engines = [kind(run_config(num_loops, precision), CPU) for kind in (MegatronEngine, PlainEngine)]
            rows.append(_row(f"Megatron / plain, R = {num_loops}", precision, "1.10", *map(step_of, engines)))
    for precision in Precision:
        configs = [run_config(num_loops, precision) for num_loops in (2, 1)]
        pairs = attention_pairs(batch.document_ids.numpy(), 64)
        two, one = (training_flops(config.model, batch.input_ids.numel(), pairs) for config in configs)
        for kind in (MegatronEngine, PlainEngine):
            engines = [kind(config, CPU) for config in configs]
            bound = f"FLOP ratio {two / one:.3f} x 1.10 = {1.1 * two / one:.3f}"
            name = f"R = 2 / R = 1, {kind.__name__}"
            rows.append(_row(name, precision, bound, *map(step_of, engines)))
    return rows


def _row(name: str, precision: Precision, bound: str, first: Callable, second: Callable) -> str:
    return _format(name, precision, bound, *in_turn(first, second))


def _format(name: str, precision: Precision, bound: str, a: list[float], b: list[float]) -> str:
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    milliseconds = f"{1e3 * statistics.median(a):.0f}, {1e3 * statistics.median(b):.0f}"
    line = f"| {name} | {precision.value} | {milliseconds} | {spread(ratios)} | {bound} |"
    print(line, flush=True)
    return line


def attention_row() -> str:
    """The bf16 attention that CPUs use, against torch's fused kernel, forward and backward."""
    shape = (8, 4, 256, 32)
    query, key, value = (torch.randn(shape, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    ids = packed_batch().document_ids
    mask = Documents.of(ids, ids).additive_mask(None, torch.bfloat16)
    upstream = torch.randn(shape, dtype=torch.bfloat16)

    def written_out() -> None:
        attention._softmax_attention(query, key, value, mask).backward(upstream)

    def fused() -> None:
        F.scaled_dot_product_attention(query, key, value, attn_mask=mask).backward(upstream)

    return _row("attention written out / fused, 8 x 4 x 256 x 32", Precision.bf16, "-", written_out, fused)


MEMORY_PROGRAM = """
import sys, time, torch
from tests.benchmarks.step_time import CPU, packed_batch, run_config
from loopcoder_train.config import Precision
from loopcoder_train.engines.plain import PlainEngine
from loopcoder_train.runtime.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()
engine, batch = PlainEngine(run_config(2, Precision.bf16), CPU), packed_batch()
for _ in range(3):
    engine.train_step([batch], 1e-4)
started = time.perf_counter()
for _ in range(8):
    engine.train_step([batch], 1e-4)
print((time.perf_counter() - started) / 8)
"""


def memory_row() -> str:
    """Freed memory kept, against given back to the kernel; fresh processes in turn."""

    def seconds(what: str) -> float:
        command = [sys.executable, "-c", MEMORY_PROGRAM, what]
        return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    kept, given_back = zip(*[(seconds("keep"), seconds("give back")) for _ in range(4)], strict=True)
    return _format("freed memory kept / given back, plain R = 2", Precision.bf16, "-", list(kept), list(given_back))


def data_wait_line(corpus_dir: Path) -> str:
    """Share of a step spent waiting for data, reading the default corpus as training does."""
    if not (corpus_dir / "manifest.json").exists():
        return f"Data wait: not measured, {corpus_dir} is missing (`loopcoder data build`)."
    corpus, config = Corpus.open(corpus_dir), run_config(2, Precision.bf16)
    plan = quotas_for(corpus.manifest, 400, sequence_length=256)
    stream = one_segment(TokenStream(corpus, plan.mixture(), 256, seed=0), 8)
    engine, waits, totals = PlainEngine(config, CPU), [], []
    with StreamLoader(stream, start_step=0, num_steps=40, micro_batch_size=8) as loader:
        for _ in range(40):
            started = time.perf_counter()
            batches = next(loader)
            waits.append(time.perf_counter() - started)
            engine.train_step([to_micro_batch(batch) for batch in batches], 1e-4)
            totals.append(time.perf_counter() - started)
    share = 100 * sum(waits[5:]) / sum(totals[5:])
    line = (
        f"Data wait: {share:.3f}% of step time over 35 steps (bound 2%; checksums, document ids and labels included)."
    )
    print(line, flush=True)
    return line


MIXTURE_PROGRAM = """
import resource, sys, time
import numpy
from data_pipeline.mixture import Mixture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
tail = [1.0 / (rank + 3) for rank in range(93)]
code = [10.3, 10.1, 9.4, 8.7, 8.3, 5.2, 5.0, 4.7, 4.0, 3.7] + [30.5 * x / sum(tail) for x in tail]
total = 18 * 10**12 // 4096
quotas = [round(total / 2 * share / sum(code)) for share in code]
mixture = Mixture(["text"] + [f"code{i}" for i in range(103)], ["text"] + ["code"] * 103, [sum(quotas)] + quotas)
opened = time.perf_counter() - started
positions = [4 * 10**9 + 1000 * i for i in range(10000)]
started = time.perf_counter()
for position in positions:
    mixture.lookup(position)
lookup = (time.perf_counter() - started) / len(positions)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(f"Mixture of {mixture.total:,} sequences (18T tokens) from 104 sources: opened in {1e3 * opened:.1f} ms, "
      f"{grown / 1024:.1f} MiB beyond imports; lookup at position 4e9: {1e6 * lookup:.2f} us "
      f"(bounds: 1 s, 100 MB, 1 ms).")
"""


def mixture_line() -> str:
    """Start-up, memory and look-up of the 18T mixture in a fresh process."""
    result = subprocess.run([sys.executable, "-c", MIXTURE_PROGRAM], capture_output=True, text=True, check=True)
    print(result.stdout.strip(), flush=True)
    return result.stdout.strip()


def main() -> None:
    """Measure and write the page."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as every worker on a CPU does
    distributed.init_process_group(CPU)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core", "numpy"))
    lines = [
        "# Step time, data wait, mixture",
        "",
        f"`make bench` on {datetime.now(UTC):%Y-%m-%d}: {platform.machine()}, one thread per engine, {packages}.",
        f"The quick start's model, micro-batch 8 x 256 tokens, packed documents, {ROUNDS} rounds of {STEPS_PER_ROUND}",
        "steps of A and B in turn in one process. Nothing here was run on a GPU.",
        "",
        *engine_rows(),
        attention_row(),
        memory_row(),
        "",
        data_wait_line(ROOT / "corpora" / "default"),
        "",
        mixture_line(),
    ]
    notes = TARGET.read_text().split("\n## ", 1)[1:] if TARGET.exists() else []
    TARGET.write_text("\n".join(lines) + "\n" + "".join("\n## " + note for note in notes))
    dist.destroy_process_group()
    print(f"written: {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    np.random.seed(0)
    main()

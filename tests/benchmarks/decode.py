"""Latency and memory of decoding with loops: `make bench` runs this and rewrites docs/benchmarks/decoding.md.

Table 1 of the PLT paper (arXiv 2510.24824) with our own decoder: a plain model, two sequential loops, PLT with two to
four loops, all of the same layers. Machines are noisy, so the five decode in turn, a few tokens each, and what counts
is the ratio to the plain model in the same round. Latency does not depend on values: weights are the initial ones, and
the caches are filled with random numbers, as if the prompt had been read elsewhere.

    python -m tests.benchmarks.decode [--device cuda] [--dtype bfloat16] [--shape wide plt_1b] [--threads N]
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from loopcoder_train.config import LoopKind, ModelConfig
from loopcoder_train.config.io import from_dict
from loopcoder_train.model import build_model
from loopcoder_train.model.counts import count_parameters, kv_cache_bytes
from loopcoder_train.model.decode import Decoder
from loopcoder_train.model.gated_attention import SharedKV
from loopcoder_train.model.kv_cache import GROWTH_POSITIONS

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "benchmarks" / "decoding.md"
ROUNDS, WARM_UP_TOKENS = 9, 2
TOKENS_PER_ROUND = {"wide": 4, "tiny": 16}  # other shapes: as wide
CONTEXTS = (512, 4096)
PAPER = {"plain": "4.8 ms", "sequential, R = 2": "9.4 ms, KV 2.0x", "PLT, R = 2": "4.9 ms, KV 1.014x"}
WIDE = ModelConfig(  # its layers do not fit into the caches of a CPU: what a token costs is reading them
    hidden_size=2048,
    intermediate_size=5632,
    num_layers=2,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=128,
    vocab_size=4096,
)


def model_shape(name: str) -> ModelConfig:
    """`wide`, or the model of configs/model/NAME.yaml."""
    if name == "wide":
        return WIDE
    return from_dict(ModelConfig, yaml.safe_load((ROOT / "configs" / "model" / f"{name}.yaml").read_text()))


def variants(shape: ModelConfig) -> dict[str, ModelConfig]:
    """Five models of the same layers, the plain one first. Scales are 1: sequential loops know no others."""
    shape = replace(shape, embedding_scale=1.0, hidden_scale=1.0, normalize_between_loops=False)
    plt = {f"PLT, R = {loops}": replace(shape, num_loops=loops) for loops in (2, 3, 4)}
    sequential = replace(shape, num_loops=2, loop_kind=LoopKind.sequential)
    return {"plain": replace(shape, num_loops=1), "sequential, R = 2": sequential} | plt


def prompt_passes(config: ModelConfig, length: int, like: Tensor) -> Iterator[tuple[Tensor, list[SharedKV]]]:
    """What R passes over one prompt of `length` tokens leave, with random values, `like` in dtype and device."""
    kv_shape = (1, length, config.num_key_value_heads, config.head_dim)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=like.dtype, device=like.device)

    for _ in range(config.num_loops):
        own = [SharedKV(random(*kv_shape), random(*kv_shape)) for _ in range(config.num_layers)]
        yield random(1, length, config.hidden_size), own


def timed(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Milliseconds per call, over `count` calls in a row; on a GPU until the last one is done."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    for _ in range(count):
        call()
    synchronize()
    return 1e3 * (time.perf_counter() - started) / count


def in_turn(calls: dict[str, Callable[[], object]], count: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds per call of each, one value per round; in every round all of them, one after the other."""
    for call in calls.values():
        timed(call, WARM_UP_TOKENS, device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(timed(call, count, device))
    return times


def spread(values: list[float]) -> str:
    """`median (min-max)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def ratios(times: dict[str, list[float]], name: str) -> list[float]:
    """Of `name` to the first of `times`, round by round."""
    return [own / first for own, first in zip(times[name], next(iter(times.values())), strict=True)]


def decode_rows(name: str, dtype: torch.dtype, device: torch.device) -> list[str]:
    """One shape: its tables, one per context."""
    models = {kind: build_model(config).to(device, dtype) for kind, config in variants(model_shape(name)).items()}
    token = torch.zeros(1, dtype=torch.long, device=device)
    lines = []
    for context in CONTEXTS:
        decoders = {kind: Decoder(model) for kind, model in models.items()}
        held = {}
        for kind, decoder in decoders.items():
            like = decoder.model.model.norm.weight
            decoder.take_over(prompt_passes(decoder.config, context, like))
            held[kind] = decoder.cache_bytes(), decoder.allocated_bytes()
            expected = kv_cache_bytes(decoder.config, context, dtype.itemsize)
            assert held[kind] == (expected, expected), f"{kind}: holds {held[kind]} bytes, the formula says {expected}"
        calls = {kind: (lambda decoder=decoder: decoder.step(token)) for kind, decoder in decoders.items()}
        times = in_turn(calls, TOKENS_PER_ROUND.get(name, TOKENS_PER_ROUND["wide"]), device)
        lines += ["", f"### {name}, {str(dtype).removeprefix('torch.')}, {context:,} tokens of context", ""]
        lines += ["| model | ms per token | / plain, same round | KV bytes | by formula | / plain |"]
        lines += ["|---|---|---|---|---|---|"]
        for kind, decoder in decoders.items():
            formula = kv_cache_bytes(decoder.config, context, dtype.itemsize)
            share = held[kind][0] / held["plain"][0]
            lines.append(
                f"| {kind} | {spread(times[kind])} | {spread(ratios(times, kind))} "
                f"| {held[kind][0]:,} | {formula:,} | {share:.3f} |"
            )
        print("\n".join(lines[-len(decoders) - 4 :]), flush=True)
    return lines


@torch.no_grad()
def matrix_row(dtype: torch.dtype, device: torch.device) -> str:
    """The MLP's matrices of `wide` alone, for 1 to 4 rows: how often torch's kernel really reads a matrix."""
    shape = (WIDE.intermediate_size, WIDE.hidden_size)
    matrices = [torch.randn(shape, dtype=dtype, device=device) for _ in range(3 * WIDE.num_layers)]
    rows = {str(count): torch.randn(count, 1, WIDE.hidden_size, dtype=dtype, device=device) for count in (1, 2, 3, 4)}
    calls = {name: (lambda x=x: [F.linear(x, matrix) for matrix in matrices]) for name, x in rows.items()}
    times = in_turn(calls, TOKENS_PER_ROUND["wide"], device)
    rate = sum(matrix.nbytes for matrix in matrices) / statistics.median(times["1"]) / 1e6
    cells = " | ".join(spread(ratios(times, name)) for name in ("2", "3", "4"))
    line = f"| {str(dtype).removeprefix('torch.')} | {spread(times['1'])}, {rate:.1f} GB/s | {cells} |"
    print(line, flush=True)
    return line


def head(options: argparse.Namespace, device: torch.device, load: float) -> list[str]:
    """What was measured, where and how."""
    where = f"threads of torch: {torch.get_num_threads()}"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    sizes = {name: count_parameters(variants(model_shape(name))["plain"]).total for name in options.shape}
    said = "; ".join(f"`{name}`: {size / 1e6:,.1f} M parameters" for name, size in sizes.items())
    command = " ".join(["python -m tests.benchmarks.decode", *sys.argv[1:]])
    return [
        "# Decoding: latency and cache of plain and looped models",
        "",
        f"`{command}` (in `make bench`) on {datetime.now(UTC):%Y-%m-%d}: {platform.machine()},",
        f"{len(os.sched_getaffinity(0))} cores, load average at the start {load:.1f}, {where}, "
        f"torch {torch.__version__}.",
        *([] if device.type == "cuda" else ["**Not run on a GPU.**"]),
        "",
        "One sequence, token after token, by `loopcoder_train/model/decode.py`. All five models have the same layers",
        f"({said}). Weights are the initial ones and the caches",
        "are filled with random numbers: latency does not depend on values. Reading the prompt is not measured.",
        f"{ROUNDS} rounds; in each every model decodes a few tokens, one model after the other. Cells are median",
        "(min-max) over the rounds. KV bytes are the memory that the decoder holds after the prompt; the run fails",
        "where it is not `kv_cache_bytes`. While decoding, a full cache of all positions grows by",
        f"{GROWTH_POSITIONS} at once, a copy that these rounds leave out.",
        "",
        "The paper (Table 1, MoE 680M/13B): "
        + "; ".join(f"{kind}: {figures}" for kind, figures in PAPER.items())
        + ".",
    ]


def main() -> None:
    """Measure and write the page; what was noted below the tables stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--shape", nargs="+", default=["wide", "tiny"], help="wide, or a file of configs/model")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU; default: as torch chooses")
    options, load = parser.parse_args(), os.getloadavg()[0]
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device, dtypes = torch.device(options.device), [getattr(torch, name) for name in options.dtype]
    lines = head(options, device, load)
    for name in options.shape:
        for dtype in dtypes:
            lines += decode_rows(name, dtype, device)
    lines += [
        "",
        "### Matrices alone",
        "",
        "The matrices of `wide`'s MLP, nothing else; rows / one row in the same round.",
        "",
    ]
    lines += ["| dtype | ms, one row | 2 rows | 3 rows | 4 rows |", "|---|---|---|---|---|"]
    lines += [matrix_row(dtype, device) for dtype in dtypes]
    notes = TARGET.read_text().split("\n## ", 1)[1:] if TARGET.exists() else []
    TARGET.write_text("\n".join(lines) + "\n" + "".join("\n## " + note for note in notes))
    print(f"written: {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

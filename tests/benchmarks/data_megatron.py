"""Our stream beside Megatron-core's GPTDataset and BlendedDataset, on the same tokens: `make bench-data` runs this.

The journey: documents of realistic lengths in 50 sources are written as Megatron's .bin/.idx and as our shards ->
start-up of both for 1e6, 1e7 and 1e8 samples, each in a process of its own (its time and peak memory are its own) ->
both readers in one process, in turns -> ratio errors -> what a longer run does to the first samples. Rewrites
docs/benchmarks/data_megatron.md. Nothing is asserted here.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.data_megatron_corpora import (
    MEGATRON_SETTINGS,
    SEQUENCE_LENGTH,
    SOURCES,
    megatron_dataset,
    our_stream,
    write_corpora,
)

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "benchmarks" / "data_megatron.md"
SAMPLES = (10**6, 10**7, 10**8)
FULL_SAMPLES = round(18e12) // 4096
READ_SAMPLES = 10**6
ROUNDS, ROUND_BATCHES, BATCH = 9, 24, 8
PREFIXES = 2_000
EXTENDED, COMPARED = (20_000, 40_000), 200


def measure_start(folder: Path, reader: str, samples: int) -> dict[str, float]:
    """CPU seconds until the first sample is there, and the peak memory of that, in a fresh process."""
    arguments = [sys.executable, "-m", "tests.benchmarks.data_megatron", "--start", reader, "--samples", str(samples)]
    line = subprocess.run([*arguments, "--folder", str(folder)], capture_output=True, text=True, check=False)
    if line.returncode:
        raise SystemExit(f"{reader}, {samples} samples: {line.stderr[-2000:]}")
    return json.loads(line.stdout.splitlines()[-1])


def start(folder: Path, reader: str, samples: int) -> None:
    """In the fresh process: open, take the first sample, print the cost as JSON."""
    if reader == "ours":
        import data_pipeline.stream  # noqa: F401  imports are not what is measured
    else:
        import megatron.core.datasets.gpt_dataset  # noqa: F401
    before, began = peak_bytes(), time.process_time()
    if reader == "ours":
        our_stream(folder, samples).read(range(1))
    else:
        megatron_dataset(folder, samples, "cheapest")[0]
    seconds = time.process_time() - began  # of this process's threads: other work on the machine does not count
    print(json.dumps({"seconds": seconds, "bytes": peak_bytes() - before}))


def peak_bytes() -> int:
    """Highest resident memory of this process so far (VmHWM: unlike ru_maxrss, not inherited from the parent)."""
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def tokens_per_second(read: Callable[[int], object], first_batch: int) -> float:
    """Per second of CPU time, of one reader, over one round of batches that it has not read before."""
    began = time.process_time()
    for batch in range(first_batch, first_batch + ROUND_BATCHES):
        read(batch * BATCH)
    return ROUND_BATCHES * BATCH * SEQUENCE_LENGTH / (time.process_time() - began)


def measure_readers(folder: Path) -> dict[str, list[float]]:
    """Tokens/s of every reader, round by round; in every round each has its turn."""
    import torch
    from torch.utils.data import default_collate

    torch.set_num_threads(1)
    stream = our_stream(folder, READ_SAMPLES)
    readers: dict[str, Callable[[int], object]] = {"ours": lambda first: stream.read(range(first, first + BATCH))}
    for setting in MEGATRON_SETTINGS:
        dataset = megatron_dataset(folder, READ_SAMPLES, setting)
        readers[setting] = lambda first, data=dataset: [data[i] for i in range(first, first + BATCH)]
    cheapest = megatron_dataset(folder, READ_SAMPLES, "cheapest")
    readers["cheapest, collated"] = lambda first: default_collate([cheapest[i] for i in range(first, first + BATCH)])
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(ROUNDS + 1):
        for name, read in readers.items():
            rate = tokens_per_second(read, number * ROUND_BATCHES)
            if number:  # the first round fills the page cache
                rates[name].append(rate)
    return rates


def ratio_errors(folder: Path) -> dict[str, tuple[float, float]]:
    """reader -> (worst |text - half|, worst source's deviation) over random prefixes, in sequences."""
    import numpy as np

    stream = our_stream(folder, READ_SAMPLES)
    names, kinds = stream.mixture.names, np.array(stream.mixture.kinds)
    quotas = np.array(stream.mixture.quotas) / READ_SAMPLES
    theirs = np.asarray(megatron_dataset(folder, READ_SAMPLES, "cheapest").dataset_index)
    # Shortest first: a prefix is short where a ratio goes wrong.
    prefixes = np.unique(np.random.default_rng(0).integers(1, READ_SAMPLES, PREFIXES))
    prefixes = np.union1d(prefixes, np.arange(1, 2_001))
    taken, errors, previous = np.zeros(len(names)), {"ours": [0.0, 0.0], "Megatron": [0.0, 0.0]}, 0
    for prefix in prefixes.tolist():
        taken += np.bincount(theirs[previous:prefix], minlength=len(names))
        previous = prefix
        for reader, counts in (("ours", np.array(stream.mixture.counts(prefix))), ("Megatron", taken)):
            worst = errors[reader]
            worst[0] = max(worst[0], abs(float(counts[kinds == "text"].sum()) - prefix / 2))
            worst[1] = max(worst[1], float(np.abs(counts - quotas * prefix).max()))
    return {reader: (worst[0], worst[1]) for reader, worst in errors.items()}


def equal_after_extension(folder: Path) -> dict[str, int]:
    """reader -> how many of the first samples a run of twice the length has in common with the shorter one."""
    import numpy as np

    short, long = (our_stream(folder, samples) for samples in EXTENDED)
    ours = zip(*(stream.read(range(COMPARED)).input_ids for stream in (short, long)), strict=True)
    datasets = [megatron_dataset(folder, samples, "cheapest") for samples in EXTENDED]
    theirs = ([np.asarray(data[i]["tokens"]) for i in range(COMPARED)] for data in datasets)
    return {
        "ours": sum(bool((a == b).all()) for a, b in ours),
        "Megatron": sum(bool((a == b).all()) for a, b in zip(*theirs, strict=True)),
    }


def start_table(starts: dict[tuple[str, int], dict[str, float]]) -> list[str]:
    """One row per number of samples; the last is measured for us, and extrapolated where Megatron builds indexes."""
    columns = ("ours", "first", "again")
    heads = ("ours", "Megatron, indexes built", "Megatron, indexes on disk")
    lines = [f"| samples | {' | '.join(heads)} |", "|---|---|---|---|"]
    for samples in SAMPLES:
        cells = [cost(**starts[column, samples]) for column in columns if (column, samples) in starts]
        lines.append(f"| {samples:.0e} | {' | '.join(cells)} |")
    factor = FULL_SAMPLES / SAMPLES[-1]
    first = cost(**{key: value * factor for key, value in starts["first", SAMPLES[-1]].items()})
    ours = cost(**starts["ours", FULL_SAMPLES])
    return [*lines, f"| 18e12 / 4096 = {FULL_SAMPLES:,} | {ours} | (linear: {first}) | not extrapolated |"]


def cost(*, seconds: float, bytes: float) -> str:
    """`1.2 s, 34 MB`."""
    size = f"{bytes / 1e9:,.1f} GB" if bytes >= 1e9 else f"{bytes / 1e6:,.0f} MB"
    return f"{seconds:,.0f} s, {size}" if seconds >= 100 else f"{seconds:.3f} s, {size}"


def reader_table(rates: dict[str, list[float]]) -> list[str]:
    """Tokens/s, and ours over theirs round by round."""
    lines = ["| reader, one process | Mtokens per CPU second | ours / this one, paired rounds |", "|---|---|---|"]
    for name, values in rates.items():
        ratios = [ours / other for ours, other in zip(rates["ours"], values, strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if name != "ours" else ""
        label = "ours: checksums, labels, document ids" if name == "ours" else f"Megatron, {name}"
        spread = f"{statistics.median(values) / 1e6:.1f} ({min(values) / 1e6:.1f}-{max(values) / 1e6:.1f})"
        lines.append(f"| {label} | {spread} | {shown} |")
    return lines


def head(load: tuple[float, float, float], facts: dict[str, Any]) -> list[str]:
    """Title, machine, versions, date, command."""
    with Path("/proc/cpuinfo").open() as file:
        model = next((line.partition(": ")[2].strip() for line in file if line.startswith("model name")), "")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core", "numpy", "xxhash"))
    return [
        "# The stream beside Megatron-core's GPTDataset and BlendedDataset",
        "",
        f"`python -m tests.benchmarks.data_megatron` (in `make bench-data`) on {datetime.now(UTC):%Y-%m-%d}: "
        f"{platform.machine()}, {model}, {len(os.sched_getaffinity(0))} cores, load average at the start "
        f"{load[0]:.1f}, {packages}.",
        f"The same {facts['documents']:,} documents, {facts['tokens']:,} tokens of 4 bytes in {len(SOURCES)} sources, "
        f"as Megatron's .bin/.idx and as our shards; samples of {SEQUENCE_LENGTH} tokens; lengths log-normal, mean "
        f"{facts['tokens'] / facts['documents']:,.0f} tokens. More samples than tokens are epochs, for both. "
        "Megatron's C++ index builder is the compiled one of its wheel.",
        "",
    ]


def measure_starts(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Everything that the first table shows; every start is a process of its own."""
    starts = {}
    for samples in SAMPLES:
        starts["first", samples] = measure_start(folder, "megatron", samples)
        starts["again", samples] = measure_start(folder, "megatron", samples)
        starts["ours", samples] = measure_start(folder, "ours", samples)
        print(samples, *(starts[column, samples] for column in ("ours", "first", "again")), flush=True)
    starts["ours", FULL_SAMPLES] = measure_start(folder, "ours", FULL_SAMPLES)
    return starts


def page(folder: Path) -> list[str]:
    """Measure everything; the lines of the page."""
    load = os.getloadavg()
    facts = write_corpora(folder)
    starts = measure_starts(folder)
    rates, errors, equal = measure_readers(folder), ratio_errors(folder), equal_after_extension(folder)
    worst = "; ".join(f"{name}: text {text:.2f}, a source {source:.2f}" for name, (text, source) in errors.items())
    same = ", ".join(f"{name} {count}" for name, count in equal.items())
    return [
        *head(load, facts),
        "## Until the first sample is there (CPU time, peak memory above the imports)",
        "",
        *start_table(starts),
        "",
        f"## Reading, {BATCH} sequences at a time, median (range) of {ROUNDS} rounds in turns",
        "",
        *reader_table(rates),
        "",
        "`pretrain`: the settings of Megatron's pretrain_gpt. `documents`: position ids and loss masks that know "
        "documents, as ours always do. `cheapest`: no attention mask, cached loss mask and positions. Files are in the "
        "page cache.",
        "",
        "## Order",
        "",
        f"Worst deviation from the shares over {PREFIXES + 2000:,} prefixes, in sequences: {worst}.",
        f"Same seed, {EXTENDED[1]:,} samples planned instead of {EXTENDED[0]:,}: of the first {COMPARED} samples are "
        f"equal: {same}. A run of ours that is extended goes on as a new segment: what was read stays as it was.",
    ]


def main() -> None:
    """Measure and write the page; or, as the child of a measurement, one start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", choices=("ours", "megatron"))
    parser.add_argument("--samples", type=int)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.start:
        start(options.folder, options.start, options.samples)
        return
    with tempfile.TemporaryDirectory() as name:
        text = "\n".join(page(Path(name))) + "\n"
    print(text)
    TARGET.write_text(text)


if __name__ == "__main__":
    main()

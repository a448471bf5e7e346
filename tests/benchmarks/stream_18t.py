"""18e12 tokens of 103 languages and a text side in sequences of 4096: start, memory, lookups, worst deviations.

`python -m tests.benchmarks.stream_18t [PREFIXES]` writes docs/benchmarks/stream_18t.md (default: 1,000,000 prefixes, a
minute). The manifest is written to a temporary folder; no token of it exists. The exact figures at fewer prefixes are
checked in tests/unit/data_pipeline/test_stream_18t.py.
"""

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from data_pipeline.manifest import TOKENIZER_FILE, Corpus, Manifest, SourceInfo, SplitInfo, canonical_json_hash
from data_pipeline.mixture import Mixture
from data_pipeline.segments import SegmentedStream, SegmentOptions
from data_pipeline.shards import ShardInfo

SEQUENCE_LENGTH, BATCH = 4096, 1024
TOTAL_TOKENS = 18 * 10**12
SHARD_TOKENS = 1 << 30
# Shares of the code tokens, in percent, as the paper gives them; 93 other languages divide the rest.
TOP_TEN = {
    "java": 10.3, "python": 10.1, "javascript": 9.4, "markdown": 8.7, "typescript": 8.3,
    "c": 5.2, "cpp": 5.0, "php": 4.7, "csharp": 4.0, "html": 3.7,
}  # fmt: skip
NUM_OTHERS = 93
TARGET = Path(__file__).parents[2] / "docs" / "benchmarks" / "stream_18t.md"
TOKENIZER = b'{"model": "none: nobody encodes here"}'


@dataclass(slots=True)
class Figures:
    """What one run of the proof found. Deviations are in sequences."""

    prefixes: int
    worst_source: float
    worst_source_name: str
    worst_side: float
    levels: int


def code_shares() -> dict[str, float]:
    """Language -> share of the code tokens: the top ten, then a tail that falls like 1 / rank^1.5."""
    left = 100 - sum(TOP_TEN.values())
    weights = [rank**-1.5 for rank in range(1, NUM_OTHERS + 1)]
    others = {f"other-{i:02d}": left * weight / sum(weights) for i, weight in enumerate(weights, start=1)}
    return TOP_TEN | others


def write_manifest(folder: Path) -> None:
    """A manifest of 104 sources whose tokens, shown at most four times, are enough for 18e12."""
    sources = [_source("web", "text", TOTAL_TOKENS // 2)]
    sources += [_source(name, "code", int(TOTAL_TOKENS * share / 200)) for name, share in code_shares().items()]
    (folder / TOKENIZER_FILE).write_bytes(TOKENIZER)
    Manifest(
        sources=sources, tokenizer_hash=canonical_json_hash(TOKENIZER, folder), tokenizer_file_sha256="0" * 64,
        vocab_size=76_800, end_of_document_id=0, dtype="uint32", block_tokens=4096,
    ).save(folder)  # fmt: skip


def _source(name: str, kind: str, tokens: int) -> SourceInfo:
    shards = [
        ShardInfo(
            file=f"shards/{name}/train-{i:05d}.tokens", num_tokens=min(SHARD_TOKENS, tokens - start),
            checksum=f"{i:016x}",
        )
        for i, start in enumerate(range(0, tokens, SHARD_TOKENS))
    ]  # fmt: skip
    train = SplitInfo(documents=tokens // 1000, bytes=3 * tokens, tokens=tokens, shards=shards)
    return SourceInfo(name=name, kind=kind, language=name, train=train)


def open_stream(folder: Path) -> SegmentedStream:
    """What a run does before its first batch: open the corpus, plan the mixture."""
    options = SegmentOptions(
        first_batch=0, planned_batches=TOTAL_TOKENS // (SEQUENCE_LENGTH * BATCH), corpus=Corpus.open(folder),
        sequence_length=SEQUENCE_LENGTH, global_batch_size=BATCH, shares=code_shares(),
    )  # fmt: skip
    return SegmentedStream.plan([options], seed=0)


PEAK = "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # kB that a process held at most


def peak_mb() -> float:
    """The most memory that this process has held."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3


def measure_start(folder: Path) -> None:
    """In a fresh process: seconds and memory from the imports to a stream that can be read."""
    imported = peak_mb()
    began = time.perf_counter()
    stream = open_stream(folder)
    seconds = time.perf_counter() - began
    opened = peak_mb()
    assert stream.segments
    print(json.dumps({"seconds": seconds, "imports_mb": imported, "opened_mb": opened}))


def start_in_fresh_process(folder: Path) -> dict[str, float]:
    """`measure_start`, where nothing else was imported or allocated, and what Python takes before any import."""
    bare = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True).stdout
    line = [sys.executable, "-m", "tests.benchmarks.stream_18t", "--start", str(folder)]
    figures = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    return figures | {"bare_mb": int(bare) / 1e3}


def worst_deviations(mixture: Mixture, prefixes: int, seed: int = 0) -> Figures:
    """The largest differences from the exact shares at random prefixes, in exact integers."""
    generator = random.Random(seed)
    total, quotas = mixture.total, mixture.quotas
    text = mixture.kinds.index("text")
    worst, where, side = 0, 0, 0
    for _ in range(prefixes):
        prefix = generator.randrange(total + 1)
        deviations = [abs(c * total - prefix * q) for c, q in zip(mixture.counts(prefix), quotas, strict=True)]
        most = max(deviations)
        if most > worst:
            worst, where = most, deviations.index(most)
        side = max(side, deviations[text])
    return Figures(prefixes, worst / total, mixture.names[where], side / total, mixture.num_levels)


def lookup_microseconds(mixture: Mixture, count: int = 200_000) -> float:
    """Time of one lookup at a random position."""
    generator = random.Random(1)
    positions = [generator.randrange(mixture.total) for _ in range(count)]
    began = time.perf_counter()
    for position in positions:
        mixture.lookup(position)
    return (time.perf_counter() - began) / count * 1e6


def main(prefixes: int) -> None:
    """Measure, write docs/benchmarks/stream_18t.md, print it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_manifest(folder)
        start = start_in_fresh_process(folder)
        stream = open_stream(folder)
        figures = worst_deviations(stream.segments[0].stream.mixture, prefixes)
        size = (folder / "manifest.json").stat().st_size
        content = page(stream, start, figures, size)
    TARGET.write_text(content)
    print(content)


def page(stream: SegmentedStream, start: dict[str, float], figures: Figures, manifest_bytes: int) -> str:
    """docs/benchmarks/stream_18t.md."""
    mixture = stream.segments[0].stream.mixture
    above = start["opened_mb"] - start["bare_mb"]
    own = start["opened_mb"] - start["imports_mb"]
    shards = sum(len(source.train.shards) for source in stream.sources().values())
    worst = f"{figures.worst_source:.3f} sequences ({figures.worst_source_name})"
    return f"""# The stream at 18T tokens

`python -m tests.benchmarks.stream_18t` (in `make bench-data`) on {datetime.now(UTC):%Y-%m-%d}: {platform.machine()},
load average {os.getloadavg()[0]:.1f}, Python {platform.python_version()}. 18e12 tokens in {len(mixture.names)}
sources, the paper's shares: {mixture.total:,} sequences of {SEQUENCE_LENGTH}. The manifest has {shards:,} shards and
{manifest_bytes / 1e6:.1f} MB; no token of them exists.

| | seen | bound |
|---|---|---|
| start: manifest, quotas, mixture | {start["seconds"]:.3f} s | 1 s |
| peak memory over a bare interpreter | {above:.1f} MB, {own:.1f} of it the stream's | 100 MB |
| lookup, {figures.levels} levels | {lookup_microseconds(mixture):.2f} us | 5 us |
| state in a checkpoint | {len(json.dumps(stream.state(4_000_000)))} bytes | 1 KB |
| worst source at {figures.prefixes:,} random prefixes | {worst} | 1.7 |
| worst text : code at these | {figures.worst_side:.3f} sequences | 0.5 |
"""


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:
        measure_start(Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)

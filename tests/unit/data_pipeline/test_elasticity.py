"""One hash of the first 24,000 sequences: the same for any ranks, batch size, read-ahead, kills and segment change."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data_pipeline.loader import StreamLoader
from data_pipeline.manifest import Corpus
from data_pipeline.segments import SegmentedStream, SegmentOptions

SEQUENCES = 24_000
FIELDS = ("input_ids", "labels", "document_ids", "source_ids")
ROW_BYTES = 8
ROOT = Path(__file__).parents[3]
_READER = (sys.executable, "-m", "tests.unit.data_pipeline.test_elasticity")


def run_of(corpus: Corpus, batch_size: int, last_batch_size: int) -> SegmentedStream:
    """24,000 sequences in two segments; the second has other shares and half the sequence length."""
    half = SEQUENCES // 2
    first = SegmentOptions(
        first_batch=0, planned_batches=half // batch_size, corpus=corpus, sequence_length=16,
        global_batch_size=batch_size, max_repeats=1e6,
    )  # fmt: skip
    second = SegmentOptions(
        first_batch=half // batch_size, planned_batches=half // last_batch_size, corpus=corpus, sequence_length=8,
        global_batch_size=last_batch_size, max_repeats=1e6, shares={"python": 0.6}, text_share=0.3,
    )  # fmt: skip
    return SegmentedStream.plan([first, second], seed=11, shuffle_block_tokens=16)


def row_hashes(batches) -> bytes:
    """8 bytes for each row of some batches: everything the model sees of it."""
    rows = []
    for batch in batches:
        for row in range(len(batch)):
            content = b"".join(np.ascontiguousarray(getattr(batch, field)[row]).tobytes() for field in FIELDS)
            rows.append(xxhash.xxh3_64_digest(content))
    return b"".join(rows)


def read(corpus: Corpus, sizes: tuple[int, int], ranks: int, micro_batch: int, prefetch: int) -> str:
    run = run_of(corpus, *sizes)
    total = run.segments[1].first_batch + run.segments[1].planned_batches
    loaders = [
        StreamLoader(
            run, start_step=0, num_steps=total, micro_batch_size=micro_batch, data_parallel_rank=rank,
            data_parallel_size=ranks, prefetch_steps=prefetch,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    digest = xxhash.xxh3_128()
    for step in zip(*loaders, strict=True):
        for micro_batches in step:
            digest.update(row_hashes(micro_batches))
    for loader in loaders:
        loader.close()
    return digest.hexdigest()


@pytest.fixture
def straight(small_corpus) -> str:
    """The hash, read position by position without a loader."""
    run = run_of(small_corpus, 8, 8)
    digest = xxhash.xxh3_128()
    for segment in run.segments:
        for start in range(0, SEQUENCES // 2, 1000):
            digest.update(row_hashes([segment.stream.read(range(start, start + 1000))]))
    return digest.hexdigest()


def test_ranks_batch_sizes_and_read_ahead_never_change_the_stream(small_corpus, straight):
    for sizes, ranks, micro_batch, prefetch in (
        ((8, 8), 1, 8, 1),
        ((16, 16), 2, 2, 3),
        ((24, 24), 4, 3, 1),
        ((8, 24), 4, 1, 3),
        ((24, 16), 2, 4, 1),
    ):
        assert read(small_corpus, sizes, ranks, micro_batch, prefetch) == straight, (sizes, ranks)


def reader(corpus_dir: str, record: str, batch_size: int, prefetch: int) -> None:
    """Read on from where the record ends. This module is a program that does so, to be killed at any moment."""
    run = run_of(Corpus.open(corpus_dir), batch_size, batch_size)
    total = run.segments[1].first_batch + run.segments[1].planned_batches
    descriptor = os.open(record, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    done = os.fstat(descriptor).st_size // (batch_size * ROW_BYTES)
    os.ftruncate(descriptor, done * batch_size * ROW_BYTES)  # what a kill left of a batch
    options = {"micro_batch_size": batch_size, "prefetch_steps": prefetch}
    with StreamLoader(run, start_step=done, num_steps=total - done, **options) as loader:
        for batches in loader:
            os.write(descriptor, row_hashes(batches))


def test_sigkill_at_random_points_and_another_batch_size_after_each(small_corpus, straight, tmp_path):
    record, chance = tmp_path / "record", random.Random(0)
    kills = 0
    for number in range(100):
        batch_size = (8, 16, 24)[number % 3]
        arguments = [str(small_corpus.directory), str(record), str(batch_size), str(1 + 2 * (number % 2))]
        process = subprocess.Popen([*_READER, *arguments], cwd=ROOT)
        before = record.stat().st_size if record.exists() else 0
        wanted = before + chance.randrange(1000, 9000) * ROW_BYTES
        while process.poll() is None and not (record.exists() and record.stat().st_size >= wanted):
            time.sleep(0.001)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        whole = record.stat().st_size // (48 * ROW_BYTES) * 48 * ROW_BYTES  # where a batch of any size may begin
        os.truncate(record, whole)
    assert process.returncode == 0 and kills >= 3
    digest = xxhash.xxh3_128(Path(record).read_bytes())
    assert digest.hexdigest() == straight


if __name__ == "__main__":
    reader(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

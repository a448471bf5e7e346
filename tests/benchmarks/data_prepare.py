"""What the preparation of a corpus costs: MB/s of one core by phase and by stage, and the core-hours of 18T tokens.

    python -m tests.benchmarks.data_prepare

One core, one task: the phases of the graph are called one after the other, as an executor calls them. The documents are
the Python environment's, code and text, and an evaluation set of 2,000 docstring-like items is looked for in them. The
stages inside `read` and `clean` are timed again, each alone, over the same documents.
"""

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.manifest import Corpus
from data_pipeline.prepare import graph
from data_pipeline.prepare.build_config import BuildConfig, content_config
from data_pipeline.prepare.decontaminate import Contamination, EvaluationSet
from data_pipeline.prepare.dedup import normalised_hash
from data_pipeline.prepare.documents import SourceConfig, SourceKind
from data_pipeline.prepare.identify import identify
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.overlap import window_hashes
from data_pipeline.prepare.redact import redact
from data_pipeline.prepare.workspace import StoredDocument, Workspace

BYTES_PER_SIDE = 8_000_000
TOKENS = 18e12
PHASES_WITHOUT_BYTES = ("clusters", "heldout", "vocabulary", "finish")


@dataclass(slots=True)
class Timed:
    """Seconds for so many bytes of text."""

    name: str
    seconds: float
    num_bytes: int

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.num_bytes / self.seconds / 1e6

    def core_hours(self, total_bytes: float) -> float:
        """Hours of one core for so many bytes."""
        return total_bytes / self.rate / 1e6 / 3600


def make_job(folder: Path) -> Job:
    """A build of one task from the Python environment."""
    items = folder / "evaluation.jsonl"
    generator = random.Random(0)
    words = [
        *("return the number of items", "that are in", "list", "and", "value", "is not equal", "to", "key", "name")
    ]
    lines = (json.dumps({"text": " ".join(generator.choices(words, k=40))}) for _ in range(2000))
    items.write_text("\n".join(lines))
    config = BuildConfig(
        corpus_dir=str(folder / "corpus"),
        sources=[
            SourceConfig(name="code", kind=SourceKind.environment_code),
            SourceConfig(name="text", kind=SourceKind.environment_text),
        ],
        tasks=1,
        max_bytes_per_side=BYTES_PER_SIDE,
        evaluation_sets=[EvaluationSet(path=str(items), fields=["text"])],
        vocab_size=16_384,
    )
    job = Job(config, Workspace(folder / "corpus.building"))
    job.workspace.corpus.mkdir(parents=True)
    job.workspace.save_plan(content_config(config))
    Contamination.from_files(config.evaluation_sets).save(job.workspace.path("contamination", 0, "npz"))
    return job


def time_phases(job: Job) -> list[Timed]:
    """Every phase of the graph, its tasks one after the other."""
    timed = []
    for phase in graph.phases_of(job):
        began = time.perf_counter()
        for task in range(phase.num_tasks(job)):
            phase.run(job, task)
        seconds = time.perf_counter() - began
        timed.append(Timed(phase.name, seconds, job.workspace.load_json("documents", 0)["bytes"]))
    return timed


def time_stages(job: Job, documents: list[StoredDocument]) -> Iterator[Timed]:
    """The stages of `read`, `clean` and `tokenise` over the documents, each alone."""
    filters, hasher, contamination = job.config.load_filters(), job.config.min_hasher(), job.contamination()
    texts = [document.text for document in documents]
    num_bytes = sum(len(text.encode()) for text in texts)

    def timed(name: str, work: Callable[[], object]) -> Timed:
        began = time.perf_counter()
        work()
        return Timed(name, time.perf_counter() - began, num_bytes)

    yield timed("language", lambda: [identify(one.name, one.text) for one in documents])
    yield timed("filters", lambda: [filters.reason(one.text, one.language, one.name) for one in documents])
    yield timed("exact hashes", lambda: [normalised_hash(text) for text in texts])
    yield timed("MinHash", lambda: [hasher.band_hashes(texts[i : i + 100]) for i in range(0, len(texts), 100)])
    yield timed("decontamination", lambda: [contamination.reason(text) for text in texts])
    yield timed("redaction", lambda: [redact(text) for text in texts])
    yield timed("overlap windows", lambda: [window_hashes(text) for text in texts])


def main() -> None:
    """Print the tables."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = make_job(folder)
        phases = time_phases(job)
        stages = list(time_stages(job, list(job.workspace.read_documents("documents", 0))))
        corpus = Corpus.open(folder / "corpus")
        _print(phases, stages, corpus)


def _print(phases: list[Timed], stages: list[Timed], corpus: Corpus) -> None:
    tokens = sum(one.train.tokens + one.heldout.tokens for one in corpus.manifest.sources)
    kept = sum(one.train.bytes + one.heldout.bytes for one in corpus.manifest.sources)
    read = phases[0].num_bytes
    total = TOKENS * kept / tokens * read / kept
    print(f"{read / 1e6:.1f} MB passed the filters, {kept / 1e6:.1f} MB kept, {kept / tokens:.2f} bytes per token")
    print(f"18T tokens at that rate: {total / 1e12:.1f} TB that pass the filters\n")
    print(f"{'phase':<18}{'seconds':>9}{'MB/s per core':>15}{'core-hours for 18T':>20}")
    for one in phases:
        is_single = one.name in PHASES_WITHOUT_BYTES
        rate, hours = ("", "") if is_single else (f"{one.rate:.1f}", f"{one.core_hours(total):,.0f}")
        print(f"{one.name:<18}{one.seconds:>9.1f}{rate:>15}{hours:>20}")
    counted = [one for one in phases if one.name not in PHASES_WITHOUT_BYTES]
    whole = Timed("all", sum(one.seconds for one in counted), read)
    print(f"{'all parallel ones':<18}{whole.seconds:>9.1f}{whole.rate:>15.1f}{whole.core_hours(total):>20,.0f}\n")
    print(f"{'stage, alone':<18}{'seconds':>9}{'MB/s per core':>15}{'core-hours for 18T':>20}")
    for one in stages:
        print(f"{one.name:<18}{one.seconds:>9.1f}{one.rate:>15.1f}{one.core_hours(total):>20,.0f}")


if __name__ == "__main__":
    main()

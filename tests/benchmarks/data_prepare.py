"""What the preparation of a corpus costs: MB/s of one core by phase and by stage, and the core-hours of 18T tokens.

    python -m tests.benchmarks.data_prepare

One core, one task: the phases of the graph are called one after the other, as an executor calls them. The documents are
the Python environment's, code and text, as rows of jsonl with a file name each, so that reading them costs what it
costs elsewhere. An evaluation set of 2,000 items is looked for in them. The stages inside `read` and `clean` are timed
again, each alone, over the same documents.
"""

import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from data_pipeline.ledger import Ledger
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
from data_pipeline.prepare.sources import read_documents
from data_pipeline.prepare.workspace import StoredDocument, Workspace

BYTES_PER_SIDE = 10_000_000
TOKENS = 18e12
SINGLE_TASKS = ("clusters", "heldout", "vocabulary", "finish")
TARGET = Path(__file__).parents[2] / "docs" / "benchmarks" / "preparation.md"


@dataclass(slots=True)
class Timed:
    """Seconds of CPU for so many bytes of text."""

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


def write_rows(folder: Path) -> list[SourceConfig]:
    """The environment's documents as jsonl: code, whose language the name tells, and text."""
    made = []
    for name, kind in (("code", SourceKind.environment_code), ("text", SourceKind.environment_text)):
        path = folder / f"{name}.jsonl"
        own = SourceConfig(name=name, kind=kind, max_bytes=BYTES_PER_SIDE)
        with path.open("w") as file:
            for document in read_documents(own, Ledger(), 1_000_000):
                file.write(json.dumps({"text": document.text, "path": document.name}) + "\n")
        named = {"name_field": "path"} if name == "code" else {}
        made.append(SourceConfig(name=name, kind=SourceKind.jsonl, path=str(path), **named))
    return made


def make_job(folder: Path) -> Job:
    """A build of one task from those rows."""
    items = folder / "evaluation.jsonl"
    generator = random.Random(0)
    words = [
        *("return the number of items", "that are in", "list", "and", "value", "is not equal", "to", "key", "name")
    ]
    lines = (json.dumps({"text": " ".join(generator.choices(words, k=40))}) for _ in range(2000))
    items.write_text("\n".join(lines))
    config = BuildConfig(
        corpus_dir=str(folder / "corpus"),
        sources=write_rows(folder),
        tasks=1,
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
        began = time.process_time()
        for task in range(phase.num_tasks(job)):
            phase.run(job, task)
        seconds = time.process_time() - began
        timed.append(Timed(phase.name, seconds, job.workspace.load_json("documents", 0)["bytes"]))
    return timed


def time_stages(job: Job, documents: list[StoredDocument]) -> Iterator[Timed]:
    """The stages of `read`, `clean` and `tokenise` over the documents, each alone."""
    filters, hasher, contamination = job.config.load_filters(), job.config.min_hasher(), job.contamination()
    texts = [document.text for document in documents]
    num_bytes = sum(len(text.encode()) for text in texts)

    def timed(name: str, work: Callable[[], object]) -> Timed:
        began = time.process_time()
        work()
        return Timed(name, time.process_time() - began, num_bytes)

    yield timed("language", lambda: [identify(one.name, one.text) for one in documents])
    yield timed("filters", lambda: [filters.reason(one.text, one.language, one.name) for one in documents])
    yield timed("exact hashes", lambda: [normalised_hash(text) for text in texts])
    yield timed("MinHash", lambda: [hasher.band_hashes(texts[i : i + 100]) for i in range(0, len(texts), 100)])
    yield timed("decontamination", lambda: [contamination.reason(text) for text in texts])
    yield timed("redaction", lambda: [redact(text) for text in texts])
    yield timed("overlap windows", lambda: [window_hashes(text) for text in texts])


def main() -> None:
    """Measure, write the page, print it."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = make_job(folder)
        phases = time_phases(job)
        stages = list(time_stages(job, list(job.workspace.read_documents("documents", 0))))
        content = page(phases, stages, Corpus.open(folder / "corpus"))
        TARGET.write_text(content)
        print(content)


def page(phases: list[Timed], stages: list[Timed], corpus: Corpus) -> str:
    """docs/benchmarks/preparation.md."""
    tokens = sum(one.train.tokens + one.heldout.tokens for one in corpus.manifest.sources)
    kept = sum(one.train.bytes + one.heldout.bytes for one in corpus.manifest.sources)
    read = phases[0].num_bytes
    total = TOKENS / tokens * read
    parallel = [one for one in phases if one.name not in SINGLE_TASKS]
    whole = Timed("**all of them**", sum(one.seconds for one in parallel), read)
    single = ", ".join(f"{one.name} {one.seconds:.1f} s" for one in phases if one.name in SINGLE_TASKS)
    return f"""# Preparing a corpus

`python -m tests.benchmarks.data_prepare` (in `make bench-data`) on {datetime.now(UTC):%Y-%m-%d}: one core of
{platform.machine()}, load average {os.getloadavg()[0]:.1f} at the end, Python {platform.python_version()}.
{read / 1e6:.1f} MB of the Python environment's code and text passed the filters, {kept / 1e6:.1f} MB are in the corpus,
{kept / tokens:.2f} bytes per token (vocabulary {corpus.manifest.vocab_size:,}). 18T tokens at that rate are
{total / 1e12:.1f} TB that pass the filters. CPU time, which other
jobs on the machine hardly change.

| phase, one task | MB/s per core | core-hours for 18T tokens |
|---|---|---|
{_rows([*parallel, whole], total)}

Single tasks: {single}; their time grows with near duplicates, held-out candidates and the
tokenizer's sample, not with all bytes.

| stage alone, same documents | MB/s per core | core-hours for 18T tokens |
|---|---|---|
{_rows(stages, total)}
"""


def _rows(timed: list[Timed], total: float) -> str:
    return "\n".join(f"| {one.name} | {one.rate:,.1f} | {one.core_hours(total):,.0f} |" for one in timed)


if __name__ == "__main__":
    main()

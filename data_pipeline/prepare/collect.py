"""Sources -> staged groups: the documents that the corpus will hold, deduplicated, one compressed file per group.

The journey of a document: read from its source -> dropped if its side (text | code) is full or it was seen before,
and the ledger says so -> appended to the staging file of its group (a language, or a text collection) together with
the hash that decides whether it is held out. What is held out is known when the group is complete. Memory holds
hashes, never texts, so the size of a source does not matter.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from data_pipeline.errors import DataError
from data_pipeline.ledger import Ledger
from data_pipeline.manifest import write_durably
from data_pipeline.mixture import KINDS
from data_pipeline.prepare.build_config import BuildConfig
from data_pipeline.prepare.dedup import SeenDocuments
from data_pipeline.prepare.documents import Document, SourceConfig
from data_pipeline.prepare.sources import read_documents, sides
from data_pipeline.prepare.split import HeldoutRule, split_hash

STAGED_FILE = "staged.json"
_PROGRESS_BYTES = 8_000_000
_STAGE_LEVEL = 1  # read once and deleted: speed matters, size hardly


@dataclass(kw_only=True, slots=True)
class StagedDocument:
    """One line of a staging file. source: of the build; split_hash: below the group's threshold means held out."""

    text: str
    name: str
    source: str
    language: str
    split_hash: int

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


@dataclass(kw_only=True, slots=True)
class StagedGroup:
    """A complete staging file (relative to the build folder) and what is in it."""

    kind: str
    name: str
    language: str
    file: str
    documents: int
    num_bytes: int
    heldout_threshold: int
    # Split hashes of candidates that overlap.py gave back to training.
    returned: list[int] = field(default_factory=list)

    def is_heldout(self, split_hash: int) -> bool:
        """Whether the document with this hash is held out."""
        return split_hash < self.heldout_threshold and split_hash not in self.returned

    def read(self, folder: Path) -> Iterator[StagedDocument]:
        """The documents in the order they were staged."""
        with (folder / self.file).open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as file:
            remainder = b""
            while chunk := file.read(1 << 20):
                *lines, remainder = (remainder + chunk).split(b"\n")
                for line in lines:
                    text, name, source, language, value = json.loads(line)
                    yield StagedDocument(text=text, name=name, source=source, language=language, split_hash=value)


class _GroupWriter:
    """The open staging file of one group."""

    def __init__(self, folder: Path, document: Document, config: BuildConfig, stack: ExitStack) -> None:
        self.kind, self.name = document.kind, document.group
        self.language = document.language if document.kind == "code" else document.group
        self.file = f"staged/{self.name}.jsonl.zst"
        self.num_bytes = 0
        self.rule = HeldoutRule(config.heldout_fraction, config.min_heldout_documents)
        raw = stack.enter_context((folder / self.file).open("wb"))
        self._file = stack.enter_context(zstandard.ZstdCompressor(level=_STAGE_LEVEL).stream_writer(raw, closefd=False))

    def add(self, document: Document, value: int) -> None:
        line = [document.text, document.name, document.source, document.language, value]
        self._file.write(json.dumps(line).encode() + b"\n")
        self.num_bytes += document.num_bytes
        self.rule.add(value, document.num_bytes)

    def finish(self) -> StagedGroup:
        return StagedGroup(
            kind=self.kind, name=self.name, language=self.language, file=self.file, num_bytes=self.num_bytes,
            documents=self.rule.documents, heldout_threshold=self.rule.threshold(),
        )  # fmt: skip


class _Collector:
    """The state of the stage: hashes seen, bytes per side, one writer per group."""

    def __init__(self, config: BuildConfig, folder: Path, ledger: Ledger, stack: ExitStack) -> None:
        self.config, self.folder, self.ledger, self.stack = config, folder, ledger, stack
        self.seen = SeenDocuments()
        self.side_bytes = dict.fromkeys(KINDS, 0)
        self.writers: dict[str, _GroupWriter] = {}

    def is_full(self, kind: str) -> bool:
        cap = self.config.max_bytes_per_side
        return cap is not None and self.side_bytes[kind] >= cap

    def take(self, document: Document) -> None:
        row = {"source": document.source, "language": document.language, "num_bytes": document.num_bytes}
        if self.is_full(document.kind):
            self.ledger.add("capped", reason=f"max_bytes_per_side reached ({document.kind})", **row)
            return
        digest, reason = self.seen.add(document.text)
        if reason is not None:
            self.ledger.add("duplicate", reason=reason, **row)
            return
        self._writer(document).add(document, split_hash(digest, self.config.seed))
        self.side_bytes[document.kind] += document.num_bytes

    def _writer(self, document: Document) -> _GroupWriter:
        if document.group not in self.writers:
            self.writers[document.group] = _GroupWriter(self.folder, document, self.config, self.stack)
        writer = self.writers[document.group]
        if writer.kind != document.kind:
            raise DataError(
                f"source {document.source!r}: its text would be named like the language {document.group!r}; rename it"
            )
        return writer


def collect(config: BuildConfig, folder: Path, ledger: Ledger, progress: Callable[[str], None]) -> list[StagedGroup]:
    """Stage every source in `folder`; groups sorted by side and name. Raises DataError for a bad or empty source."""
    (folder / "staged").mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        collector = _Collector(config, folder, ledger, stack)
        for source in config.sources:
            _collect_source(source, collector, progress)
        writers = list(collector.writers.values())
    groups = [writer.finish() for writer in writers]
    if not groups:
        raise DataError("build: no document was left after deduplication; add a source")
    return sorted(groups, key=lambda group: (KINDS.index(group.kind), group.name))


def _collect_source(source: SourceConfig, collector: _Collector, progress: Callable[[str], None]) -> None:
    ledger, reported = collector.ledger, 0
    taken: dict[str, int] = defaultdict(int)
    if all(collector.is_full(kind) for kind in sides(source)):
        ledger.note(f"{source.name}: not read, max_bytes_per_side was reached before it")
        return
    for document in read_documents(source, ledger, collector.config.max_document_bytes):
        collector.take(document)
        taken[document.kind] += document.num_bytes
        if sum(taken.values()) - reported >= _PROGRESS_BYTES:
            reported = sum(taken.values())
            progress(f"read {source.name}: {_sizes(taken)}")
        if all(collector.is_full(kind) for kind in sides(source)):
            ledger.note(
                f"{source.name}: stopped at max_bytes_per_side={collector.config.max_bytes_per_side:,}; "
                "the rest was not read"
            )
            break
    skipped, duplicate = ledger.total("skipped", source.name), ledger.total("duplicate", source.name)
    progress(
        f"read {source.name}: {_sizes(taken)}, {ledger.total('read', source.name).documents:,} documents, "
        f"{duplicate.documents:,} duplicates, {skipped.documents:,} files or rows skipped"
    )


def _sizes(taken: dict[str, int]) -> str:
    return ", ".join(f"{size / 1e6:.1f} MB {kind}" for kind, size in sorted(taken.items()))


def save_staged(folder: Path, groups: list[StagedGroup], ledger: Ledger, config_hash: str) -> None:
    """Mark the stage as done, so that a build that is stopped later does not read the sources again."""
    ledger.save(folder / "staged")
    content = {"config_hash": config_hash, "groups": [asdict(group) for group in groups]}
    write_durably(folder / STAGED_FILE, json.dumps(content, indent=1))


def load_staged(folder: Path, config_hash: str) -> tuple[list[StagedGroup], Ledger] | None:
    """What `save_staged` left for the same configuration, or None."""
    path = folder / STAGED_FILE
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_bytes())
    if content["config_hash"] != config_hash:
        return None
    return [StagedGroup(**group) for group in content["groups"]], Ledger.load(folder / "staged")

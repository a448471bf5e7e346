"""Phase 1: a task reads its part of every source and keeps what passes the filters.

The journey: source -> document with a language -> admitted by the language manifest? -> passes the filters? -> written
to `documents/`, with the hashes that the next phases compare: 128 bits of the content, 128 bits of the normalised
content (dedup.py) and the MinHash bands (near_dedup.py). Both lie sorted by hash, so that a later task reads its range
of hashes as one slice. The caps `max_bytes` and `max_bytes_per_side` are divided among the tasks; a task that reaches
its part stops reading there.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import xxhash

from data_pipeline.ledger import Ledger
from data_pipeline.prepare import sources
from data_pipeline.prepare.dedup import normalised_hash
from data_pipeline.prepare.documents import Document, Part, SourceConfig
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.workspace import DocumentWriter, DroppedWriter, StoredDocument

CONTENT_HASHES = np.dtype(
    [("high", "<u8"), ("low", "<u8"), ("exact_high", "<u8"), ("exact_low", "<u8"), ("index", "<u4")]
)
"""One row a document, sorted by the normalised hash (high, low); index: of the document in its task."""
BAND_HASHES = np.dtype([("hash", "<u8"), ("index", "<u4")])
"""One row a document and band, sorted by hash inside each band."""
_HASH_BATCH_BYTES = 4_000_000
_64_BITS = (1 << 64) - 1


def run(job: Job, task: int) -> None:
    """Read part `task` of `config.tasks` of every source."""
    config, workspace = job.config, job.workspace
    reader = _Reader(job, task)
    with (
        workspace.write_documents("documents", task) as documents,
        workspace.write_dropped("read", task) as dropped,
    ):
        counts = [reader.read(source, documents, dropped) for source in config.sources]
    reader.hashes.save(job, task)
    workspace.save_ledger("read", task, reader.ledger)
    facts = {"counts": counts, "bytes": reader.kept_bytes, "unread": reader.unread}
    workspace.save_json("documents", task, facts)


class _Reader:
    """The state of a task: bytes per side, hashes, counts."""

    def __init__(self, job: Job, task: int) -> None:
        self.config, self.task = job.config, task
        self.ledger, self.hashes = Ledger(), _Hashes(job)
        self.filters = job.config.load_filters()
        self.manifest = job.config.load_language_manifest()
        self.meter = job.meter("read", task)
        self.side_bytes: dict[str, int] = defaultdict(int)
        self.unread: list[str] = []  # sources that a cap left out

    @property
    def kept_bytes(self) -> int:
        return sum(self.side_bytes.values())

    def read(self, source: SourceConfig, documents: DocumentWriter, dropped: DroppedWriter) -> int:
        """Documents of one source that were kept."""
        count = 0
        for document in self._documents(source):
            row = {"source": document.source, "language": document.language, "num_bytes": document.num_bytes}
            stored = _stored(document)
            if self._is_full(document.kind):  # the source may still have documents of the other side
                reason = f"max_bytes_per_side reached ({document.kind})"
                self.ledger.add("capped", reason=reason, **row)
                dropped.add(stored, "capped", reason)
                continue
            reason = self._objection(document)
            if reason is not None:
                self.ledger.add("filtered", reason=reason, **row)
                dropped.add(stored, "filtered", reason)
                continue
            documents.add(stored)
            self.hashes.add(document.text, document.num_bytes)
            count += 1
            self.side_bytes[document.kind] += document.num_bytes
            self.meter.add(document.num_bytes)
        self.meter.finish()
        return count

    def _objection(self, document: Document) -> str | None:
        if self.manifest is not None and document.kind == "code" and not self.manifest.admits(document.language):
            return f"language is not in the manifest {self.manifest.name}"
        return self.filters.reason(document.text, document.language, document.name)

    def _documents(self, source: SourceConfig) -> Iterator[Document]:
        """The documents of this task's part, up to its part of the caps."""
        config, kinds = self.config, sources.sides(source)
        if all(self._is_full(kind) for kind in kinds):
            self.ledger.note(f"{source.name}: not read to its end, max_bytes_per_side was reached before it")
            self.unread.append(source.name)
            return
        part = Part(self.task, config.tasks)
        for document in sources.read_documents(source, self.ledger, config.max_document_bytes, part, self.manifest):
            yield document
            if all(self._is_full(kind) for kind in kinds):
                self.ledger.note(
                    f"{source.name}: stopped at max_bytes_per_side={config.max_bytes_per_side:,}; the rest was not read"
                )
                return

    def _is_full(self, kind: str) -> bool:
        cap = self.config.max_bytes_per_side
        return cap is not None and self.side_bytes[kind] * self.config.tasks >= cap


def _stored(document: Document) -> StoredDocument:
    return StoredDocument(
        text=document.text, name=document.name, source=document.source, language=document.language,
        kind=document.kind, group=document.group, repository=document.repository,
    )  # fmt: skip


class _Hashes:
    """The hashes of a task's documents, in memory until they are saved: about 200 bytes each."""

    def __init__(self, job: Job) -> None:
        self._min_hasher = job.config.min_hasher()
        self._content: list[tuple[int, int, int, int]] = []
        self._bands: list[np.ndarray] = []
        self._waiting: list[str] = []
        self._waiting_bytes = 0

    def add(self, text: str, num_bytes: int) -> None:
        exact, normal = xxhash.xxh3_128_intdigest(text.encode()), normalised_hash(text)
        self._content.append((normal >> 64, normal & _64_BITS, exact >> 64, exact & _64_BITS))
        self._waiting.append(text)
        self._waiting_bytes += num_bytes
        if self._waiting_bytes >= _HASH_BATCH_BYTES:
            self._hash_bands()

    def _hash_bands(self) -> None:
        if self._min_hasher is not None and self._waiting:
            self._bands.append(self._min_hasher.band_hashes(self._waiting))
        self._waiting, self._waiting_bytes = [], 0

    def save(self, job: Job, task: int) -> None:
        self._hash_bands()
        content = np.zeros(len(self._content), dtype=CONTENT_HASHES)
        for column, values in zip(CONTENT_HASHES.names[:4], zip(*self._content, strict=True), strict=False):
            content[column] = values
        content["index"] = np.arange(len(content))
        job.workspace.save_array("documents", task, "content", np.sort(content, order=("high", "low")))
        if self._min_hasher is None:
            return
        hashes = np.concatenate(self._bands or [np.empty((0, self._min_hasher.config.bands), dtype=np.uint64)])
        bands = np.zeros(hashes.T.shape, dtype=BAND_HASHES)
        bands["hash"], bands["index"] = hashes.T, np.arange(len(hashes))
        job.workspace.save_array("documents", task, "bands", np.sort(bands, axis=1, order="hash"))

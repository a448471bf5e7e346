"""Phase 9: documents -> token shards, a task each.

The journey: the documents of a task of `clean` -> batches -> the tokenizer, one thread -> every document is followed by
the end-of-document token -> the shard of its source and split. Source files of a source with FIM are encoded once per
prepared variant (fim.py). The files of a repository that is packed as a whole are put together first
(repositories.py). A task writes shards of its own; the manifest puts them one after the other.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.ledger import Ledger
from data_pipeline.manifest import SplitInfo
from data_pipeline.prepare.build_config import BuildConfig
from data_pipeline.prepare.groups import plan_sources
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.phases.heldout import load_groups
from data_pipeline.prepare.workspace import StoredDocument
from data_pipeline.shards import ShardInfo, ShardWriter, token_dtype
from data_pipeline.tokenizer import Tokenizer

_BATCH_DOCUMENTS, _BATCH_BYTES = 512, 2_000_000


def run(job: Job, task: int) -> None:
    """Encode the documents of one task."""
    writer = _Writer(job, task)
    for batch in _batches(job.workspace.read_documents("clean", task)):
        writer.write(batch)
    writer.finish()


def _batches(documents: Iterator[StoredDocument]) -> Iterator[list[StoredDocument]]:
    batch: list[StoredDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """The open shards of a task, one for every source and split that it has documents of."""

    def __init__(self, job: Job, task: int) -> None:
        self.job, self.task = job, task
        self.tokenizer = job.tokenizer()
        self.groups = load_groups(job, "vocabulary")
        planned, _ = plan_sources(list(self.groups.values()), job.config.min_source_bytes)
        self.source_of = {name: source.name for source in planned for name in source.groups}
        self.splits: dict[tuple[str, str], SplitWriter] = {}
        self.ledger, self.meter = Ledger(), job.meter("tokenise", task)

    def write(self, batch: list[StoredDocument]) -> None:
        """Encode a batch and append it to its shards."""
        encoded = self.tokenizer.encode_batch([document.text for document in batch])
        for document, ids in zip(batch, encoded, strict=True):
            group = self.groups[document.group]
            split = "heldout" if group.is_heldout(document) else "train"
            num_bytes = len(document.text.encode())
            source = self.source_of[group.name]
            self._split(source, split).add(ids, num_bytes)
            self.ledger.add(
                split, source=document.source, group=source, language=document.language,
                num_bytes=num_bytes, tokens=len(ids) + 1,
            )  # fmt: skip
            self.meter.add(num_bytes)

    def _split(self, source: str, split: str) -> "SplitWriter":
        key = source, split
        if key not in self.splits:
            self.splits[key] = SplitWriter(
                self.job.workspace.corpus, f"shards/{source}/{split}-{self.task:05d}", self.tokenizer, self.job.config
            )
        return self.splits[key]

    def finish(self) -> None:
        """Close the shards and say what they hold."""
        for writer in self.splits.values():
            writer.close()
        self.meter.finish()
        facts = [
            {"source": source, "split": split} | asdict(writer.info) for (source, split), writer in self.splits.items()
        ]
        self.job.workspace.save_json("tokenise", self.task, facts)
        self.job.workspace.save_ledger("tokenise", self.task, self.ledger)


@dataclass(slots=True)
class SplitWriter:
    """Writes one split of one source: rolls over to a new shard every `config.shard_tokens` tokens."""

    folder: Path
    prefix: str
    tokenizer: Tokenizer
    config: BuildConfig
    info: SplitInfo = field(default_factory=SplitInfo)
    _writer: ShardWriter | None = None

    def add(self, ids: list[int], num_bytes: int) -> None:
        """One document: its ids and the end-of-document token. A document may continue in the next shard."""
        tokens = np.array([*ids, self.tokenizer.end_of_document_id], dtype=np.int64)
        self.info.documents += 1
        self.info.bytes += num_bytes
        self.info.tokens += tokens.size
        while tokens.size:
            writer = self._open()
            size = min(tokens.size, self.config.shard_tokens - writer.num_tokens)
            writer.append(tokens[:size])
            tokens = tokens[size:]
            if writer.num_tokens == self.config.shard_tokens:
                self.close()

    def _open(self) -> ShardWriter:
        if self._writer is None:
            self._writer = ShardWriter(
                self.folder / f"{self.prefix}-{len(self.info.shards):05d}.tokens",
                dtype=token_dtype(self.tokenizer.vocab_size),
                block_tokens=self.config.block_tokens,
                tokenizer_hash=self.tokenizer.content_hash,
            )
        return self._writer

    def close(self) -> None:
        """Finish the open shard, if there is one."""
        if self._writer is not None:
            checksum = self._writer.close()
            file = self._writer.path.relative_to(self.folder).as_posix()
            self.info.shards.append(ShardInfo(file=file, num_tokens=self._writer.num_tokens, checksum=checksum))
            self._writer = None

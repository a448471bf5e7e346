"""Staged groups -> token shards.

The journey: groups too small to be a source of their own are put together, one per side -> the documents of a source
are encoded in batches on all cores, each followed by the end-of-document token -> ids go to the shards of `train` or
`heldout` by the document's hash -> the manifest's `SourceInfo` counts what was written, the ledger per language.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.ledger import Ledger
from data_pipeline.manifest import SPLITS, SourceInfo, SplitInfo
from data_pipeline.mixture import KINDS
from data_pipeline.prepare.build_config import BuildConfig
from data_pipeline.prepare.collect import StagedDocument, StagedGroup
from data_pipeline.shards import ShardInfo, ShardWriter, token_dtype
from data_pipeline.tokenizer import Tokenizer

_BATCH_DOCUMENTS, _BATCH_BYTES = 512, 2_000_000
# No tokenizer makes fewer tokens than this of real text: a larger group needs no counting.
_MAX_BYTES_PER_TOKEN = 16
_PROGRESS_SECONDS = 5.0


@dataclass(kw_only=True, slots=True)
class PlannedSource:
    """A source of the manifest before it is written: one staged group, or all small ones of a side."""

    name: str
    kind: str
    language: str
    groups: list[StagedGroup]


def plan_sources(
    groups: list[StagedGroup], folder: Path, tokenizer: Tokenizer, min_source_tokens: int, ledger: Ledger
) -> list[PlannedSource]:
    """Groups with at least `min_source_tokens` training tokens stand alone; two or more smaller ones are joined."""
    planned = []
    for kind in KINDS:
        members = [group for group in groups if group.kind == kind]
        small = [
            group for group in members if _train_tokens(group, folder, tokenizer, min_source_tokens) < min_source_tokens
        ]
        if len(small) < 2:
            small = []
        for group in members:
            if group not in small:
                planned.append(PlannedSource(name=group.name, kind=kind, language=group.language, groups=[group]))
        if small:
            name = f"{kind}-other"
            planned.append(PlannedSource(name=name, kind=kind, language="Others", groups=small))
            ledger.note(
                f"{name}: {len(small)} groups with fewer than {min_source_tokens:,} training tokens each: "
                + ", ".join(group.name for group in small)
            )
    return planned


def _train_tokens(group: StagedGroup, folder: Path, tokenizer: Tokenizer, min_source_tokens: int) -> float:
    """Training tokens of a small group; infinity for one that is certainly not small."""
    if group.num_bytes > _MAX_BYTES_PER_TOKEN * min_source_tokens:
        return float("inf")
    tokens = 0
    for batch in _batches(group.read(folder)):
        train = [document.text for document in batch if not group.is_heldout(document.split_hash)]
        tokens += sum(len(ids) + 1 for ids in tokenizer.encode_batch(train))
    return tokens


def _batches(documents: Iterator[StagedDocument]) -> Iterator[list[StagedDocument]]:
    batch: list[StagedDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(slots=True)
class SplitWriter:
    """Writes one split of one source: rolls over to a new shard every `shard_tokens` tokens."""

    folder: Path
    source: str
    split: str
    tokenizer: Tokenizer
    block_tokens: int
    shard_tokens: int
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
            size = min(tokens.size, self.shard_tokens - writer.num_tokens)
            writer.append(tokens[:size])
            tokens = tokens[size:]
            if writer.num_tokens == self.shard_tokens:
                self.close()

    def _open(self) -> ShardWriter:
        if self._writer is None:
            file = f"shards/{self.source}/{self.split}-{len(self.info.shards):05d}.tokens"
            self._writer = ShardWriter(
                self.folder / file,
                dtype=token_dtype(self.tokenizer.vocab_size),
                block_tokens=self.block_tokens,
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


def write_source(
    source: PlannedSource, folder: Path, tokenizer: Tokenizer, config: BuildConfig, ledger: Ledger, meter: "Meter"
) -> SourceInfo:
    """Encode one source into its shards below `folder`."""
    writers = {
        split: SplitWriter(folder, source.name, split, tokenizer, config.block_tokens, config.shard_tokens)
        for split in SPLITS
    }
    for group in source.groups:
        for batch in _batches(group.read(folder)):
            encoded = tokenizer.encode_batch([document.text for document in batch])
            for document, ids in zip(batch, encoded, strict=True):
                split = "heldout" if group.is_heldout(document.split_hash) else "train"
                num_bytes = document.num_bytes
                writers[split].add(ids, num_bytes)
                ledger.add(
                    split, source=document.source, group=source.name, language=document.language,
                    num_bytes=num_bytes, tokens=len(ids) + 1,
                )  # fmt: skip
            meter.add(sum(document.num_bytes for document in batch), source.name)
    for writer in writers.values():
        writer.close()
    return SourceInfo(
        name=source.name, kind=source.kind, language=source.language,
        train=writers["train"].info, heldout=writers["heldout"].info,
    )  # fmt: skip


class Meter:
    """Progress lines with the time left, at most one every few seconds."""

    def __init__(self, total_bytes: int, progress: Callable[[str], None]) -> None:
        self._total, self._done, self._progress = total_bytes, 0, progress
        self._began = self._said = time.monotonic()

    def add(self, num_bytes: int, what: str) -> None:
        """Count bytes that are done."""
        self._done += num_bytes
        now = time.monotonic()
        if now - self._said >= _PROGRESS_SECONDS:
            self._said = now
            left = (now - self._began) * (self._total - self._done) / self._done
            self._progress(f"tokenise {what}: {self._done / 1e6:.1f} of {self._total / 1e6:.1f} MB, {left:.0f} s left")


def tokenizer_sample(groups: list[StagedGroup], folder: Path, sample_bytes: int) -> Iterator[str]:
    """Training documents for the tokenizer: half the bytes from each side, from every group by its size."""
    for kind in KINDS:
        members = [group for group in groups if group.kind == kind]
        side_bytes = sum(group.num_bytes for group in members)
        for group in members:
            budget = sample_bytes / 2 * group.num_bytes / side_bytes
            yield from _sample(group, folder, budget)


def _sample(group: StagedGroup, folder: Path, budget: float) -> Iterator[str]:
    train = (d.text for d in group.read(folder) if not group.is_heldout(d.split_hash))
    taken = 0
    for text in train:
        if taken >= budget:
            return
        taken += len(text.encode())
        yield text

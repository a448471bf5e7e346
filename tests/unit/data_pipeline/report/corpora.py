"""Corpora that are a ledger, a manifest and no tokens: all that a report reads. Made from a list of documents."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.languages import side_of, slug, table
from data_pipeline.ledger import Ledger
from data_pipeline.manifest import TOKENIZER_FILE, Corpus, Manifest, SourceInfo, canonical_json_hash
from data_pipeline.shards import ShardInfo

_TOKENIZER = b'{"a tokenizer": "nobody encodes here"}'


@dataclass(kw_only=True, frozen=True)
class Fate:
    """A document, or `documents` alike: the stage that it ends in, and what redaction took from it before."""

    source: str
    language: str
    stage: str
    bytes: int
    tokens: int = 0
    reason: str = ""
    redacted: int = 0
    fim: int = 0  # sentinels
    documents: int = 1


def side(language: str) -> str:
    """Of languages that the table does not know, code."""
    return side_of(language) if language in table() else "code"


def save_corpus(
    directory: Path, fates: list[Fate], *, notes: tuple[str, ...] = (), build_config: dict[str, Any] | None = None
) -> Corpus:
    """Write a corpus in which the documents had these fates. `bytes` are those that were read."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TOKENIZER_FILE).write_bytes(_TOKENIZER)
    ledger, sources = Ledger(), {}
    for fate in fates:
        row = {"source": fate.source, "documents": fate.documents}
        if fate.stage == "skipped":
            ledger.add("skipped", reason=fate.reason, num_bytes=fate.bytes, **row)
            continue
        row["language"] = fate.language
        ledger.add("read", num_bytes=fate.bytes, **row)
        if fate.stage not in ("train", "heldout"):
            ledger.add(fate.stage, reason=fate.reason, num_bytes=fate.bytes, **row)
            continue
        if fate.redacted:
            ledger.add("redacted", reason=fate.reason, num_bytes=fate.redacted, **row)
        kind = side(fate.language)
        name = slug(fate.language) if kind == "code" else fate.source
        kept = fate.bytes - fate.redacted
        ledger.add(fate.stage, group=name, num_bytes=kept, tokens=fate.tokens, **row)
        if fate.fim:
            ledger.add("fim", group=name, reason="psm", tokens=fate.fim, **row)
        split = getattr(sources.setdefault(name, SourceInfo(name=name, kind=kind, language=fate.language)), fate.stage)
        split.documents += fate.documents
        split.bytes += kept
        split.tokens += fate.tokens
    for note in notes:
        ledger.note(note)
    ledger.save(directory)
    for source in sources.values():
        for name, split in (("train", source.train), ("heldout", source.heldout)):
            shard = ShardInfo(file=f"shards/{source.name}/{name}.tokens", num_tokens=split.tokens, checksum="0" * 16)
            split.shards = [shard] if split.tokens else []
    save_manifest(directory, list(sources.values()), build_config or {})
    return Corpus.open(directory)


def save_manifest(directory: Path, sources: list[SourceInfo], build_config: dict[str, Any]) -> None:
    """Write the manifest of these sources."""
    Manifest(
        sources=sources,
        tokenizer_hash=canonical_json_hash(_TOKENIZER, directory),
        tokenizer_file_sha256=hashlib.sha256(_TOKENIZER).hexdigest(),
        vocab_size=4096,
        end_of_document_id=0,
        dtype="uint16",
        block_tokens=4096,
        build_config=build_config,
    ).save(directory)


EVERY_STAGE = {
    "max_bytes_per_side": 1000, "filters": "standard", "near_duplicates": True, "evaluation_sets": ["tests"],
    "redact": True,
}  # fmt: skip
"""Options of a build that has all stages."""

FATES = [
    Fate(source="mine", language="Python", stage="train", bytes=4000, tokens=1000, documents=8, fim=24),
    Fate(source="mine", language="Python", stage="heldout", bytes=400, tokens=100, documents=2),
    Fate(source="mine", language="Python", stage="train", bytes=520, tokens=130, redacted=20, reason="email address"),
    Fate(source="mine", language="Python", stage="duplicate", bytes=800, reason="identical content", documents=3),
    Fate(source="mine", language="Python", stage="filtered", bytes=2000, reason="generated file"),
    Fate(source="mine", language="C", stage="near_duplicate", bytes=900, reason="shares most of its text"),
    Fate(source="theirs", language="C", stage="train", bytes=600, tokens=200),
    Fate(source="theirs", language="C", stage="contaminated", bytes=300, reason="humaneval"),
    Fate(source="theirs", language="", stage="skipped", bytes=70, reason="not UTF-8", documents=5),
    Fate(source="wiki", language="Text", stage="train", bytes=6000, tokens=1500, documents=4),
    Fate(source="wiki", language="Text", stage="capped", bytes=1000, reason="max_bytes_per_side reached (text)"),
    Fate(source="wiki", language="Lua", stage="filtered", bytes=490, reason="generated file"),
]
"""Every stage once; Lua is read and nothing of it is kept."""

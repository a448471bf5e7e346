"""Phase 10, a single task: what the tasks counted and wrote becomes one ledger and one manifest, written last;
then one rename puts the corpus in its place."""

import hashlib
from typing import Any

from data_pipeline.ledger import Ledger
from data_pipeline.manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest, SourceInfo, SplitInfo
from data_pipeline.prepare.groups import plan_sources
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.phases.heldout import load_groups
from data_pipeline.prepare.phases.tokenise import HELDOUT, TRAIN
from data_pipeline.shards import ShardInfo, token_dtype


def run(job: Job, task: int) -> None:
    """Ledger, then manifest; a single task."""
    ledger = Ledger()
    for part in job.workspace.ledgers():
        ledger.merge(part)
    groups = load_groups(job, "vocabulary")
    planned, notes = plan_sources(list(groups.values()), job.config.min_source_bytes)
    for note in notes:
        ledger.note(note)
    ledger.balance()
    parts = [entry for part in range(job.config.tasks) for entry in job.workspace.load_json("tokenise", part)]
    sources = [
        SourceInfo(
            name=source.name, kind=source.kind, language=source.language,
            train=_joined(parts, source.name, TRAIN), heldout=_joined(parts, source.name, HELDOUT),
            variants=_variants(parts, source.name),
        )
        for source in planned
    ]  # fmt: skip
    folder = job.workspace.corpus
    ledger.save(folder)
    manifest = _manifest(job, sources)
    manifest.check(folder / MANIFEST_FILE)
    manifest.save(folder)
    job.workspace.move_in_place()


def _variants(parts: list[dict[str, Any]], source: str) -> list[SplitInfo]:
    """The prepared variants after the first."""
    last = max((part["variant"] for part in parts if part["source"] == source), default=0)
    return [_joined(parts, source, TRAIN, variant) for variant in range(1, last + 1)]


def _joined(parts: list[dict[str, Any]], source: str, split: str, variant: int = 0) -> SplitInfo:
    """The shards of all tasks, one after the other."""
    joined = SplitInfo()
    for part in parts:
        if (part["source"], part["split"], part["variant"]) == (source, split, variant):
            joined.documents += part["documents"]
            joined.bytes += part["bytes"]
            joined.tokens += part["tokens"]
            joined.shards += [ShardInfo(**shard) for shard in part["shards"]]
    return joined


def _manifest(job: Job, sources: list[SourceInfo]) -> Manifest:
    config, path = job.config, job.workspace.corpus / TOKENIZER_FILE
    tokenizer = job.tokenizer()
    return Manifest(
        sources=sources,
        tokenizer_hash=tokenizer.content_hash,
        tokenizer_file_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        vocab_size=tokenizer.vocab_size,
        end_of_document_id=tokenizer.end_of_document_id,
        dtype=token_dtype(tokenizer.vocab_size).name,
        block_tokens=config.block_tokens,
        heldout={
            "by": "lowest hashes of (seed, content with case, numbers and white space normalised)",
            "fraction": config.heldout_fraction,
            "min_documents": config.min_heldout_documents,
            "max_overlap": config.max_heldout_overlap,
            "documents": sum(source.heldout.documents for source in sources),
        },
        build_config=job.workspace.load_plan(),
    )

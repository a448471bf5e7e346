"""What a corpus is made of: the options of `loopcoder data build` and their rules."""

import dataclasses
import enum
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.encoders import Encoder
from data_pipeline.errors import DataError
from data_pipeline.language_manifest import LanguageManifest, load_manifest
from data_pipeline.prepare.decontaminate import EvaluationSet
from data_pipeline.prepare.documents import SourceConfig
from data_pipeline.prepare.executor_config import ExecutorConfig
from data_pipeline.prepare.filters import Filters, load_filters
from data_pipeline.prepare.fim import FimConfig
from data_pipeline.prepare.near_dedup import MinHasher, NearDedupConfig
from data_pipeline.prepare.repositories import RepositoryConfig
from data_pipeline.tokenizer import END_OF_DOCUMENT, MIN_VOCAB_SIZE

# Where a corpus lies and whether it may be replaced does not change what is in it.
_NOT_CONTENT = ("corpus_dir", "overwrite", "executor", "encoder")


@dataclass(kw_only=True, slots=True)
class BuildConfig:
    """What a corpus is made of. Sizes in bytes, tokens or documents, as the names say."""

    corpus_dir: str
    sources: list[SourceConfig] = field(default_factory=list)
    tasks: int = 4  # parts of the work; decides the order of the documents, so it belongs to the corpus
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)  # who does the tasks; never the result
    language_manifest: str = ""  # a name or a file: languages that are admitted as code; empty: every known one
    filters: str = "default"  # a name or a file of thresholds per language; none: every document passes
    near_duplicates: bool = True  # drop them
    near_dedup: NearDedupConfig = field(default_factory=NearDedupConfig)
    near_hash_ranges: int = 1  # tasks for each band
    evaluation_sets: list[EvaluationSet] = field(default_factory=list)  # what training must not have seen
    redact: bool = True  # secrets and personal data
    vocab_size: int = 4096
    tokenizer_path: str = ""  # an existing tokenizer.json; empty: train one of vocab_size
    end_of_document_token: str = END_OF_DOCUMENT  # of that tokenizer
    tokenizer_sample_bytes: int = 8_000_000
    max_document_bytes: int = 1_000_000
    max_bytes_per_side: int | None = None
    heldout_fraction: float = 0.01  # of the bytes of each language or text collection
    min_heldout_documents: int = 8  # of each; never more than a tenth of it
    max_heldout_overlap: float = 0.3  # share of a held-out document that training may contain
    encoder: Encoder = Encoder.gigatoken  # the same ids either way; huggingface is the slower reference
    fim: FimConfig = field(default_factory=lambda: FimConfig(rate=0.0))  # fill-in-the-middle
    variants: int = 1  # of every source with fill-in-the-middle, for its epochs
    repositories: RepositoryConfig = field(default_factory=RepositoryConfig)  # of sources with packing=repository
    min_source_bytes: int = 200_000  # smaller languages are grouped as code-other
    block_tokens: int = 4096  # one checksum each
    shard_tokens: int = 1 << 27
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.corpus_dir:
            raise DataError("corpus_dir: is empty; name the folder of the corpus")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise DataError(f"sources: the name {repeated!r} appears twice; names must differ")
        if not self.tokenizer_path and self.vocab_size < MIN_VOCAB_SIZE:
            raise DataError(f"vocab_size={self.vocab_size}: must be >= {MIN_VOCAB_SIZE} (bytes and sentinels)")
        if not 0 <= self.heldout_fraction <= 0.1:
            raise DataError(f"heldout_fraction={self.heldout_fraction}: must be between 0 and 0.1")
        if not 0 <= self.max_heldout_overlap <= 1:
            raise DataError(f"max_heldout_overlap={self.max_heldout_overlap}: must be between 0 and 1")
        if self.variants > 1 and not self.fim.rate:
            raise DataError(f"variants={self.variants}: they differ by fill-in-the-middle; set fim.rate, or variants=1")
        for option, least in _LEAST.items():
            value = getattr(self, option)
            if value is not None and value < least:
                raise DataError(f"{option}={value}: must be >= {least}")

    def load_filters(self) -> Filters:
        """The filters that `filters` names."""
        return load_filters(self.filters)

    def load_language_manifest(self) -> LanguageManifest | None:
        """The languages that are admitted as code; None for all."""
        return load_manifest(self.language_manifest) if self.language_manifest else None

    def min_hasher(self) -> MinHasher | None:
        """What finds near duplicates; None when they are kept."""
        return MinHasher(self.near_dedup) if self.near_duplicates else None


_LEAST = {
    "tasks": 1, "variants": 1, "near_hash_ranges": 1, "tokenizer_sample_bytes": 1, "max_document_bytes": 1,
    "max_bytes_per_side": 1, "min_heldout_documents": 0, "min_source_bytes": 0, "block_tokens": 1, "shard_tokens": 1,
}  # fmt: skip


def content_config(config: BuildConfig) -> dict[str, Any]:
    """The options that decide what a corpus holds, as JSON values, with hashes of the files that they name."""

    def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value.name if isinstance(value, enum.Enum) else value for key, value in items}

    content = dataclasses.asdict(config, dict_factory=plain)
    own = {key: value for key, value in content.items() if key not in _NOT_CONTENT}
    return own | {"input_hashes": _input_hashes(config)}


def _input_hashes(config: BuildConfig) -> dict[str, str]:
    """What the files that options name hold. Raises DataError for one that is missing or wrong."""
    hashes = {"filters": config.load_filters().content_hash}
    if (manifest := config.load_language_manifest()) is not None:
        hashes["language_manifest"] = hashlib.sha256(repr(manifest).encode()).hexdigest()
    paths = [evaluation.path for evaluation in config.evaluation_sets]
    for path in [*paths, *([config.tokenizer_path] if config.tokenizer_path else [])]:
        try:
            with Path(path).open("rb") as file:
                hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    return hashes

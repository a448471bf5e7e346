"""Phase 9: documents -> token shards, a task each.

The journey: the documents of a task of `clean`, file by file or repository by repository -> the tokenizer, one thread
-> fill-in-the-middle for training documents that it applies to, once per prepared variant (fim.py) -> the files of a
repository that is packed are put together (repositories.py) -> every document is followed by the end-of-document token
-> the shard of its source, split and variant. Held-out documents stay as they are. A task writes shards of its own; the
manifest puts them one after the other.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.ledger import Ledger
from data_pipeline.manifest import SplitInfo
from data_pipeline.prepare.build_config import BuildConfig
from data_pipeline.prepare.fim import EncodedDocument, Fim
from data_pipeline.prepare.groups import plan_sources
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.phases.heldout import load_groups
from data_pipeline.prepare.references import RepositoryFile
from data_pipeline.prepare.repositories import pack_repository
from data_pipeline.prepare.workspace import StoredDocument
from data_pipeline.shards import ShardInfo, ShardWriter, token_dtype
from data_pipeline.tokenizer import Tokenizer

TRAIN, HELDOUT = "train", "heldout"
_FIM_SENTINELS = 3  # of a transformed document
_PARITY_DOCUMENTS = 5  # of every language in a task; a difference would change the corpus silently


def run(job: Job, task: int) -> None:
    """Encode the documents of one task."""
    writer = _Writer(job, task)
    writer.check_parity()
    documents = job.workspace.read_documents("clean", task)
    for (_, repository), files in itertools.groupby(documents, key=lambda one: (one.source, one.repository)):
        if repository:
            writer.write_repository(repository, list(files))
        else:
            for document in files:
                writer.write_document(document)
    writer.finish()


class _Writer:
    """The open shards of a task, one for every source, split and variant that it has documents of."""

    def __init__(self, job: Job, task: int) -> None:
        self.job, self.task, self.config = job, task, job.config
        self.tokenizer = job.tokenizer()
        self.fim = Fim(job.config.fim, self.tokenizer)
        self.groups = load_groups(job, "vocabulary")
        planned, _ = plan_sources(list(self.groups.values()), job.config.min_source_bytes)
        self.source_of = {name: source.name for source in planned for name in source.groups}
        self.has_variants = {
            source.name: any(self.fim.applies_to(source.kind, self.groups[name].language) for name in source.groups)
            for source in planned
        }
        self.shards: dict[tuple[str, str, int], SplitWriter] = {}
        self.ledger, self.meter = Ledger(), job.meter("tokenise", task)

    def check_parity(self) -> None:
        """The encoder gives the ids of the reference on the first documents of every language, or a DataError."""
        seen: dict[str, int] = {}

        def sample() -> Iterator[tuple[str, str]]:
            for document in self.job.workspace.read_documents("samples", self.task):
                seen[document.language] = seen.get(document.language, 0) + 1
                if seen[document.language] <= _PARITY_DOCUMENTS:
                    yield document.document_id, document.text

        self.tokenizer.check_parity(sample())

    def write_document(self, document: StoredDocument) -> None:
        """Encode a document and append it to its shards."""
        split = self._split_of(document)
        for variant in range(self._num_variants(document, split)):
            encoded = self._encode(document, split, variant)
            self._append(document, split, variant, encoded.ids)
            if variant == 0:
                self._count(document, split, encoded, len(encoded.ids) + 1)

    def write_repository(self, name: str, documents: list[StoredDocument]) -> None:
        """Encode the files of a repository and append the packed documents."""
        split = self._split_of(documents[0])
        files = [
            RepositoryFile(path=one.name.removeprefix(f"{name}/"), text=one.text, language=one.language)
            for one in documents
        ]
        for variant in range(self._num_variants(documents[0], split)):
            encoded = [self._encode(one, split, variant) for one in documents]
            contents = [one.ids for one in encoded]
            packed = pack_repository(name, files, contents, self.tokenizer, self.config.repositories)
            sizes = {number: len(one.ids) for number, one in enumerate(encoded)}
            for pack in packed.documents:
                # Name, paths and end belong to the first file of a pack: the ledger counts every token once.
                own = sum(sizes[number] for number in pack.files)
                sizes[pack.files[0]] += len(pack.ids) + 1 - own
                num_bytes = sum(len(documents[number].text.encode()) for number in pack.files)
                self._shard(documents[0], split, variant).add(pack.ids, num_bytes)
            if variant == 0:
                for number, (one, ids) in enumerate(zip(documents, encoded, strict=True)):
                    self._count(one, split, ids, sizes[number])
                for number in packed.oversized:
                    self.ledger.note(
                        f"{documents[number].source}: files larger than repositories.max_tokens="
                        f"{self.config.repositories.max_tokens:,} are documents of their own"
                    )

    def _split_of(self, document: StoredDocument) -> str:
        return HELDOUT if self.groups[document.group].is_heldout(document) else TRAIN

    def _num_variants(self, document: StoredDocument, split: str) -> int:
        """A source with fill-in-the-middle has its variants of all its documents: each is an epoch of it."""
        return self.config.variants if split == TRAIN and self.has_variants[self.source_of[document.group]] else 1

    def _encode(self, document: StoredDocument, split: str, variant: int) -> EncodedDocument:
        if split == TRAIN and self.fim.applies_to(document.kind, document.language):
            return self.fim.encode(document.document_id, document.text, variant)
        (ids,) = self.tokenizer.encode_batch([document.text])
        return EncodedDocument(ids=ids)

    def _append(self, document: StoredDocument, split: str, variant: int, ids: np.ndarray) -> None:
        self._shard(document, split, variant).add(ids, len(document.text.encode()))

    def _count(self, document: StoredDocument, split: str, encoded: EncodedDocument, tokens: int) -> None:
        num_bytes = len(document.text.encode())
        row = {"source": document.source, "group": self.source_of[document.group], "language": document.language}
        self.ledger.add(split, num_bytes=num_bytes, tokens=tokens, **row)
        if encoded.layout:
            self.ledger.add("fim", reason=encoded.layout, tokens=_FIM_SENTINELS, **row)
        self.meter.add(num_bytes)

    def _shard(self, document: StoredDocument, split: str, variant: int) -> "SplitWriter":
        key = self.source_of[document.group], split, variant
        if key not in self.shards:
            name = split if variant == 0 else f"{split}-variant{variant}"
            prefix = f"shards/{key[0]}/{name}-{self.task:05d}"
            self.shards[key] = SplitWriter(self.job.workspace.corpus, prefix, self.tokenizer, self.config)
        return self.shards[key]

    def finish(self) -> None:
        """Close the shards and say what they hold."""
        facts = []
        for (source, split, variant), shard in self.shards.items():
            shard.close()
            facts.append({"source": source, "split": split, "variant": variant} | asdict(shard.info))
        self.meter.finish()
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

    def add(self, ids: np.ndarray, num_bytes: int) -> None:
        """One document: its ids [N] and the end-of-document token. A document may continue in the next shard."""
        tokens = np.append(ids, np.uint32(self.tokenizer.end_of_document_id))
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

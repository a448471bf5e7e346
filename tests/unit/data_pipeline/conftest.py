"""Small corpora with known tokens, written straight to shards (no tokenizer training in most tests)."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.manifest import TOKENIZER_FILE, Corpus, Manifest, SourceInfo, SplitInfo, canonical_json_hash
from data_pipeline.shards import ShardInfo, ShardWriter, token_dtype

END = 0
TOKENIZER_JSON = b'{"a tokenizer": "nobody encodes here"}'


def _documents(start: int, lengths: list[int]) -> np.ndarray:
    """Documents of consecutive ids, each closed by END: a token tells where in the source it is."""
    parts = []
    for length in lengths:
        parts += [np.arange(start, start + length), [END]]
        start += length
    return np.concatenate(parts).astype(np.int64)


def _split(folder: Path, name: str, ids: np.ndarray, vocab_size: int, shard_tokens: int) -> SplitInfo:
    info = SplitInfo(documents=int((ids == END).sum()), bytes=3 * len(ids), tokens=len(ids))
    for number, start in enumerate(range(0, len(ids), shard_tokens)):
        file = f"shards/{name}-{number:05d}.tokens"
        part = ids[start : start + shard_tokens]
        with ShardWriter(
            folder / file, dtype=token_dtype(vocab_size), block_tokens=16, tokenizer_hash="ab" * 32
        ) as writer:
            writer.append(part)
            info.shards.append(ShardInfo(file=file, num_tokens=len(part), checksum=writer.close()))
    return info


@pytest.fixture
def make_corpus(tmp_path):
    """make_corpus({name: (kind, document lengths)}, ...) -> an open Corpus; ids of a source start at 1.

    variants: {name: [document lengths of variant 1, of variant 2 ...]}; ids of variant v start at 1000 * v.
    """

    def make(
        sources: dict[str, tuple[str, list[int]]],
        *,
        heldout: list[int] | None = None,
        variants: dict[str, list[list[int]]] | None = None,
        vocab_size: int = 60_000,
        shard_tokens: int = 100,
        folder: str = "corpus",
    ) -> Corpus:
        directory = tmp_path / folder
        directory.mkdir()
        (directory / TOKENIZER_FILE).write_bytes(TOKENIZER_JSON)
        infos = []
        for name, (kind, lengths) in sources.items():
            train = _split(directory, f"{name}/train", _documents(1, lengths), vocab_size, shard_tokens)
            held = SplitInfo()
            if heldout:
                held = _split(directory, f"{name}/heldout", _documents(1, heldout), vocab_size, shard_tokens)
            further = [
                _split(directory, f"{name}/variant{v}", _documents(1000 * v, lengths), vocab_size, shard_tokens)
                for v, lengths in enumerate((variants or {}).get(name, ()), start=1)
            ]
            infos.append(SourceInfo(name=name, kind=kind, language=name, train=train, heldout=held, variants=further))
        Manifest(
            sources=infos,
            tokenizer_hash=canonical_json_hash(TOKENIZER_JSON, Path("t")),
            tokenizer_file_sha256=hashlib.sha256(TOKENIZER_JSON).hexdigest(),
            vocab_size=vocab_size,
            end_of_document_id=END,
            dtype=token_dtype(vocab_size).name,
            block_tokens=16,
        ).save(directory)
        return Corpus.open(directory)

    return make


@pytest.fixture
def small_corpus(make_corpus):
    """Two text and three code sources of a few hundred tokens, documents of 1..40 tokens, several shards each."""
    random = np.random.default_rng(0)
    lengths = {name: random.integers(1, 41, size=count).tolist() for name, count in _COUNTS.items()}
    kinds = {"prose": "text", "notes": "text"}
    return make_corpus({name: (kinds.get(name, "code"), lengths[name]) for name in _COUNTS}, heldout=[5, 40, 1, 17, 30])


_COUNTS = {"prose": 30, "notes": 12, "python": 25, "c": 11, "sql": 7}

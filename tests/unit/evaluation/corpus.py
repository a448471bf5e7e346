"""A corpus of a few hundred tokens on disk, with a real tokenizer."""

import hashlib
from itertools import chain
from pathlib import Path

import numpy as np

from data_pipeline.manifest import Corpus, Manifest, SourceInfo, SplitInfo
from data_pipeline.shards import ShardInfo, ShardWriter, token_dtype
from data_pipeline.tokenizer import MIN_VOCAB_SIZE, Tokenizer, train_tokenizer

SOURCES = [("python", "code", "Python"), ("c", "code", "C"), ("docs", "text", "English"), ("headers", "code", "C")]
SENTENCES = {
    "python": "def f(x):\n    return x + {}\n",
    "c": "int f{}(int x) {{ return x; }}\n",
    "docs": "Größe number {} is a — documented — value, 数.\n",
}


def make_corpus(directory: Path, heldout_documents: int = 5, merges: int = 40) -> Corpus:
    """Documents are sentences with numbers; `headers` has no held-out documents."""
    texts = {name: [line.format(i) * (1 + i % 3) for i in range(40)] for name, line in SENTENCES.items()}
    texts["headers"] = ["#define X 1\n"] * 3
    tokenizer = train_tokenizer(chain.from_iterable(texts.values()), MIN_VOCAB_SIZE + merges)
    directory.mkdir(parents=True)
    (directory / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    sources = []
    for name, kind, language in SOURCES:
        heldout = heldout_documents if name != "headers" else 0
        sources.append(
            SourceInfo(
                name=name,
                kind=kind,
                language=language,
                train=_split(directory, f"{name}.train", texts[name][heldout:], tokenizer),
                heldout=_split(directory, f"{name}.heldout", texts[name][:heldout], tokenizer),
            )
        )
    content = (directory / "tokenizer.json").read_bytes()
    Manifest(
        sources=sources,
        tokenizer_hash=tokenizer.content_hash,
        tokenizer_file_sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=tokenizer.vocab_size,
        end_of_document_id=tokenizer.end_of_document_id,
        dtype=token_dtype(tokenizer.vocab_size).name,
        block_tokens=64,
    ).save(directory)
    return Corpus.open(directory)


def _split(directory: Path, name: str, texts: list[str], tokenizer: Tokenizer) -> SplitInfo:
    ids = [[*tokenizer.encode(text), tokenizer.end_of_document_id] for text in texts]
    if not ids:
        return SplitInfo()
    dtype = token_dtype(tokenizer.vocab_size)
    with ShardWriter(directory / name, dtype=dtype, block_tokens=64, tokenizer_hash=tokenizer.content_hash) as writer:
        writer.append(np.concatenate(ids))
        checksum = writer.close()
    info = ShardInfo(file=name, num_tokens=sum(map(len, ids)), checksum=checksum)
    size = sum(len(text.encode()) for text in texts)
    return SplitInfo(documents=len(ids), bytes=size, tokens=info.num_tokens, shards=[info])

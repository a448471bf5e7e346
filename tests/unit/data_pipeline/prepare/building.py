"""Small builds: random sentences, options for them, and the texts that a corpus holds."""

import random

from data_pipeline.manifest import Corpus
from data_pipeline.prepare.build_config import BuildConfig
from data_pipeline.prepare.documents import SourceConfig, SourceKind
from data_pipeline.prepare.executor_config import ExecutorConfig

_WORDS = [
    f"{a}{b}" for a in ("data", "loop", "token", "gate", "shift", "näht") for b in ("ing", "er", "s", "ed", "ful", "漢")
]


def sentence(generator: random.Random, words: int = 60) -> str:
    return " ".join(generator.choices(_WORDS, k=words))


def config_of(raw, corpus_dir, **options) -> BuildConfig:
    sources = [
        SourceConfig(name="mine", kind=SourceKind.folder, path=str(raw / "code")),
        SourceConfig(name="prose", kind=SourceKind.jsonl, path=str(raw / "prose.jsonl")),
    ]
    defaults = {
        "vocab_size": 400, "min_source_bytes": 2000, "min_heldout_documents": 5,
        "shard_tokens": 2000, "block_tokens": 64, "filters": "none", "near_duplicates": False,
        "executor": ExecutorConfig(workers=1),
    }  # fmt: skip
    return BuildConfig(**{"corpus_dir": str(corpus_dir), "sources": sources, **defaults, **options})


def documents_of(corpus: Corpus, source: int, split: str) -> list[str]:
    """The texts of a split, from its tokens."""
    tokens, end = corpus.tokens(source, split), corpus.manifest.end_of_document_id
    if not tokens.num_tokens:
        return []
    texts, current = [], []
    for token in tokens.read(0, tokens.num_tokens).tolist():
        if token == end:
            texts.append(corpus.tokenizer.decode(current))
            current = []
        else:
            current.append(token)
    assert not current
    return texts


def all_documents(corpus: Corpus, split: str) -> list[str]:
    return [text for source in range(len(corpus.manifest.sources)) for text in documents_of(corpus, source, split)]

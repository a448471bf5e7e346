"""A corpus for its tokenizer, conversations of every kind, and their tokens spelled out by hand."""

import json
from pathlib import Path

import pytest

from loopcoder_train.config.finetune import ConversationKind, ConversationSource, FinetuneConfig
from loopcoder_train.finetune.chat import DEFAULT_TEMPLATE, ChatFormat, load_chat_format
from loopcoder_train.finetune.examples import conversation_of
from tests.unit.evaluation.corpus import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("finetune") / "corpus")


@pytest.fixture(scope="session")
def tokenizer(corpus):
    return corpus.tokenizer


@pytest.fixture(scope="session")
def chat(tokenizer) -> ChatFormat:
    return load_chat_format(None, tokenizer, "<|im_end|>", thinking=True)


def custom(tokenizer, template: str, *, thinking: bool = False, end_token: str = "<|im_end|>") -> ChatFormat:
    return ChatFormat(template, "custom.jinja", tokenizer, end_token, thinking=thinking)


def conversation(*messages, tools=None):
    """(role, content) pairs or whole messages."""
    full = [{"role": m[0], "content": m[1]} if isinstance(m, tuple) else m for m in messages]
    return conversation_of({"messages": full, "tools": tools}, "row")


def spelled(tokenizer, pieces: list[tuple[str, bool]]) -> list[tuple[int, bool]]:
    """(token, supervised) of pieces of text; a piece that is a sentinel's spelling is its id."""
    result = []
    for piece, said in pieces:
        ids = [tokenizer.sentinels[piece]] if piece in tokenizer.sentinels else tokenizer.encode(piece)
        result += [(token, said) for token in ids]
    return result


def encoded(chat, row) -> list[tuple[int, bool]]:
    result = chat.encode(row)
    return list(zip(result.tokens.tolist(), result.supervised.tolist(), strict=True))


def rows(count: int, words: int = 3) -> list[dict]:
    """Conversations of different lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"question {number}"},
                {"role": "assistant", "content": f"answer {number} " * (1 + number % words)},
            ]
        }
        for number in range(count)
    ]


def jsonl(path: Path, content: list) -> Path:
    """One line per entry: an object, or a string as it is."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in content))
    return path


def options(path: Path | None = None, **changes) -> FinetuneConfig:
    """The conversations of a jsonl file."""
    sources = [ConversationSource(name="mine", kind=ConversationKind.jsonl, path=str(path))] if path else [SOME]
    return FinetuneConfig(**({"sources": sources, "heldout_share": 0.2} | changes))


SOME = ConversationSource(name="some", kind=ConversationKind.environment)
TEMPLATE = DEFAULT_TEMPLATE.read_text()

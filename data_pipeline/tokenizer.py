"""Text -> token ids: byte-level BPE with reserved sentinels, trained here or imported.

The journey of a string: a pattern cuts it into words, single digits, runs of punctuation and runs of white space ->
each piece becomes bytes, each byte a printable character -> merges. There is no normaliser and no unknown token:
decoding gives back exactly what was encoded. The sentinels have the first ids and are only ever put in by id; their
spelling inside a document is encoded as the ordinary characters that it is.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from data_pipeline.errors import DataError

END_OF_DOCUMENT = "<|endoftext|>"
SPECIAL_TOKENS = (
    END_OF_DOCUMENT,
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
    *("<|im_start|>", "<|im_end|>"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>"),
    *(f"<|reserved_{number}|>" for number in range(11)),
)
"""Ids 0..23, in this order, in every tokenizer trained here."""

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
# Words with one leading space or symbol | ONE digit | punctuation with trailing line ends | white space.
_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Tokenizer:
    """Encodes and decodes. Use `Tokenizer.load` or `train_tokenizer`.

    vocab_size: highest id + 1; end_of_document_id; content_hash: sha256 of the canonical tokenizer.json.
    """

    def __init__(self, backend: Backend, end_of_document_id: int) -> None:
        # An imported tokenizer.json may cut or pad what it encodes: nothing may be lost here.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # `<|endoftext|>` inside a document is text, not a sentinel
        self._backend = backend
        self.end_of_document_id = end_of_document_id
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(
        cls, path: str | Path, end_of_document: str = END_OF_DOCUMENT, end_of_document_id: int | None = None
    ) -> "Tokenizer":
        """Read a tokenizer.json. Raises DataError when it is missing, damaged or has no end-of-document token."""
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: tokenizer cannot be read ({error.strerror}); give a tokenizer.json") from error
        try:
            # Not `from_str`: that one raises a bare Exception for a bad file.
            backend = Backend.from_buffer(content)
        except ValueError as error:
            raise DataError(f"{path}: not a tokenizer.json ({' '.join(str(error).split())}); give another") from error
        if end_of_document_id is None:
            end_of_document_id = backend.token_to_id(end_of_document)
        if end_of_document_id is None:
            raise DataError(f"{path}: has no token {end_of_document!r}; set end_of_document_token to its own")
        return cls(backend, end_of_document_id)

    def encode(self, text: str) -> list[int]:
        """The ids of one text; no special token is added or recognised."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, sentinels spelled out. Exact inverse of `encode`; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its spelling, None if there is none."""
        return self._backend.token_to_id(token)

    @functools.cached_property
    def content_hash(self) -> str:
        """sha256 of tokenizer.json with sorted keys and no spaces."""
        canonical = json.dumps(json.loads(self.to_json()), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self._backend.to_str()


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE, deterministically. Raises DataError if vocab_size cannot hold bytes and sentinels."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"vocab_size={vocab_size}: must be >= {MIN_VOCAB_SIZE} (256 bytes + {len(SPECIAL_TOKENS)} sentinels)"
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return Tokenizer(backend, end_of_document_id=0)

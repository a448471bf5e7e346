"""Text -> token ids: byte-level BPE with reserved sentinels, trained here or imported.

The journey of a string: a pattern cuts it into words, single digits, runs of punctuation and runs of white space ->
each piece becomes its UTF-8 bytes, each byte a printable character -> merges. There is no normaliser and no unknown
token: decoding gives back exactly what was encoded, whatever it was. A document is a `str` that came from valid UTF-8;
other bytes never get this far (`prepare/files.py` counts them as "not UTF-8").

Sentinels are put in by id only: their spelling inside a document is encoded as the ordinary characters that it is. In
a tokenizer trained here they have the first ids. In an imported one they are its added tokens, all of them.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from data_pipeline.encoders import Encoder, GigatokenEncode, huggingface_encode
from data_pipeline.errors import DataError
from data_pipeline.tokenizer_file import read_tokenizer_file

END_OF_DOCUMENT = "<|endoftext|>"
FIM_TOKENS = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
REPOSITORY_TOKENS = ("<|repo_name|>", "<|file_sep|>")
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
SPECIAL_TOKENS = (
    END_OF_DOCUMENT,
    *(*FIM_TOKENS, "<|fim_pad|>"),
    *REPOSITORY_TOKENS,
    *CHAT_TOKENS,
    *("<think>", "</think>", "<tool_call>", "</tool_call>"),
    *(f"<|reserved_{number}|>" for number in range(11)),
)
"""Ids 0..23, in this order, in every tokenizer trained here."""

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
# English contractions | words with one leading space or symbol | ONE digit | punctuation with trailing line ends |
# white space. This is the pattern of Qwen2, to the letter: fast encoders know it by its spelling.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Encodes and decodes. Use `Tokenizer.load` or `train_tokenizer`.

    vocab_size: highest id + 1; end_of_document_id; content_hash: sha256 of the canonical tokenizer.json.
    """

    def __init__(self, backend: Backend, end_of_document_id: int, encoder: Encoder = Encoder.huggingface) -> None:
        backend.encode_special_tokens = True  # `<|endoftext|>` inside a document is text, not a sentinel
        self._backend = backend
        self.end_of_document_id = end_of_document_id
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.encoder = encoder
        self._reference = huggingface_encode(backend)
        if encoder is Encoder.gigatoken:
            self._encode = GigatokenEncode(backend.to_str(), self._reference)
        else:
            self._encode = self._reference

    @classmethod
    def load(
        cls,
        path: str | Path,
        end_of_document: str = END_OF_DOCUMENT,
        end_of_document_id: int | None = None,
        encoder: Encoder = Encoder.huggingface,
    ) -> "Tokenizer":
        """Read a tokenizer.json. Which `encoder` changes the speed only.

        Raises DataError when it is missing, damaged, no lossless byte-level BPE, has no end-of-document token, or if
        the encoder cannot do it.
        """
        path = Path(path)
        backend = read_tokenizer_file(path)
        if end_of_document_id is None:
            end_of_document_id = backend.token_to_id(end_of_document)
        if end_of_document_id is None:
            raise DataError(f"{path}: has no token {end_of_document!r}; set end_of_document_token to its own")
        if end_of_document_id not in backend.get_added_tokens_decoder():
            word = backend.id_to_token(end_of_document_id)
            raise DataError(
                f"{path}: end_of_document_token={word!r} is an ordinary word of it; name one of its added tokens"
            )
        return cls(backend, end_of_document_id, encoder)

    def encode(self, text: str) -> list[int]:
        """The ids of one text; no special token is added or recognised."""
        return self._encode(text).tolist()

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """`encode` of many texts, on the calling thread: uint32 [tokens] each."""
        return [self._encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, sentinels spelled out. Exact inverse of `encode`; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its spelling, None if there is none."""
        return self._backend.token_to_id(token)

    @functools.cached_property
    def sentinels(self) -> dict[str, int]:
        """Spelling -> id of every sentinel."""
        return {token.content: number for number, token in self._backend.get_added_tokens_decoder().items()}

    def sentinel_ids(self, tokens: Sequence[str], purpose: str) -> list[int]:
        """The ids of sentinels; DataError, naming them and what they are for, if the tokenizer lacks one."""
        known = self.sentinels
        missing = [token for token in tokens if token not in known]
        if missing:
            raise DataError(
                f"tokenizer: has no sentinel {', '.join(missing)}, which {purpose} needs; "
                "add it to added_tokens of its tokenizer.json, or turn that off"
            )
        return [known[token] for token in tokens]

    def check_parity(self, documents: Iterable[tuple[str, str]]) -> int:
        """Compare the encoder with the reference on (name, text) documents; returns how many were compared.

        Raises DataError naming the first document with other ids.
        """
        compared = 0
        for name, text in documents:
            compared += 1
            ids, expected = self._encode(text), self._reference(text)
            if not np.array_equal(ids, expected):
                raise DataError(
                    f"{name}: encoder={self.encoder.name} gives other ids than huggingface "
                    f"({_first_difference(ids, expected)}); set encoder=huggingface"
                )
        return compared

    @functools.cached_property
    def content_hash(self) -> str:
        """sha256 of tokenizer.json with sorted keys and no spaces."""
        canonical = json.dumps(json.loads(self.to_json()), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self._backend.to_str()


def _first_difference(ids: np.ndarray, expected: np.ndarray) -> str:
    shared = min(ids.size, expected.size)
    differing = np.flatnonzero(ids[:shared] != expected[:shared])
    if differing.size == 0:
        return f"{ids.size} tokens, not {expected.size}"
    index = int(differing[0])
    return f"token {index} is {ids[index]}, not {expected[index]}"


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

"""Fill-in-the-middle: some documents are cut in three and reordered, so that a model learns to write what is missing.

The journey of a document: its id, the seed and the variant are hashed -> the hash says whether it is transformed, where
the middle begins and ends (between any two characters, or at line starts), and in which order the parts go -> the
parts are encoded one by one, with sentinels between them:

    PSM   <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle
    SPM   <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle

SPM is the joint layout of Bavarian et al. 2022 (arXiv 2207.14255, appendix D), which StarCoder also trained on. The
other public one is `<|fim_suffix|> suffix <|fim_prefix|> prefix <|fim_middle|> middle`; in the joint one the text after
the suffix is consecutive, with no sentinel between prefix and middle, and the paper found that training on both layouts
then helps each. All parts are encoded apart, in SPM too: who completes a file has its prefix alone.

Nothing here depends on other documents, their order, or the process. Variant v of a document is another cut of the
same text: repeats of a source are different examples.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from data_pipeline import languages
from data_pipeline.errors import DataError
from data_pipeline.tokenizer import FIM_TOKENS, Tokenizer

PSM, SPM = "psm", "spm"
_KINDS = ("code", "text")
_RATES = ("rate", "spm_rate", "line_rate")
_LINE_STARTS = re.compile("(?<=\n)")
# One hash per decision. The numbers seed it: they are part of the format, and a golden file holds it.
_TRANSFORMED, _LAYOUT, _BY_LINES, _FIRST_CUT, _SECOND_CUT = range(5)


@dataclass(kw_only=True, slots=True)
class FimConfig:
    """Which documents are transformed, and how. Rates are shares of documents, 0 to 1.

    rate: of the eligible documents that are transformed. spm_rate: of these, in SPM, the others in PSM. line_rate: of
    these, cut at line starts, the others between any two characters. min_bytes, max_bytes: shorter documents have
    nothing to fill in, and in longer ones (some 8,192 tokens) the middle would be out of sight of its context: they
    stay as they are.
    kinds: sides of the mixture. languages: of these kinds only these (empty: all). seed: of the cuts.
    """

    rate: float = 0.5
    spm_rate: float = 0.5
    line_rate: float = 0.25
    min_bytes: int = 64
    max_bytes: int = 32_768
    kinds: list[str] = field(default_factory=lambda: ["code"])
    languages: list[str] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        for option in _RATES:
            value = getattr(self, option)
            if not 0 <= value <= 1:
                raise DataError(f"fim.{option}={value}: must be between 0 and 1")
        # Two characters at least, or there are no two cuts.
        if self.min_bytes < 8:
            raise DataError(f"fim.min_bytes={self.min_bytes}: must be >= 8")
        if self.max_bytes < self.min_bytes:
            raise DataError(f"fim.max_bytes={self.max_bytes}: must be >= min_bytes={self.min_bytes}")
        unknown = [kind for kind in self.kinds if kind not in _KINDS]
        if unknown:
            raise DataError(f"fim.kinds: {unknown[0]!r} is no side of the mixture; known: {', '.join(_KINDS)}")
        self.languages = [languages.require_language(name, "fim.languages") for name in self.languages]


@dataclass(kw_only=True, slots=True, frozen=True)
class Cut:
    """Where the middle of a text begins and ends (in characters), and the layout: text[start:end] is the middle."""

    start: int
    end: int
    layout: str


@dataclass(kw_only=True, slots=True)
class EncodedDocument:
    """ids: uint32 [tokens], sentinels included, end of document not. layout: psm, spm, or empty: as it was."""

    ids: np.ndarray
    layout: str = ""


class Fim:
    """The function (document, variant) -> cut -> ids for one configuration.

    Raises DataError if documents are to be transformed and the tokenizer lacks a sentinel.
    """

    def __init__(self, config: FimConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self._tokenizer = tokenizer
        if config.rate > 0:
            sentinels = tokenizer.sentinel_ids(FIM_TOKENS, "fill-in-the-middle (fim.rate > 0)")
            self._prefix, self._middle, self._suffix = (np.array([number], dtype=np.uint32) for number in sentinels)

    def applies_to(self, kind: str, language: str) -> bool:
        """Whether documents of this side and language may be transformed."""
        config = self._config
        return config.rate > 0 and kind in config.kinds and (not config.languages or language in config.languages)

    def cut(self, document_id: str, text: str, variant: int) -> Cut | None:
        """The cut of a document that `applies_to` admits, or None: it stays as it is."""
        return find_cut(self._config, document_id, text, variant)

    def encode(self, document_id: str, text: str, variant: int) -> EncodedDocument:
        """One document, transformed if its hash says so; without end-of-document token."""
        return self._laid_out(text, self.cut(document_id, text, variant))

    def encode_batch(self, document_ids: Sequence[str], texts: Sequence[str], variant: int) -> list[EncodedDocument]:
        """`encode` of many documents."""
        return [self.encode(name, text, variant) for name, text in zip(document_ids, texts, strict=True)]

    def _laid_out(self, text: str, cut: Cut | None) -> EncodedDocument:
        if cut is None:
            (ids,) = self._tokenizer.encode_batch([text])
            return EncodedDocument(ids=ids)
        parts = (text[: cut.start], text[cut.start : cut.end], text[cut.end :])
        prefix, middle, suffix = self._tokenizer.encode_batch(parts)
        if cut.layout == PSM:
            order = (self._prefix, prefix, self._suffix, suffix, self._middle, middle)
        else:
            order = (self._prefix, self._suffix, suffix, self._middle, prefix, middle)
        return EncodedDocument(ids=np.concatenate(order), layout=cut.layout)


def find_cut(config: FimConfig, document_id: str, text: str, variant: int) -> Cut | None:
    """Where `text` is cut, or None if it stays: a pure function of the arguments (of the text: length and lines)."""
    key = f"{config.seed}\0{variant}\0{document_id}".encode("utf-8", "surrogatepass")

    def draw(decision: int) -> int:
        return xxhash.xxh3_64_intdigest(key, seed=decision)

    def happens(decision: int, rate: float) -> bool:
        return draw(decision) < round(rate * 2**64)

    if not happens(_TRANSFORMED, config.rate):
        return None
    if not config.min_bytes <= len(text.encode()) <= config.max_bytes:
        return None
    places: Sequence[int] = range(len(text) + 1)
    if happens(_BY_LINES, config.line_rate):
        by_lines = _line_cuts(text)
        # A text of one line has no cut at a line start but its ends.
        places = by_lines if len(by_lines) > 2 else places
    # Two different places, every pair alike: the second of the others.
    first = draw(_FIRST_CUT) % len(places)
    second = draw(_SECOND_CUT) % (len(places) - 1)
    second += second >= first
    start, end = sorted((places[first], places[second]))
    return Cut(start=start, end=end, layout=SPM if happens(_LAYOUT, config.spm_rate) else PSM)


def _line_cuts(text: str) -> list[int]:
    """Starts of lines, and the end of the text, each once."""
    starts = [match.start() for match in _LINE_STARTS.finditer(text)]
    return [0, *starts, *([] if starts[-1:] == [len(text)] else [len(text)])]

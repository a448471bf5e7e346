"""Documents that contain a piece of an evaluation set are found, and the set is named.

The rules, on words as in shingles.py (lower case, no punctuation, no diacritics, white space of any kind), so that a
reformatted or re-punctuated copy counts as a copy. A document is contaminated by an item of

    13 words or more    if it has any 13 words in a row of it
    10 to 12 words      if it has any 10 words in a row of it
    5 to 9 words        if it has all of it, word for word, in a row
    fewer than 5        never: such items ("yes", "x = 3") are everywhere; they are counted as too short

Runs of words that more than `COMMON_ITEMS` different items share (licence headers, instructions) say nothing and do
not count, unless an item would have no run left.

The journey: files -> items -> runs of words as XXH64 hashes, sorted, each with its set -> one .npz. Of a document,
every run of 10 words is hashed (and every run of 5, if there are items of 5 to 9 words) and looked up among the
beginnings of the indexed runs, first in a bitmap. Only where one is found the runs themselves are looked up. Two
different runs of words have the same hash with probability 2^-64; nothing compares the words again.

Memory: 19 bytes per indexed run and 2 to 4 for the bitmap, so 23 MB per million runs; building needs seven times as
much.
"""

import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import xxhash

from data_pipeline.errors import DataError, nearest_hint
from data_pipeline.prepare import rows
from data_pipeline.prepare.documents import WHOLE, SourceConfig, SourceKind
from data_pipeline.prepare.shingles import shingle_hashes, word_bytes

LONG_RUN, SHORT_RUN, SHORTEST_ITEM = 13, 10, 5
COMMON_ITEMS = 10
_FORMAT = 1
_ROW_BYTES = 16_000_000
_EMPTY_LINES = re.compile(r"\n\s*\n")
_KINDS = {
    ".jsonl": SourceKind.jsonl, ".jsonl.gz": SourceKind.jsonl, ".jsonl.zst": SourceKind.jsonl,
    ".parquet": SourceKind.parquet,
}  # fmt: skip


@dataclass(kw_only=True, slots=True)
class EvaluationSet:
    """A file of evaluation items, and what became of them.

    path: .jsonl(.gz, .zst) or .parquet, whose rows have texts in `fields` (each text is an item; a list of texts is
    several, null is none), or .txt, whose items have empty lines between them. name: for reasons; default: the file's.
    items, too_short: counted by `Contamination.from_files`; too_short have fewer than 5 words.
    """

    path: str
    fields: list[str] = field(default_factory=list)
    name: str = ""
    items: int = 0
    too_short: int = 0

    def __post_init__(self) -> None:
        self.name = self.name or Path(self.path).name
        option = f"evaluation set {self.path}"
        if not self.path.endswith((*_KINDS, ".txt")):
            raise DataError(f"{option}: must end in {', '.join(_KINDS)} or .txt")
        if self.path.endswith(".txt") == bool(self.fields):
            raise DataError(f"{option}: fields={self.fields}; name them for jsonl and parquet, never for .txt")


def read_items(evaluation: EvaluationSet) -> Iterator[str]:
    """Every item of a set, in order of field and row. DataError for what cannot be read whole."""
    path = Path(evaluation.path)
    if not path.is_file():
        raise DataError(f"evaluation set {path}: is not a file; correct its path")
    if path.suffix == ".txt":
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"evaluation set {path}: is not UTF-8 at byte {error.start}; convert it") from error
        yield from (item for item in _EMPTY_LINES.split(content) if item.strip())
        return

    def refuse(reason: str, num_bytes: int) -> None:
        raise DataError(f"evaluation set {path}: {reason} ({num_bytes} bytes); every row must be readable, repair it")

    kind = next(kind for ending, kind in _KINDS.items() if evaluation.path.endswith(ending))
    for name in evaluation.fields:
        source = SourceConfig(name="evaluation", kind=kind, path=evaluation.path, text_field=name)
        for place, row in rows.read(source, _ROW_BYTES, refuse, WHOLE):
            if name not in row:
                raise DataError(f"evaluation set {path}: {place} has no field {name!r}{nearest_hint(name, row)}")
            value = row[name]
            texts = value if isinstance(value, list) else [] if value is None else [value]
            for text in texts:
                if not isinstance(text, str):
                    kind_name = type(text).__name__
                    raise DataError(f"evaluation set {path}: {place}: {name} is {kind_name}, must be text or texts")
                yield text


class Contamination:
    """An index of evaluation sets. Make it with `from_files` or `load`."""

    def __init__(
        self, sets: Sequence[EvaluationSet], runs: np.ndarray, run_words: np.ndarray, run_sets: np.ndarray,
        heads: np.ndarray, short_heads: np.ndarray,
    ) -> None:  # fmt: skip
        """runs [R] uint64 ascending; run_words, run_sets [R] uint8, uint16: words of a run, number of its set.

        heads, short_heads: ascending uint64 hashes of the first 10 (5) words of runs of 10 and more (fewer) words.
        """
        self.sets = list(sets)
        self._arrays = {
            "runs": runs, "run_words": run_words, "run_sets": run_sets, "heads": heads, "short_heads": short_heads,
        }  # fmt: skip
        self._runs, self._run_sets = runs, run_sets
        present = np.unique(run_words).tolist()[::-1]
        # (words of a beginning, its hashes, the lengths of runs that begin so), longest runs first
        self._stages = [
            (SHORT_RUN, _HashSet(heads), [words for words in present if words >= SHORT_RUN]),
            (SHORTEST_ITEM, _HashSet(short_heads), [words for words in present if words < SHORT_RUN]),
        ]

    @classmethod
    def from_files(cls, sets: Sequence[EvaluationSet]) -> "Contamination":
        """The index of all items of `sets`. DataError for an unreadable set and for one without a usable item."""
        names = [evaluation.name for evaluation in sets]
        if not sets or len(set(names)) != len(names):
            raise DataError(f"evaluation sets: names are {names}; give at least one set, and each its own name")
        builder = _Builder()
        sets = [replace(evaluation, items=0, too_short=0) for evaluation in sets]
        for number, evaluation in enumerate(sets):
            for item in read_items(evaluation):
                evaluation.items += 1
                evaluation.too_short += not builder.add(item, number)
            if evaluation.items == evaluation.too_short:
                raise DataError(
                    f"evaluation set {evaluation.path}: none of its {evaluation.items} items has {SHORTEST_ITEM} "
                    "words; correct its fields or leave it out"
                )
        return cls(sets, *builder.finish())

    def reason(self, text: str) -> str | None:
        """Why a document is contaminated, naming the evaluation set; None if it is not."""
        words = word_bytes(text)
        for head_words, heads, lengths in self._stages:
            starts = np.flatnonzero(heads.contains(shingle_hashes(words, head_words))) if lengths else ()
            if not len(starts):
                continue
            for length in lengths:
                hashes = shingle_hashes(words, length)
                number = self._first_set(hashes[starts[starts < hashes.size]])
                if number is not None:
                    name = self.sets[number].name
                    if length < SHORT_RUN:
                        return f"contamination: a whole item of {name}"
                    return f"contamination: {length} words in a row of {name}"
        return None

    def _first_set(self, hashes: np.ndarray) -> int | None:
        """The set of the first of `hashes`, those of a document in order, that is in the index."""
        places = np.minimum(np.searchsorted(self._runs, hashes), self._runs.size - 1)
        hits = np.flatnonzero(self._runs[places] == hashes)
        return int(self._run_sets[places[hits[0]]]) if hits.size else None

    @property
    def content_hash(self) -> str:
        """32 hex digits that change with anything that changes a verdict."""
        digest = xxhash.xxh3_128(json.dumps([_FORMAT, [evaluation.name for evaluation in self.sets]]))
        for array in self._arrays.values():
            digest.update(array.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the index to `path`, whole or not at all."""
        header = json.dumps({"format": _FORMAT, "sets": [asdict(evaluation) for evaluation in self.sets]})
        temporary = path.with_name(path.name + ".partial")
        with temporary.open("wb") as file:
            np.savez(file, header=np.frombuffer(header.encode(), dtype=np.uint8), **self._arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Contamination":
        """An index that `save` wrote; DataError if it is damaged or of another format."""
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                if header["format"] != _FORMAT:
                    raise DataError(f"{path}: format {header['format']}, this version reads {_FORMAT}; build it again")
                arrays = [file[name] for name in ("runs", "run_words", "run_sets", "heads", "short_heads")]
                sets = [EvaluationSet(**entry) for entry in header["sets"]]
        except DataError:
            raise
        # A cut-off or overwritten archive fails in zipfile, in numpy's header or in JSON.
        except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a readable contamination index ({error}); build it again") from error
        return cls(sets, *arrays)


class _Builder:
    """Collects the runs of items. Equal items count once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._runs: list[np.ndarray] = []
        self._heads: list[np.ndarray] = []
        self._words: list[int] = []
        self._sets: list[int] = []

    def add(self, item: str, set_number: int) -> bool:
        """Index an item; False if it is too short for that."""
        words = word_bytes(item)
        count = words.count(b" ") + 1
        if count < SHORTEST_ITEM:
            return False
        whole = xxhash.xxh3_128_intdigest(words)
        if whole in self._seen:
            return True
        self._seen.add(whole)
        length = LONG_RUN if count >= LONG_RUN else SHORT_RUN if count >= SHORT_RUN else count
        runs = shingle_hashes(words, length)
        heads = shingle_hashes(words, SHORT_RUN if length >= SHORT_RUN else SHORTEST_ITEM)[: runs.size]
        runs, first = np.unique(runs, return_index=True)
        self._runs.append(runs)
        self._heads.append(heads[first])
        self._words.append(length)
        self._sets.append(set_number)
        return True

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(runs, run_words, run_sets, heads, short_heads) as `Contamination` takes them."""
        sizes = [runs.size for runs in self._runs]
        runs, heads = np.concatenate(self._runs), np.concatenate(self._heads)
        items = np.repeat(np.arange(len(sizes)), sizes)
        _, inverse, counts = np.unique(runs, return_inverse=True, return_counts=True)
        rare = counts[inverse] <= COMMON_ITEMS
        has_rare = np.bincount(items, weights=rare, minlength=len(sizes)) > 0
        kept = rare | ~has_rare[items]
        runs, heads, items = runs[kept], heads[kept], items[kept]
        words = np.array(self._words, dtype=np.uint8)[items]
        long = words >= SHORT_RUN
        # Items are in order of their sets, so the first of equal runs is that of the first set.
        unique, first = np.unique(runs, return_index=True)
        sets = np.array(self._sets, dtype=np.uint16)[items]
        return unique, words[first], sets[first], np.unique(heads[long]), np.unique(heads[~long])


class _HashSet:
    """Sorted uint64 hashes behind a bitmap of their leading bits, 16 bits or more for each."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = hashes
        bits = max(10, (16 * hashes.size).bit_length())
        self._shift = np.uint64(64 - bits)
        self._bitmap = np.zeros(1 << (bits - 3), dtype=np.uint8)
        byte, bit = self._places(hashes)
        np.bitwise_or.at(self._bitmap, byte, bit)

    def _places(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = hashes >> self._shift
        return (places >> np.uint64(3)).astype(np.int64), np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """Members among `hashes` [N], as bool [N]."""
        byte, bit = self._places(hashes)
        found = (self._bitmap[byte] & bit) != 0
        candidates = np.flatnonzero(found)
        if candidates.size:
            values = hashes[candidates]
            places = np.minimum(np.searchsorted(self._hashes, values), self._hashes.size - 1)
            found[candidates] = self._hashes[places] == values
        return found

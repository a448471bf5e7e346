"""The frozen pack plan: which conversations, as which tokens, in which rows. Made once, then read by every process.

plan_making.py makes it, in the folder `conversations` of the run. Nothing in it depends on R, on layout, batch or
number of processes: two runs have the same plan when they have the same `plan_hash`.

    tokens.bin      uint32 [T]      all conversations, one after the other
    supervised.bin  uint8  [T]      1: this token is to be predicted
    offsets.bin     int64  [N + 1]  where conversations begin in the two above
    members.bin     int64  [N]      conversations in the order in which rows hold them
    rows.bin        int64  [M + 1]  where rows begin in members.bin: first those for training, then the held-out ones
    sources.bin     int64  [M]      source of each row
    template.jinja                  the chat template
    plan.json                       counts, reasons of what was dropped, hashes; written last
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError

PLAN_FOLDER, PLAN_FILE, TEMPLATE_FILE = "conversations", "plan.json", "template.jinja"
ARRAYS = {"tokens": "<u4", "supervised": "u1", "offsets": "<i8", "members": "<i8", "rows": "<i8", "sources": "<i8"}


@dataclass(kw_only=True, slots=True)
class SourceCounts:
    """What became of the rows of a source. dropped: reason -> rows; tokens of kept conversations, both sides."""

    name: str
    read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    reasoning_left_out: int = 0  # messages whose reasoning_content finetune.thinking=false leaves out
    conversations: int = 0
    heldout_conversations: int = 0
    tokens: int = 0
    supervised_tokens: int = 0

    def note(self) -> str:
        """One line for people."""
        lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items()))
        reasoning = f"; reasoning of {self.reasoning_left_out:,} messages left out" if self.reasoning_left_out else ""
        return (
            f"{self.name}: {self.conversations:,} of {self.read:,} conversations, {self.heldout_conversations:,} of "
            f"them held out, {self.supervised_tokens:,} of {self.tokens:,} tokens trained"
            + (f"; dropped: {lost}" if lost else "")
        ) + reasoning


def plan_hash(content: dict[str, Any]) -> str:
    """sha256 of what every batch is made of: tokens, labels, rows and their length."""
    request = content["request"]
    parts = [request["version"], request["tokenizer_hash"], request["sequence_length"], content["end_of_document_id"]]
    parts += [content["train_rows"], sorted(content["files"].items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Plan:
    """A plan that was made: its arrays, mapped into memory, and `content`, its plan.json."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content
        self.plan_hash: str = content["plan_hash"]
        self.sequence_length: int = content["request"]["sequence_length"]
        self.tokenizer_hash: str = content["request"]["tokenizer_hash"]
        self.end_of_document_id: int = content["end_of_document_id"]
        self.train_rows: int = content["train_rows"]
        self.sources = [SourceCounts(**counts) for counts in content["sources"]]
        arrays = {name: _map(folder / f"{name}.bin", kind) for name, kind in ARRAYS.items()}
        self._tokens, self._supervised = arrays["tokens"], arrays["supervised"]
        self._offsets, self._members = arrays["offsets"], arrays["members"]
        self._rows, self.row_sources = arrays["rows"], arrays["sources"]
        self._check_sizes()

    @classmethod
    def open(cls, run_dir: Path) -> "Plan":
        """The plan of a run. DataError when it is missing or damaged."""
        folder = run_dir / PLAN_FOLDER
        try:
            content = json.loads((folder / PLAN_FILE).read_bytes())
            if content["plan_hash"] != plan_hash(content):
                raise DataError(
                    f"{folder / PLAN_FILE}: was changed by hand; remove the folder, or start over with fresh=true"
                )
            return cls(folder, content)
        except OSError as error:
            raise DataError(
                f"{error.filename}: cannot be read ({error.strerror}); `loopcoder finetune` makes the plan before it "
                "starts workers"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{folder}: no plan that this program made; remove the folder") from error

    def _check_sizes(self) -> None:
        ends = (int(self._offsets[-1]), int(self._rows[-1]))
        sizes = (len(self._tokens), len(self._supervised), len(self._members), len(self.row_sources))
        if sizes != (ends[0], ends[0], ends[1], len(self._rows) - 1) or len(self._offsets) != ends[1] + 1:
            raise DataError(
                f"{self.folder}: its files do not belong together; restore it, or start over with fresh=true"
            )

    def verify(self) -> None:
        """Read every byte; DataError for a file that is not what it was made as."""
        for name, digest in self.content["files"].items():
            if file_sha256(self.folder / f"{name}.bin") != digest:
                raise DataError(
                    f"{self.folder / name}.bin: is damaged (its sha256 is not that of plan.json); restore it, or start "
                    "over with fresh=true"
                )

    @property
    def template(self) -> str:
        """The source of the chat template. DataError when it is not the one that the plan was made of."""
        file = self.folder / TEMPLATE_FILE
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); restore it") from error
        if hashlib.sha256(content).hexdigest() != self.content["request"]["template"]:
            raise DataError(f"{file}: is not the template that the run was tuned with (its sha256 differs); restore it")
        return content.decode()

    @property
    def num_rows(self) -> int:
        """For training and held out."""
        return len(self.row_sources)

    def note(self) -> str:
        """One line for people."""
        used = int(self._offsets[-1]) / (self.num_rows * self.sequence_length)
        return f"{self.train_rows:,} rows of {self.sequence_length:,} tokens for training, {used:.1%} of them used"

    def conversation(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens [n] and supervised bool [n] of one conversation."""
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return self._tokens[begin:end], self._supervised[begin:end].astype(bool)

    def row(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The conversations of a row."""
        members = self._members[int(self._rows[number]) : int(self._rows[number + 1])]
        return [self.conversation(int(index)) for index in members]


def _map(path: Path, kind: str) -> np.ndarray:
    return np.memmap(path, dtype=kind, mode="r")

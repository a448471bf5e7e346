"""The folder of a build that is under way: which phase leaves what where.

    <corpus_dir>.building/
      lock, plan.json        one build at a time; the options that the files belong to
      documents/00003.jsonl.zst   documents of task 3 after `read`;  clean/00003.jsonl.zst after `clean`
      <phase>/00003.<name>.npy    arrays of a task, memory-mapped by later phases;  <phase>/00003.json
      ledger/<phase>-00003/       what the task counted
      progress/<phase>-00003      bytes done, for the command that waits
      logs/<phase>/               the executor's: one log per task, and which tasks are done
      corpus/                     what is moved to corpus_dir in the end

Every file is written beside its final name and renamed, so a task that is killed and run again leaves the same files.
"""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zstandard

from data_pipeline.ledger import Ledger
from data_pipeline.manifest import write_durably

BUILDING = ".building"
"""What the name of the folder adds to the corpus's."""
_PLAN_FILE = "plan.json"
_LEVEL = 1  # read once or twice and deleted: speed matters, size hardly
_READ_BYTES = 1 << 20


@dataclass(kw_only=True, slots=True)
class StoredDocument:
    """A document between two phases. `split_hash`: decides whether it is held out, known from `clean` on."""

    text: str
    name: str
    source: str
    language: str
    kind: str
    group: str
    repository: str = ""
    split_hash: int = 0

    @property
    def document_id(self) -> str:
        """`source:name`, which is how the user finds it again."""
        return f"{self.source}:{self.name}"


@dataclass(kw_only=True, slots=True)
class DroppedDocument:
    """A document that a stage dropped or changed, and why."""

    stage: str
    reason: str
    document_id: str


class Workspace:
    """Paths of a build folder. Tasks of any machine that sees the folder may use it at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def corpus(self) -> Path:
        """Where the finished corpus grows."""
        return self.folder / "corpus"

    def save_plan(self, content: dict[str, Any]) -> None:
        """Remember which options the files belong to."""
        write_durably(self.folder / _PLAN_FILE, json.dumps(content, sort_keys=True))

    def load_plan(self) -> dict[str, Any] | None:
        """What `save_plan` wrote; None before that."""
        path = self.folder / _PLAN_FILE
        return json.loads(path.read_bytes()) if path.is_file() else None

    def move_in_place(self) -> None:
        """The finished corpus becomes `corpus_dir`; one that was there goes when it is."""
        final = self.folder.with_name(self.folder.name.removesuffix(BUILDING))
        replaced = final.with_name(final.name + ".replaced")
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        self.corpus.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)

    def logs(self, phase: str) -> Path:
        """The executor's folder of a phase."""
        return self.folder / "logs" / phase

    def path(self, phase: str, task: int, ending: str) -> Path:
        """`<phase>/<task>.<ending>`; its folder exists afterwards."""
        path = self.folder / phase / f"{task:05d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save_array(self, phase: str, task: int, name: str, array: np.ndarray) -> None:
        """Write one array of a task."""
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        with _renamed(self.path(phase, task, f"{name}.npy")) as file:
            file.write(content.getbuffer())

    def load_array(self, phase: str, task: int, name: str) -> np.ndarray:
        """An array as `save_array` wrote it, memory-mapped: only what is touched is read."""
        return np.load(self.path(phase, task, f"{name}.npy"), mmap_mode="r", allow_pickle=False)

    def save_json(self, phase: str, task: int, content: Any) -> None:
        """Write the facts of a task."""
        with _renamed(self.path(phase, task, "json")) as file:
            file.write(json.dumps(content, ensure_ascii=False).encode())

    def load_json(self, phase: str, task: int) -> Any:
        """What `save_json` wrote."""
        return json.loads(self.path(phase, task, "json").read_bytes())

    def save_ledger(self, phase: str, task: int, ledger: Ledger) -> None:
        """What a task counted."""
        folder = self.folder / "ledger" / f"{phase}-{task:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        ledger.save(folder)

    def ledgers(self, phase: str = "*") -> Iterator[Ledger]:
        """What all tasks of a phase (default: of all phases) counted, in a fixed order."""
        for folder in sorted((self.folder / "ledger").glob(f"{phase}-*")):
            yield Ledger.load(folder)

    @contextmanager
    def write_documents(self, phase: str, task: int) -> Iterator["DocumentWriter"]:
        """The documents of a task; the file appears when the block ends without an error."""
        with _renamed(self.path(phase, task, "jsonl.zst")) as file, _compressed(file) as lines:
            yield DocumentWriter(lines)

    def read_documents(self, phase: str, task: int) -> Iterator[StoredDocument]:
        """The documents of a task, in the order in which they were written."""
        for values in _lines(self.path(phase, task, "jsonl.zst")):
            yield StoredDocument(**values)

    @contextmanager
    def write_dropped(self, phase: str, task: int) -> Iterator["DroppedWriter"]:
        """The record of dropped and changed documents of a task; part of the finished corpus."""
        path = self.corpus / "dropped" / f"{phase}-{task:05d}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        with _renamed(path) as file, _compressed(file) as lines:
            yield DroppedWriter(lines)

    def report_progress(self, phase: str, task: int, done_bytes: int) -> None:
        """Say how far a task is, for `progress`."""
        path = self.folder / "progress" / f"{phase}-{task:05d}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(done_bytes))

    def record_error(self, phase: str, task: int, message: str) -> None:
        """Keep the one line that the user of a cluster's build is shown."""
        path = self.folder / "errors" / f"{phase}-{task:05d}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(message, encoding="utf-8")

    def forget_errors(self) -> None:
        """Before tasks are done again."""
        shutil.rmtree(self.folder / "errors", ignore_errors=True)

    def errors(self) -> list[str]:
        """What tasks have recorded, in a fixed order."""
        return [path.read_text(encoding="utf-8") for path in sorted((self.folder / "errors").glob("*"))]

    def progress(self, phase: str) -> int:
        """Bytes done by all tasks of a phase."""
        total = 0
        for path in (self.folder / "progress").glob(f"{phase}-*"):
            content = path.read_text()  # empty while it is being written
            total += int(content or 0)
        return total


class DocumentWriter:
    """Writes `StoredDocument`s as lines."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, document: StoredDocument) -> None:
        """Append one document."""
        self._file.write(json.dumps(asdict(document)).encode() + b"\n")


class DroppedWriter:
    """Writes `DroppedDocument`s as lines."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, document: StoredDocument, stage: str, reason: str) -> None:
        """Record that `stage` dropped or changed a document."""
        record = {"stage": stage, "reason": reason, "id": document.document_id}
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def read_dropped(corpus_dir: Path) -> Iterator[DroppedDocument]:
    """Every record of a finished corpus, file by file."""
    for path in sorted((corpus_dir / "dropped").glob("*.jsonl.zst")):
        for record in _lines(path):
            yield DroppedDocument(stage=record["stage"], reason=record["reason"], document_id=record["id"])


@contextmanager
def _renamed(path: Path) -> Iterator[BinaryIO]:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        yield file
    partial.replace(path)


@contextmanager
def _compressed(file: BinaryIO) -> Iterator[BinaryIO]:
    with zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file, closefd=False) as compressed:
        yield compressed  # type: ignore[misc]


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as file:
        remainder = b""
        while chunk := file.read(_READ_BYTES):
            *lines, remainder = (remainder + chunk).split(b"\n")
            yield from map(json.loads, lines)

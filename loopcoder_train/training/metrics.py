"""`metrics.jsonl`, the record of a run: append-only, one JSON object per line, written by rank 0.

Every line has `kind` ("train", "evaluation", "telemetry" or "event"), `step`, `attempt` and `time` (Unix seconds). A
resumed run appends, and so does one that went back to a checkpoint because of a bad step; where a step was trained
twice the last line of its kind counts (:func:`read_metrics`). Each line is one unbuffered write, so kill -9 loses at
most the tail of one line, which the next attempt closes with a newline.

A full disk does not stop training: lines wait in memory (the newest :data:`MAX_WAITING_LINES`) and are written once
there is room. The first failure and the recovery are reported; a run that ends before there was room says how many
lines are missing. Weights are worth more than their log, and a stop would lose both.
"""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from loopcoder_train.config import UserError

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
MAX_WAITING_LINES = 100_000
TAIL_BYTES = 1 << 20  # far more than one line: where the newest records are looked up

Record = dict[str, object]


class Sink(Protocol):
    """Another reader of the same records (`training/sinks.py`)."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def close(self, *, failed: bool) -> None:
        """Flush and finish."""
        ...


class Metrics:
    """What hooks write to. This one discards everything: it serves every rank but 0."""

    attempt = 0  # known where lines are written

    def write(self, kind: str, step: int, values: Record) -> None:
        """Record `values` of `step`."""

    def event(self, name: str, step: int, message: str, **details: object) -> None:
        """Record that something happened; `message` is for people."""
        self.write("event", step, {"event": name, "message": message, **details})

    def close(self, *, failed: bool = False) -> None:
        """Flush everything; `failed` marks the run in the sinks."""

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self.close(failed=error_type is not None)


class MetricsWriter(Metrics):
    """Appends to `path` and fans out to `sinks`. Create it on rank 0 only, close it when the run ends."""

    def __init__(self, path: Path, *, sinks: Sequence[Sink] = (), previous_attempt: int = 0) -> None:
        """Open `path`, closing a torn last line. `previous_attempt` is the resumed checkpoint's, 0 without one.

        Raises UserError where `path` cannot be written at all; its folder must exist.
        """
        self.path = path
        self.sinks = sinks
        self.attempt = max(last_attempt(path), previous_attempt) + 1
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING_LINES)
        self._lost_lines = 0
        self._failing = False
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be opened for writing ({error.strerror}); choose another run_dir"
            ) from error
        self._size = os.fstat(self._descriptor).st_size
        if _ends_inside_a_line(path):
            self._waiting.append(b"\n")
            self.event("metrics_repaired", 0, f"{path}: the last line was cut off by a kill; a newline was added")

    def write(self, kind: str, step: int, values: Record) -> None:
        """Append one line and hand the same record to the sinks; never raises for a full disk or a broken sink."""
        record: Record = {"kind": kind, "step": step, "attempt": self.attempt, "time": round(time.time(), 3), **values}
        line = json.dumps(finite(record), separators=(",", ":")) + "\n"
        if len(self._waiting) == MAX_WAITING_LINES:
            self._lost_lines += 1
        self._waiting.append(line.encode())
        self._drain(step)
        for sink in self.sinks:
            sink.write(record)

    def close(self, *, failed: bool = False) -> None:
        """Write what waits, close the file and the sinks. Safe to call twice."""
        if self._descriptor < 0:
            return
        self._drain(step=-1)
        if self._waiting or self._lost_lines:
            missing = len(self._waiting) + self._lost_lines
            logger.error("%s: %d lines could not be written and are lost", self.path, missing)
        os.close(self._descriptor)
        self._descriptor = -1
        for sink in self.sinks:
            sink.close(failed=failed)

    def _drain(self, step: int) -> None:
        """Write the waiting lines in order; on a failure keep them and cut a half-written one off the file."""
        try:
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self._cut_back()
            if not self._failing:
                logger.error("%s cannot be written (%s); training goes on, lines wait in memory", self.path, error)
            self._failing = True
            return
        if self._failing:
            logger.warning("%s is written again (step %d), %d lines were lost", self.path, step, self._lost_lines)
            self._failing = False

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._size += len(line)

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            # A read-only or vanished disk: the torn line stays and readers skip it.
            logger.debug("%s could not be cut back: %s", self.path, error)


def finite(value: object) -> object:
    """`value` with numbers that JSON does not know (NaN, infinities) as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def read_metrics(path: Path, kinds: Iterable[str] | None = None) -> list[Record]:
    """The final records of a run, ordered as first written: per kind and step the last line wins, events all stay.

    What was measured after the step that the run resumed from later, or went back to, is left out: the weights do not
    contain those steps.

    Lines cut off by a kill are skipped with one warning that counts them. FileNotFoundError without a file.
    """
    records: dict[object, Record] = {}
    wanted = None if kinds is None else set(kinds)
    torn = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            record = _parse(line)
            if record is None:
                torn += bool(line.strip())
                continue
            if record.get("event") in ("started", "resumed", "step_rewound"):
                _drop_after(records, record["step"])
            if wanted is not None and record["kind"] not in wanted:
                continue
            key = number if record["kind"] == "event" else (record["kind"], record["step"])
            records[key] = record
    if torn:
        logger.warning("%s: %d line(s) were cut off by a kill and are skipped", path, torn)
    return list(records.values())


def all_records(path: Path) -> Iterator[Record]:
    """Every whole line of `path` in order, those of abandoned attempts too. FileNotFoundError without a file."""
    with path.open("rb") as lines:
        for line in lines:
            record = _parse(line)
            if record is not None:
                yield record


def _drop_after(records: dict[object, Record], step: object) -> None:
    """Forget the measurements of an abandoned future; events happened all the same."""
    for key in [key for key, record in records.items() if record["kind"] != "event" and record["step"] > step]:
        del records[key]


def last_attempt(path: Path) -> int:
    """The attempt of the last whole line of `path`; 0 without one. Reads only the end of the file."""
    return next((int(record["attempt"]) for record in newest_records(path)), 0)


def last_event(path: Path, name: str) -> Record | None:
    """The newest event called `name`; None where the end of the file has none."""
    return next((record for record in newest_records(path) if record.get("event") == name), None)


def last_step(path: Path, *, since: float) -> int | None:
    """The last finished step that was recorded at `since` (Unix seconds) or later; None if nothing was.

    Knows what `logging.every_steps` lets into the file. Reads only its end.
    """
    for record in newest_records(path):
        if record["time"] < since:
            return None
        if record["kind"] != "event" or record["event"] in ("started", "resumed"):
            return int(record["step"])
    return None


def newest_records(path: Path) -> Iterator[Record]:
    """The whole lines in the last megabyte of `path`, newest first; nothing without a file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        record = _parse(line)
        if record is not None:
            yield record


def _parse(line: bytes) -> Record | None:
    """The record of one line, or None where the line is not one (cut off by a kill)."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not {"kind", "step", "attempt", "time"} <= record.keys():
        return None
    return record


def _ends_inside_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"

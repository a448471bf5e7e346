"""A second location: each committed checkpoint is copied to another folder while training goes on.

One process copies, in a thread, one checkpoint at a time. The copy is a checkpoint like any other, made in the order
of a save - files, name, COMMIT - and read back before COMMIT. Nothing that goes wrong here ends a run.
"""

import hashlib
import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from loopcoder_train.checkpoint.checkpoint import Checkpoint
from loopcoder_train.checkpoint.durable import publish, replace_durably, sync_folder
from loopcoder_train.checkpoint.errors import CheckpointError
from loopcoder_train.checkpoint.integrity import FileRecord, check_hash, damaged, open_regular
from loopcoder_train.checkpoint.layout import COMMIT, LATEST, MANIFEST, checkpoints_folder, final_name, unique_name
from loopcoder_train.checkpoint.retention import clean_leftovers, prune
from loopcoder_train.checkpoint.room import shortage
from loopcoder_train.checkpoint.survey import same_commit

_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of one copy. `problem`: why there is none, as one line; None when it is good."""

    step: int
    total_bytes: int = 0
    seconds: float = 0.0
    problem: str | None = None


class Mirror:
    """Copies checkpoints of one run to `folder` (which gets a `checkpoints/` like a run's). For one process of a job.

    keep_last: the newest copies that stay. A checkpoint that comes while another is being copied waits, the newest
    only. The thread is a daemon: a process that ends leaves what a killed save leaves.
    """

    def __init__(self, folder: Path, *, keep_last: int) -> None:
        self.folder, self._keep_last = Path(folder), keep_last
        self._lock, self._idle = threading.Lock(), threading.Event()
        self._idle.set()
        self._waiting: Path | None = None
        self._outcomes: list[Copied] = []

    def start(self, source: Path) -> None:
        """Have the committed checkpoint folder `source` copied; returns at once. Nothing happens if it is there."""
        if same_commit(source, checkpoints_folder(self.folder) / source.name):
            return
        with self._lock:
            if self._waiting is not None:
                skipped = Checkpoint(self._waiting).step
                self._outcomes.append(Copied(skipped, problem="a newer one was saved before its turn came"))
            self._waiting = source
            if self._idle.is_set():
                self._idle.clear()
                threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def outcomes(self) -> list[Copied]:
        """What ended since the last call."""
        with self._lock:
            ended, self._outcomes = self._outcomes, []
        return ended

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until nothing is being copied; whether that came true in time."""
        return self._idle.wait(timeout_seconds)

    def _work(self) -> None:
        while (source := self._next()) is not None:
            try:
                outcome = self._copied(source)
            except BaseException:  # a mistake in the code: the thread's traceback is printed, nobody waits for it
                self._idle.set()
                raise
            with self._lock:
                self._outcomes.append(outcome)

    def _next(self) -> Path | None:
        with self._lock:
            source, self._waiting = self._waiting, None
            if source is None:
                self._idle.set()
        return source

    def _copied(self, source: Path) -> Copied:
        began, step = time.perf_counter(), Checkpoint(source).step
        try:
            total_bytes = copy_checkpoint(source, self.folder, keep_last=self._keep_last)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            return Copied(step, problem=f"{error.strerror or error}{where}")
        except CheckpointError as error:
            return Copied(step, problem=str(error))
        return Copied(step, total_bytes, time.perf_counter() - began)


def copy_checkpoint(source: Path, mirror: Path, *, keep_last: int) -> int:
    """Copy the checkpoint folder `source` to `<mirror>/checkpoints/`, verify the copy, commit it, prune; its bytes.

    Raises OSError, also before anything is written when it does not fit, and CheckpointError where source or copy is
    not what its manifest says. What was in the mirror before stays good until the copy is.
    """
    checkpoint = Checkpoint(source)
    records = list(checkpoint.manifest.files.values())
    commit = (source / COMMIT).read_bytes()
    manifest = FileRecord(MANIFEST, (source / MANIFEST).stat().st_size, commit.decode("ascii").strip())
    total_bytes = sum(record.size_bytes for record in [*records, manifest])
    folder = checkpoints_folder(mirror)
    folder.mkdir(parents=True, exist_ok=True)
    clean_leftovers(folder)
    if (missing := shortage(folder, total_bytes)) is not None:
        raise OSError(f"it {missing}")
    temporary = folder / unique_name(checkpoint.step, "tmp")
    try:
        temporary.mkdir()
        for record in [*records, manifest]:
            _copy_file(source, temporary, record)
        for record in [*records, manifest]:
            check_hash(temporary, record)
        sync_folder(temporary)
        final = publish(temporary, checkpoint.step, commit)
    except (OSError, CheckpointError):
        shutil.rmtree(temporary, ignore_errors=True)  # what cannot be removed now, the next copy removes
        raise
    replace_durably(folder / LATEST, (final_name(checkpoint.step) + "\n").encode())
    clean_leftovers(folder)  # the former copy of this step
    prune(folder, keep_last, None, good=Checkpoint(final))
    return total_bytes


def _copy_file(source: Path, target: Path, record: FileRecord) -> None:
    """Copy one file durably, out of the page cache where the system offers that; its bytes are those recorded."""
    digest = hashlib.sha256()
    with open_regular(source / record.name) as reading, (target / record.name).open("xb", buffering=0) as writing:
        while chunk := reading.read(_CHUNK_BYTES):
            digest.update(chunk)
            remaining = memoryview(chunk)
            while remaining:
                remaining = remaining[writing.write(remaining) :]
        os.fsync(writing.fileno())
        if hasattr(os, "posix_fadvise"):  # so that reading back reads what the disk holds
            os.posix_fadvise(writing.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if digest.hexdigest() != record.sha256:
        raise damaged(source / record.name, "does not have the SHA-256 of the manifest")

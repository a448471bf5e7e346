"""One process writes into a run_dir: an advisory lock that the kernel releases when its holder dies, however it dies.

`<run_dir>/.<name>.lock` is locked with flock and holds, as JSON, who has it. The file is never deleted: whoever waits
for it would otherwise lock a name that no longer exists. A run_dir may be renamed while somebody waits, so a lock
counts only when its file is still the one at that path.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from loopcoder_train.config.errors import UserError

WAIT_SECONDS = 10.0  # workers of a killed launcher need up to 5 s to notice
_POLL_SECONDS = 0.1
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a lock."""

    host: str
    pid: int
    since: str  # ISO 8601, UTC

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def holder_of(run_dir: str | Path, name: str = "run") -> Holder | None:
    """Who has the lock `name` of run_dir at this moment; None when nobody has. Changes nothing.

    Raises UserError when the folder cannot be read.
    """
    path = RunLock(run_dir, name).path
    for _ in range(_TRIES):
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); look at another folder") from error
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back when the file is closed
            return None
        except BlockingIOError:
            holder = _read_holder(path)
        finally:
            os.close(file)
        if holder is not None:
            return holder
        time.sleep(_POLL_SECONDS)  # taken a moment ago: the name comes right after
    return Holder("an unknown machine", 0, "an unknown time")


def _read_holder(path: Path) -> Holder | None:
    try:
        content = json.loads(path.read_bytes())
        return Holder(str(content["host"]), int(content["pid"]), str(content["since"]))
    except (OSError, ValueError, KeyError, TypeError):  # written a moment ago, or not by us
        return None


class RunLock:
    """`with RunLock(run_dir): ...`, or acquire() and hold it until the process ends.

    name: "run" for whoever may write into run_dir; other names are other locks.
    """

    def __init__(self, run_dir: str | Path, name: str = "run") -> None:
        self.run_dir, self.name = Path(run_dir), name
        self._file: int | None = None

    @property
    def path(self) -> Path:
        """The lock file."""
        return self.run_dir / f".{self.name}.lock"

    def acquire(self, wait_seconds: float = WAIT_SECONDS) -> Self:
        """Take the lock, making run_dir if needed. Raises UserError naming the holder after `wait_seconds`."""
        assert self._file is None, "lock is already held"
        deadline = time.monotonic() + wait_seconds
        while (file := self._try()) is None:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"run_dir={self.run_dir}: is in use by {_read_holder(self.path) or 'another process'}; "
                    "wait for it, stop it, or give another run_dir"
                )
            time.sleep(_POLL_SECONDS)
        self._file = file
        return self

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if self._file is not None:
            _release_in_children.discard(self._file)
            os.close(self._file)
            self._file = None

    def move_to_new_folder(self) -> None:
        """After run_dir was renamed: hold the lock of the new folder at the old name."""
        old, self._file = self._file, None
        try:
            self.acquire()
        finally:
            if old is not None:
                _release_in_children.discard(old)
                os.close(old)

    def _try(self) -> int | None:
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"run_dir={self.run_dir}: cannot be used ({error.strerror}); give another run_dir"
            ) from error
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            except OSError as error:  # a file system without locks (Lustre needs its mount option `flock`)
                raise UserError(
                    f"run_dir={self.run_dir}: its file system has no file locks ({error.strerror}); mount it with "
                    "flock, or give a run_dir on another one"
                ) from error
            if not self._is_current(file):
                return None
            self._write_holder(file)
            on_failure.pop_all()
        _release_in_children.add(file)
        return file

    def _is_current(self, file: int) -> bool:
        try:
            at_path = self.path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(at_path, os.fstat(file))

    def _write_holder(self, file: int) -> None:
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)

    def __enter__(self) -> Self:
        return self.acquire() if self._file is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


# A forked child (a helper that saves a checkpoint, say) would keep the lock when its parent is killed.
_release_in_children: set[int] = set()


def _after_fork() -> None:
    for file in _release_in_children:
        with contextlib.suppress(OSError):
            os.close(file)
    _release_in_children.clear()


os.register_at_fork(after_in_child=_after_fork)

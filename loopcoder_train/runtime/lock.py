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
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from loopcoder_train.config.errors import UserError

WAIT_SECONDS = 10.0  # workers of a killed launcher need up to 5 s to notice
_POLL_SECONDS = 0.1


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
                    f"run_dir={self.run_dir}: is in use by {self._holder()}; "
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

    def _holder(self) -> str:
        try:
            holder = json.loads(self.path.read_bytes())
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):  # written a moment ago, or not by us
            return "another process"

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

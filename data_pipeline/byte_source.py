"""Where the bytes of a shard come from: a file of this machine here, a remote in data_pipeline/remote_shards.py."""

import os
import stat
from typing import Protocol

from data_pipeline.errors import DataError

REMEDY = "restore the file or build the corpus again"


class ByteSource(Protocol):
    """The bytes of one shard. name: for messages; size: of the file, in bytes."""

    name: str
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """These bytes; fewer where the file ends. Raises DataError."""

    def forget(self, offset: int, size: int) -> bool:
        """Drop copies of these bytes. Whether reading them again may give others."""

    def close(self) -> None:
        """Release what is held; safe to call twice."""


class LocalFile:
    """A shard on a file system of this machine; a `ByteSource`."""

    def __init__(self, path: str) -> None:
        self.name, self._descriptor = path, -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not be waited for
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise DataError(f"{path}: shard cannot be opened ({error.strerror}); {REMEDY}") from error
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise DataError(f"{path}: is no regular file; {REMEDY}")
        self.size = status.st_size

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read at byte {offset} ({error.strerror}); {REMEDY}") from error

    def forget(self, offset: int, size: int) -> bool:
        return False

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()  # a shard that leaves `ShardCache` while another thread reads it is closed after that

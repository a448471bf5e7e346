"""Chunks of remote files on a local disk: bounded, least recently used first out, shared by the processes of a node.

A chunk is a file: a header (magic, key, size, xxh3_64 of the content) and the content. It is written under another
name and renamed, and checked on every read, so that a killed process, a full disk or a flipped bit costs a second
download and never a wrong byte. The key says which content is meant (data_pipeline/remote_shards.py), so a chunk of
another corpus is never taken for one of this. Reads take no lock: a chunk that is evicted while it is read stays whole
until it is closed.

The bound holds without a list of all chunks: keys are hashes, so each of FOLDERS folders gets an equal part of the
chunks and of the bytes. Whoever writes holds the lock of the folder (flock: it dies with its process), adds to the
folder's count of bytes and, when that goes over, counts anew and removes the chunks that were read longest ago.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from data_pipeline.errors import DataError
from data_pipeline.reading import MIN_CACHED_CHUNKS

FOLDERS = 64
KEPT_AFTER_EVICTION = 0.9
_COUNT, _PARTIAL = "bytes", "partial"
_MAGIC = b"LCCHUNK1"
_HEADER = struct.Struct("<8s16sQQ")


class ChunkCache:
    """At most `max_bytes` of chunks below `directory`. Threads and processes may share it.

    Raises DataError, naming data.cache_dir, when the disk cannot be used or is full.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory, self.max_bytes = directory, max_bytes
        self._folder_bytes = max_bytes // FOLDERS
        try:
            for number in range(FOLDERS):
                (directory / f"{number:02x}").mkdir(parents=True, exist_ok=True)
            with self._locked(0):
                pass
        except OSError as error:
            raise self._error("cannot be used", error, "give a folder on a local disk that can be written") from error

    def get(self, key: bytes) -> bytes | None:
        """The content under a key of 16 bytes; None when it is not there or not whole."""
        try:
            with self._path(key).open("rb", buffering=0) as file:
                stored = file.read()
                os.utime(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error("a chunk cannot be read", error, "give a folder on a sound disk") from error
        if len(stored) < _HEADER.size:
            return None
        magic, name, size, checksum = _HEADER.unpack_from(stored)
        content = stored[_HEADER.size :]
        whole = (magic, name, size) == (_MAGIC, key, len(content)) and xxhash.xxh3_64_intdigest(content) == checksum
        return content if whole else None

    def put(self, key: bytes, content: bytes) -> None:
        """Keep content under a key, in the place of what was there."""
        stored = _HEADER.pack(_MAGIC, key, len(content), xxhash.xxh3_64_intdigest(content)) + content
        path = self._path(key)
        temporary = path.parent / _PARTIAL  # one of a killed process is written over
        try:
            with self._locked(_folder(key)) as counter:
                self._make_room(path.parent, counter, len(stored))
                try:
                    temporary.write_bytes(stored)
                except OSError:
                    temporary.unlink()
                    raise
                temporary.replace(path)
        except OSError as error:
            raise self._error("a chunk cannot be written", error, "free space, or lower data.cache_bytes") from error

    def remove(self, key: bytes) -> None:
        """Forget the content under a key."""
        with suppress(FileNotFoundError):
            self._path(key).unlink()

    def _path(self, key: bytes) -> Path:
        return self.directory / f"{_folder(key):02x}" / f"{key.hex()}.chunk"

    @contextmanager
    def _locked(self, folder: int) -> Iterator[int]:
        """Hold a folder's lock; yields the descriptor of the file that is both lock and count."""
        descriptor = os.open(self.directory / f"{folder:02x}" / _COUNT, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _make_room(self, folder: Path, counter: int, size: int) -> None:
        """Count `size` bytes more; the count is never lower than what lies there, but may be higher."""
        written = os.pread(counter, 32, 0)
        used = int(written) + size if written.isdigit() else self._folder_bytes + 1
        if used > self._folder_bytes:
            used = self._evict(folder, int(self._folder_bytes * KEPT_AFTER_EVICTION) - size) + size
        os.pwrite(counter, f"{used:032d}".encode(), 0)

    def _evict(self, folder: Path, allowed: int) -> int:
        """Remove chunks, the longest unread first, until at most `allowed` bytes are left; returns how many are."""
        found = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == _PARTIAL:  # nobody else writes here now
                    Path(entry.path).unlink()
                elif entry.name != _COUNT:
                    with suppress(FileNotFoundError):  # `remove` takes no lock
                        status = entry.stat()
                        found.append((status.st_mtime_ns, entry.path, status.st_size))
        left = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if left <= allowed:
                break
            Path(path).unlink(missing_ok=True)
            left -= size
        return left

    def _error(self, what: str, error: OSError, remedy: str) -> DataError:
        return DataError(f"data.cache_dir={self.directory}: {what} ({error.strerror}); {remedy}")


def _folder(key: bytes) -> int:
    return key[0] % FOLDERS


assert MIN_CACHED_CHUNKS >= 4 * FOLDERS

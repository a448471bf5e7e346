"""Bytes of a remote file, in spite of a network: `s3://`, `gs://`, `https://`, `memory://` ... through fsspec.

The journey of a read: (file, offset, size) -> one ranged request with a time limit -> what may pass (5xx, no answer, a
lost connection, a short answer) is tried again after a pause that doubles, with jitter, until the time of the whole
read is spent; what will not pass (404, 403, an answer without the range) is an error at once. Either way the error is
one DataError with URL, bytes, attempts and cause. `interrupt` ends the reads of other threads that are in progress.

Credentials come from the environment alone, as fsspec and its file systems define it (`FSSPEC_S3_KEY`, `AWS_PROFILE`,
...). A URL that carries one is refused, because URLs are written to run.yaml and to messages.
"""

import asyncio
import concurrent.futures
import logging
import os
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
from aiohttp import ClientError
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from data_pipeline.errors import DataError
from data_pipeline.reading import Reading, without_credentials

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 30.0
WRONG_ANSWERS = 4  # so often may an answer have the wrong length before the file itself is taken to be wrong
_PASSING_STATUS = (408, 425, 429)  # of the 4xx: timed out, too early, too many
_REQUEST_ERRORS = (OSError, ClientError)  # TimeoutError is an OSError


class ReadInterruptedError(DataError):
    """A read was ended by `Remote.interrupt`; nothing is wrong with the data."""


@dataclass(slots=True)
class _Attempts:
    """What a read has gone through so far."""

    began: float
    number: int = 0
    wrong_answers: int = 0
    cause: str = ""  # why the last one failed that had its time


class Remote:
    """The files below one URL. Threads may share it.

    Raises DataError when the URL holds credentials, or when nothing is installed that can read it in bounded time.
    """

    def __init__(self, url: str, reading: Reading) -> None:
        self.url = without_credentials(url).rstrip("/")
        self._reading = reading
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as error:
            raise DataError(f"data.corpus_dir={url}: cannot be used ({error}); install or correct it") from error
        # A request of a file system without coroutines cannot be ended when its time is over.
        if not isinstance(self._fs, AsyncFileSystem | MemoryFileSystem | LocalFileSystem):
            scheme = urlsplit(url).scheme
            raise DataError(
                f"data.corpus_dir={url}: requests of {scheme}:// cannot be timed; use s3://, gs://, abfs:// or https://"
            )
        self._condition = threading.Condition()
        self._interrupts = 0
        self._running: set[concurrent.futures.Future[bytes]] = set()

    def read(self, file: str, offset: int, size: int) -> bytes:
        """`size` >= 1 bytes of a file from `offset` on, never fewer. Raises DataError, or ReadInterruptedError."""
        return self._read(file, offset, size, exact=True, seconds=self._reading.attempt_timeout_seconds)

    def read_whole(self, file: str, max_bytes: int) -> bytes:
        """A small file. Raises DataError: larger than max_bytes, or not there (its cause is a FileNotFoundError)."""
        content = self._read(file, 0, max_bytes + 1, exact=False, seconds=self._reading.read_timeout_seconds)
        if len(content) > max_bytes:
            raise DataError(f"{self.url}/{file}: larger than {max_bytes} bytes; restore the file")
        return content

    def check_ranges(self, file: str) -> None:
        """DataError unless the server sends just the bytes that were asked for; else a shard would come as a whole."""
        self.read(file, 1, 1)

    def interrupt(self) -> None:
        """End the reads that other threads are in, with ReadInterruptedError. Later reads are not touched."""
        with self._condition:
            self._interrupts += 1
            self._condition.notify_all()
            running = list(self._running)
        for request in running:
            request.cancel()

    def _read(self, file: str, offset: int, size: int, *, exact: bool, seconds: float) -> bytes:
        interrupts, attempts = self._interrupts, _Attempts(began=time.monotonic())
        place = f"{self.url}/{file}: bytes {offset}-{offset + size - 1}"
        while True:
            attempts.number += 1
            spent = time.monotonic() - attempts.began
            limit = max(0.001, min(seconds, self._reading.read_timeout_seconds - spent))
            try:
                content = self._request(f"{self._root}/{file}", offset, size, limit)
            except concurrent.futures.CancelledError as error:
                raise ReadInterruptedError(f"{place}: reading was interrupted") from error
            except _REQUEST_ERRORS as error:
                # An attempt that the time of the whole read cut short says nothing new about the remote.
                if not (attempts.cause and limit < seconds and isinstance(error, TimeoutError)):
                    attempts.cause = _describe(error, limit)
                if (remedy := _lasting(error)) is not None:
                    raise DataError(f"{place} cannot be read ({attempts.cause}); {remedy}") from error
            else:
                if len(content) == size or (not exact and len(content) < size):
                    return content
                attempts.wrong_answers += 1
                attempts.cause = f"{len(content)} bytes came instead of {size}"
                self._check_length(place, len(content), size, attempts)
            self._pause(place, attempts, interrupts)

    def _request(self, path: str, offset: int, size: int, seconds: float) -> bytes:
        if not isinstance(self._fs, AsyncFileSystem):
            return self._fs.cat_file(path, start=offset, end=offset + size)

        async def timed() -> bytes:
            return await asyncio.wait_for(self._fs._cat_file(path, start=offset, end=offset + size), seconds)

        request = asyncio.run_coroutine_threadsafe(timed(), self._fs.loop)
        with self._condition:
            self._running.add(request)
        try:
            return request.result()
        finally:
            request.cancel()  # an exception in this thread (Ctrl-C) must not leave the request behind
            with self._condition:
                self._running.discard(request)

    def _check_length(self, place: str, came: int, size: int, attempts: _Attempts) -> None:
        if came > size:
            raise DataError(f"{place}: {came} bytes came: the server ignores ranges; use one that honours them")
        if attempts.wrong_answers >= WRONG_ANSWERS:
            raise DataError(
                f"{place}: file ended early: {attempts.cause}, {attempts.number} attempts; restore the file or build "
                "the corpus again"
            )

    def _pause(self, place: str, attempts: _Attempts, interrupts: int) -> None:
        """Wait before the next attempt. Raises DataError when there is no time for one."""
        longest = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (attempts.number - 1))
        seconds = longest * random.uniform(0.5, 1.0)  # many processes lose the same server at the same time
        spent = time.monotonic() - attempts.began
        if spent + seconds >= self._reading.read_timeout_seconds:
            raise DataError(
                f"{place} cannot be read: {attempts.number} attempts in {spent:.1f} s, the last one: {attempts.cause}; "
                f"see to the remote, or raise data.read_timeout_seconds={self._reading.read_timeout_seconds}"
            )
        logger.warning("%s: attempt %d failed (%s); again in %.1f s", place, attempts.number, attempts.cause, seconds)
        with self._condition:
            if self._condition.wait_for(lambda: self._interrupts != interrupts, seconds):
                raise ReadInterruptedError(f"{place}: reading was interrupted")


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error, if it has one."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _lasting(error: BaseException) -> str | None:
    """The remedy for an error that trying again will not mend; None for one that may pass."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "restore the file, or correct data.corpus_dir"
    if isinstance(error, PermissionError) or status in (401, 403):
        return "give this process credentials through the environment"
    if status == 416:
        return "the file is shorter than the manifest says: restore it or build the corpus again"
    if status is not None and 400 <= status < 500 and status not in _PASSING_STATUS:
        return "correct data.corpus_dir"
    return None


def _describe(error: BaseException, seconds: float) -> str:
    """One line about an error of a request; never its URL, which may hold a signature."""
    if isinstance(error, FileNotFoundError):
        return "404: not there"
    if isinstance(error, TimeoutError):
        return f"no complete answer within {seconds:.1f} s"
    if (status := _status(error)) is not None:
        return f"HTTP status {status}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def mirror_small_files(remote: Remote, folder: Path, files: dict[str, bool], max_bytes: int) -> None:
    """Copy small files of a corpus (name -> whether it must be there) into a folder; each is whole or absent.

    Raises DataError for what cannot be read or written. A file that need not be there is removed if the remote lost it.
    """
    for name, needed in files.items():
        try:
            content = remote.read_whole(name, max_bytes)
        except DataError as error:
            if needed or not isinstance(error.__cause__, FileNotFoundError):
                raise
            (folder / name).unlink(missing_ok=True)
            continue
        temporary = folder / f"{name}.{os.getpid()}.partial"
        try:
            temporary.write_bytes(content)
            temporary.replace(folder / name)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise DataError(
                f"data.cache_dir: {folder / name} cannot be written ({error.strerror}); free space"
            ) from error

"""Shards of a remote corpus, as bytes that come through a cache on the local disk.

The journey of a read: (offset, size) of a shard -> the chunks of `chunk_bytes` bytes that hold it -> each from the
cache, or else from the remote and into the cache. What is fetched already is waited for, not fetched again. `prefetch`
hands chunks to a few threads that do the same; they only ever fill the cache, so they cannot change what is read or in
which order, and what they fail to do is done again, loudly, by the read.

A chunk's key is made of the checksum of the shard's header as the manifest has it, which covers every checksum of the
shard: it names the content, not the place. When blocks do not match their checksums, `forget` drops the chunks they
came from, and the reader asks once more (shards.py).
"""

import hashlib
import queue
import threading
from concurrent.futures import Future
from pathlib import Path

from data_pipeline.chunk_cache import ChunkCache
from data_pipeline.errors import DataError
from data_pipeline.reading import Reading
from data_pipeline.remote import Remote
from data_pipeline.shards import HEADER_BYTES, ShardInfo, ShardLayout

_MAX_WAITING = 4096
_POLL_SECONDS = 0.05


class RemoteShards:
    """Opens the shards of one remote corpus. itemsize, block_tokens: what the manifest says of all of them."""

    def __init__(
        self, remote: Remote, cache: ChunkCache, reading: Reading, *, itemsize: int, block_tokens: int
    ) -> None:
        self.remote, self.cache, self.chunk_bytes = remote, cache, reading.chunk_bytes
        self._itemsize, self._block_tokens = itemsize, block_tokens
        self._lock = threading.Lock()
        self._fetching: dict[bytes, Future[bytes]] = {}
        self._waiting: set[bytes] = set()
        # More than this ahead would push out of the cache what was fetched first.
        self._max_waiting = max(1, min(_MAX_WAITING, reading.cache_bytes // (8 * reading.chunk_bytes)))
        self._queue: queue.SimpleQueue[tuple[RemoteFile, int, bytes] | None] = queue.SimpleQueue()
        self._num_threads, self._threads = reading.read_threads, []

    def open(self, file: str, info: ShardInfo) -> "RemoteFile":
        """One shard; nothing is read yet."""
        return RemoteFile(self, file, info, ShardLayout(info.num_tokens, self._itemsize, self._block_tokens))

    def prefetch(self, file: str, info: ShardInfo, start: int, stop: int) -> None:
        """Begin to fetch what reading the tokens start..stop-1 needs; returns at once. Dropped when too much waits."""
        shard = self.open(file, info)
        blocks = start // self._block_tokens, -(-stop // self._block_tokens)
        for offset, size in ((0, HEADER_BYTES), shard.layout.body(*blocks), shard.layout.footer(*blocks)):
            for number in shard.chunks(offset, size):
                self._submit(shard, number)

    def _submit(self, shard: "RemoteFile", number: int) -> None:
        key = shard.key(number)
        with self._lock:
            if key in self._waiting or key in self._fetching or len(self._waiting) >= self._max_waiting:
                return
            self._waiting.add(key)
            if len(self._threads) < self._num_threads:
                thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put((shard, number, key))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            shard, number, key = item
            with self._lock:
                wanted = key in self._waiting
                self._waiting.discard(key)
            if not wanted:
                continue
            try:
                self.chunk(shard, number)
            except DataError:
                continue  # whoever needs the chunk asks again and is told

    def chunk(self, shard: "RemoteFile", number: int) -> bytes:
        """One chunk of a shard, from the cache or the remote. Raises DataError."""
        key = shard.key(number)
        content = self.cache.get(key)
        if content is not None and len(content) == shard.chunk_size(number):
            return content
        with self._lock:
            self._waiting.discard(key)
            under_way = self._fetching.get(key)
            if under_way is None:
                mine = self._fetching[key] = Future()
        if under_way is not None:
            return under_way.result()
        try:
            content = self.remote.read(shard.file, number * self.chunk_bytes, shard.chunk_size(number))
            self.cache.put(key, content)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._fetching[key]
        mine.set_result(content)
        return content

    def interrupt(self) -> None:
        """End the reads of other threads that are in progress, and drop what waits to be fetched ahead."""
        with self._lock:
            self._waiting.clear()
        self.remote.interrupt()

    def close(self) -> None:
        """End the threads; safe to call twice. Reading goes on without them."""
        with self._lock:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._queue.put(None)
        while threads:
            self.interrupt()
            threads[0].join(_POLL_SECONDS)
            threads = [thread for thread in threads if thread.is_alive()]


class RemoteFile:
    """A shard behind a URL, for `ShardReader`."""

    def __init__(self, shards: RemoteShards, file: str, info: ShardInfo, layout: ShardLayout) -> None:
        self._shards, self.file, self.layout = shards, file, layout
        self.name = f"{shards.remote.url}/{file}"
        self.size = layout.num_bytes
        self._identity = f"{info.checksum}/{layout.num_bytes}/{shards.chunk_bytes}"

    def key(self, number: int) -> bytes:
        """Which content chunk `number` is: 16 bytes."""
        return hashlib.blake2b(f"{self._identity}/{number}".encode(), digest_size=16).digest()

    def chunks(self, offset: int, size: int) -> range:
        """The numbers of the chunks that hold these bytes."""
        return range(offset // self._shards.chunk_bytes, -(-(offset + size) // self._shards.chunk_bytes))

    def chunk_size(self, number: int) -> int:
        """Bytes in a chunk; the last of a file is shorter."""
        return min(self._shards.chunk_bytes, self.size - number * self._shards.chunk_bytes)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Raises DataError when they cannot be had."""
        numbers = self.chunks(offset, size)
        begin = offset - numbers.start * self._shards.chunk_bytes
        content = b"".join(self._shards.chunk(self, number) for number in numbers)
        return content[begin : begin + size]

    def forget(self, offset: int, size: int) -> bool:
        """Drop the copies of these bytes; True: reading them again may give others."""
        for number in self.chunks(offset, size):
            self._shards.cache.remove(self.key(number))
        return True

    def close(self) -> None:
        """Nothing is held open."""


def corpus_mirror(cache_dir: Path, url: str) -> Path:
    """The folder below cache_dir for the small files of the corpus at a URL."""
    readable = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in url)[-100:]
    return cache_dir / "corpora" / f"{readable}-{hashlib.blake2b(url.encode(), digest_size=6).hexdigest()}"

"""Token ids on disk: the shard, a flat file of little-endian ids with one checksum per block.

    header  64 bytes   magic, version, bytes per id, num_tokens, block_tokens, hash of the footer, tokenizer hash,
                       reserved, xxh3_64 of the 56 bytes before
    body    num_tokens ids, uint16 or uint32
    footer  one xxh3_64 per block of `block_tokens` ids (the last block may be shorter)

The journey of a read: (start, stop) in tokens -> the blocks that hold it -> one `pread` of ids and one of checksums
-> every block is hashed before any of its ids leaves this file. Some verified blocks are kept, as copies, so that
what is returned is always what was verified. Reads use `pread`, not a memory map: a map of a file that is truncated
meanwhile kills the process with SIGBUS, and thousands of maps meet the kernel's limit; both must be errors with a name.
The bytes of a shard may also come from elsewhere (`byte_source.py`).

Opening costs one 64-byte read. The header's checksum stands in the manifest: a shard swapped for another is noticed.
"""

import bisect
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import xxhash

from data_pipeline.byte_source import REMEDY, ByteSource, LocalFile
from data_pipeline.errors import DataError

MAGIC = b"LCTOKENS"
VERSION = 1
_HEADER = struct.Struct("<8sIIQQQQQQ")
HEADER_BYTES = _HEADER.size
CHECKSUM_BYTES = 8
_CHECKSUM = np.dtype("<u8")
MAX_HELD_BYTES = 4 * 2**20  # of verified blocks, by one corpus; little, so that they stay in the processor's cache
_REREADS = 3  # times that bytes which may be better next time are read again


@dataclass(kw_only=True, slots=True)
class ShardInfo:
    """One shard as the manifest knows it: path relative to the corpus, tokens, checksum of the header (16 hex)."""

    file: str
    num_tokens: int
    checksum: str


@dataclass(slots=True)
class ShardLayout:
    """Where things lie in a shard of `num_tokens` ids of `itemsize` bytes; ranges are (byte offset, bytes)."""

    num_tokens: int
    itemsize: int
    block_tokens: int

    @property
    def num_blocks(self) -> int:
        return -(-self.num_tokens // self.block_tokens)

    @property
    def footer_offset(self) -> int:
        return HEADER_BYTES + self.num_tokens * self.itemsize

    @property
    def num_bytes(self) -> int:
        return self.footer_offset + self.num_blocks * CHECKSUM_BYTES

    def body(self, first: int, stop: int) -> tuple[int, int]:
        """The ids of the blocks first..stop-1; the last block of the shard may be short."""
        begin, end = first * self.block_tokens, min(stop * self.block_tokens, self.num_tokens)
        return HEADER_BYTES + begin * self.itemsize, (end - begin) * self.itemsize

    def footer(self, first: int, stop: int) -> tuple[int, int]:
        """The checksums of the blocks first..stop-1."""
        return self.footer_offset + first * CHECKSUM_BYTES, (stop - first) * CHECKSUM_BYTES


class BadBlockError(DataError):
    """The tokens start..stop-1 (of a shard; of a source where `ShardedTokens` raises it) are not what was written."""

    def __init__(self, message: str, start: int, stop: int) -> None:
        super().__init__(message)
        self.start, self.stop = start, stop


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 when every id of the vocabulary fits, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<u4")


def tokenizer_tag(tokenizer_hash: str) -> int:
    """The first 64 bits of a tokenizer's sha256, which every shard carries."""
    return int(tokenizer_hash[:16], 16)


class ShardWriter:
    """Writes one shard: append ids, then `close`. Written beside its final name and renamed only when complete."""

    def __init__(self, path: Path, *, dtype: np.dtype, block_tokens: int, tokenizer_hash: str) -> None:
        if block_tokens < 1:
            raise DataError(f"block_tokens={block_tokens}: must be >= 1")
        self.path, self.dtype, self.block_tokens = path, dtype, block_tokens
        self.num_tokens = 0
        self._tag = tokenizer_tag(tokenizer_hash)
        self._pending = np.empty(0, dtype=dtype)
        self._checksums: list[int] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(path.name + ".partial")
        self._file = self._temporary.open("wb")
        self._file.write(bytes(HEADER_BYTES))

    def append(self, ids: np.ndarray) -> None:
        """Append ids [N]; ids that the dtype cannot hold are a DataError, never wrapped."""
        ids = np.asarray(ids)
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) > np.iinfo(self.dtype).max):
            raise DataError(
                f"{self.path.name}: token id {int(ids.max())} does not fit {self.dtype}; wrong vocabulary size"
            )
        self.num_tokens += ids.size
        joined = np.concatenate([self._pending, ids.astype(self.dtype)])
        whole = joined.size - joined.size % self.block_tokens
        for start in range(0, whole, self.block_tokens):
            self._write_block(joined[start : start + self.block_tokens])
        self._pending = joined[whole:]

    def _write_block(self, block: np.ndarray) -> None:
        content = block.tobytes()
        self._checksums.append(xxhash.xxh3_64_intdigest(content))
        self._file.write(content)

    def close(self) -> str:
        """Finish and rename; the checksum of the header, 16 hex digits."""
        if self._pending.size:
            self._write_block(self._pending)
        footer = np.array(self._checksums, dtype=_CHECKSUM).tobytes()
        self._file.write(footer)
        head = _HEADER.pack(
            *(MAGIC, VERSION, self.dtype.itemsize, self.num_tokens, self.block_tokens),
            *(xxhash.xxh3_64_intdigest(footer), self._tag, 0, 0),
        )[:-CHECKSUM_BYTES]
        checksum = xxhash.xxh3_64_intdigest(head)
        self._file.seek(0)
        self._file.write(head + struct.pack("<Q", checksum))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)
        return f"{checksum:016x}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._file.closed:
            self._file.close()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)


class ShardReader:
    """One open shard. Raises DataError, with file and byte offset, for anything that is not as it was written."""

    def __init__(self, source: ByteSource | Path, expected: ShardInfo | None = None) -> None:
        self._source = LocalFile(str(source)) if isinstance(source, Path) else source
        self.name = self._source.name
        rereads = _REREADS
        while True:
            head = self._source.read(0, HEADER_BYTES)
            try:
                self._read_header(head, expected)
                break
            except DataError:
                if rereads == 0 or not self._source.forget(0, HEADER_BYTES):
                    self.close()
                    raise
                rereads -= 1

    def _read_header(self, head: bytes, expected: ShardInfo | None) -> None:
        if len(head) < HEADER_BYTES:
            raise self._corrupt(0, f"{len(head)} bytes long, shorter than the {HEADER_BYTES}-byte header")
        magic, version, itemsize, tokens, block, footer, tag, _, checksum = _HEADER.unpack(head)
        if magic != MAGIC:
            raise self._corrupt(0, "does not begin like a shard")
        if xxhash.xxh3_64_intdigest(head[:-CHECKSUM_BYTES]) != checksum:
            raise self._corrupt(0, "checksum of the header does not match")
        if version != VERSION or itemsize not in (2, 4) or block < 1:
            raise DataError(f"{self.name}: shard version {version}; this program reads version {VERSION}")
        self.dtype = np.dtype(f"<u{itemsize}")
        self.layout = ShardLayout(tokens, itemsize, block)
        self.num_tokens, self.block_tokens, self.num_blocks = tokens, block, self.layout.num_blocks
        self.tokenizer_tag, self.checksum, self._footer_checksum = tag, f"{checksum:016x}", footer
        actual, size = self._source.size, self.layout.num_bytes
        if expected is not None and (expected.checksum != self.checksum or expected.num_tokens != tokens):
            raise DataError(
                f"{self.name}: shard is not the one of the manifest (checksum {self.checksum}, "
                f"manifest {expected.checksum}); {REMEDY}"
            )
        if actual != size:
            raise self._corrupt(min(actual, size), f"{actual} bytes long, should be {size}")

    def _corrupt(self, offset: int, what: str) -> DataError:
        return DataError(f"{self.name}: corrupt shard at byte {offset}: {what}; {REMEDY}")

    def blocks(self, first: int, stop: int) -> np.ndarray:
        """The ids of the blocks first..stop-1, verified, read-only. Raises BadBlockError for the first damaged one."""
        rereads = _REREADS
        while True:
            try:
                return self._blocks(first, stop)
            except BadBlockError:
                body, footer = self.layout.body(first, stop), self.layout.footer(first, stop)
                if rereads == 0 or not (self._source.forget(*body) and self._source.forget(*footer)):
                    raise
                rereads -= 1

    def _blocks(self, first: int, stop: int) -> np.ndarray:
        offset, size = self.layout.body(first, stop)
        footer_offset, footer_size = self.layout.footer(first, stop)
        content = self._source.read(offset, size)
        footer = self._source.read(footer_offset, footer_size)
        if len(content) != size or len(footer) != footer_size:
            raise self._corrupt(offset, "file ended early: truncated while in use")
        view, block_bytes = memoryview(content), self.block_tokens * self.layout.itemsize
        checksums = struct.unpack(f"<{stop - first}Q", footer)
        for number, checksum in enumerate(checksums):
            begin = number * block_bytes
            if xxhash.xxh3_64_intdigest(view[begin : begin + block_bytes]) != checksum:
                what = self._corrupt(offset + begin, f"checksum of block {first + number} does not match")
                start = (first + number) * self.block_tokens
                raise BadBlockError(str(what), start, min(start + self.block_tokens, self.num_tokens))
        return np.frombuffer(content, dtype=self.dtype)

    def verify(self) -> None:
        """Read and check everything, footer included. Raises DataError at the first difference."""
        footer = self._source.read(*self.layout.footer(0, self.num_blocks))
        if xxhash.xxh3_64_intdigest(footer) != self._footer_checksum:
            raise self._corrupt(self.layout.footer_offset, "checksum of the footer does not match")
        for block in range(self.num_blocks):
            self.blocks(block, block + 1)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._source.close()


class ShardCache:
    """Open shards and recently verified blocks of one corpus, both bounded. Threads may share it.

    open_source: (file as the manifest names it, its entry) -> its bytes; None: files below `ShardedTokens.directory`.
    No lock is held while bytes are read: a remote that is slow for one thread is not waited for by the others.
    """

    def __init__(
        self,
        max_open: int = 128,
        max_held_bytes: int = MAX_HELD_BYTES,
        open_source: Callable[[str, ShardInfo], ByteSource] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._max_open, self._max_held_bytes, self._open_source = max_open, max_held_bytes, open_source
        self._open: OrderedDict[str, ShardReader] = OrderedDict()
        # (file, first block) -> ids of it and the blocks behind it that were read with it.
        self._held: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._held_bytes = 0

    def read(self, directory: Path, info: ShardInfo, start: int, stop: int) -> np.ndarray:
        """Ids [stop - start] of one shard, read-only; 0 <= start < stop <= num_tokens."""
        file = info.file
        with self._lock:
            reader = self._open.get(file)
            if reader is not None:
                self._open.move_to_end(file)
                size = reader.block_tokens
                first = start // size
                held = self._held.get((file, first))
                if held is not None and held.size >= stop - first * size:
                    return held[start - first * size : stop - first * size]
        if reader is None:
            reader = self._reader(directory, info)
        size = reader.block_tokens
        first = start // size
        ids = reader.blocks(first, -(-stop // size))
        self._hold((file, first), ids)
        return ids[start - first * size : stop - first * size]

    def reader(self, directory: Path, info: ShardInfo) -> ShardReader:
        """The open shard of an entry."""
        with self._lock:
            reader = self._open.get(info.file)
        return self._reader(directory, info) if reader is None else reader

    def _reader(self, directory: Path, info: ShardInfo) -> ShardReader:
        source = directory / info.file if self._open_source is None else self._open_source(info.file, info)
        reader = ShardReader(source, info)
        with self._lock:
            reader = self._open.setdefault(info.file, reader)  # another thread may have been faster
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)  # closed as soon as nobody reads it
        return reader

    def _hold(self, key: tuple[str, int], ids: np.ndarray) -> None:
        with self._lock:
            replaced = self._held.pop(key, None)
            if replaced is not None:
                self._held_bytes -= replaced.nbytes
            self._held[key] = ids
            self._held_bytes += ids.nbytes
            while self._held_bytes > self._max_held_bytes:
                self._held_bytes -= self._held.popitem(last=False)[1].nbytes

    def close(self) -> None:
        """Let go of every file and block; later reads open them again."""
        with self._lock:
            self._open.clear()
            self._held.clear()
            self._held_bytes = 0


class ShardedTokens:
    """The shards of one source and split, in order, as one long array of tokens."""

    def __init__(self, directory: Path, shards: Sequence[ShardInfo], cache: ShardCache) -> None:
        self._directory, self._shards, self._cache = directory, list(shards), cache
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + shard.num_tokens)
        self.num_tokens = self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids [stop - start], uint16 or uint32, read-only; 0 <= start < stop <= num_tokens.

        Raises BadBlockError for damaged tokens, DataError for whatever else keeps them from being read.
        """
        assert 0 <= start < stop <= self.num_tokens, (start, stop, self.num_tokens)
        number = bisect.bisect_right(self._starts, start) - 1
        if stop <= self._starts[number + 1]:
            first = self._starts[number]
            return self._read(number, start - first, stop - first)
        return np.concatenate([self._read(*part) for part in self._within_shards(start, stop)])

    def _read(self, number: int, begin: int, end: int) -> np.ndarray:
        try:
            return self._cache.read(self._directory, self._shards[number], begin, end)
        except BadBlockError as error:
            first = self._starts[number]
            raise BadBlockError(str(error), first + error.start, first + error.stop) from error

    def read_around(self, start: int, stop: int, fill: int) -> tuple[np.ndarray, list[BadBlockError]]:
        """`read`, with `fill` in the place of every damaged token, and the damaged blocks, in order.

        Which tokens are filled depends on the blocks alone, not on start and stop.
        """
        parts, damaged = [], []
        while start < stop:
            try:
                parts.append(self.read(start, stop))
                break
            except BadBlockError as bad:
                if bad.start > start:
                    parts.append(self.read(start, bad.start))
                end = min(stop, bad.stop)
                parts.append(np.full(end - max(start, bad.start), fill, dtype=np.uint32))
                damaged.append(bad)
                start = end
        return np.concatenate(parts), damaged

    def _within_shards(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(number of the shard, start, stop within it) of every part of a range, in order."""
        number = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            begin, end = self._starts[number], self._starts[number + 1]
            if end > start:  # a shard may be empty
                yield number, start - begin, min(stop, end) - begin
                start = end
            number += 1

    def parts(self, start: int, stop: int) -> Iterator[tuple[ShardInfo, int, int]]:
        """(entry of the shard, start, stop within it) of every part of a range, in order."""
        for number, begin, end in self._within_shards(start, stop):
            yield self._shards[number], begin, end

    def locate(self, token: int) -> str:
        """`file, byte offset` of a token, for messages."""
        ((info, begin, _),) = self.parts(token, token + 1)
        reader = self._cache.reader(self._directory, info)
        return f"{reader.name}, byte {reader.layout.footer_offset - (info.num_tokens - begin) * reader.dtype.itemsize}"

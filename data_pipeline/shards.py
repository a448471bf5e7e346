"""Token ids on disk: the shard, a flat file of little-endian ids with one checksum per block.

    header  64 bytes   magic, version, bytes per id, num_tokens, block_tokens, hash of the footer, tokenizer hash,
                       reserved, xxh3_64 of the 56 bytes before
    body    num_tokens ids, uint16 or uint32
    footer  one xxh3_64 per block of `block_tokens` ids (the last block may be shorter)

The journey of a read: (start, stop) in tokens -> the blocks that hold it -> one `pread` of ids and one of checksums
-> every block is hashed before any of its ids leaves this file. A few verified blocks are kept, as copies, so that
what is returned is always what was verified. Reads use `pread`, not a memory map: a map of a file that is truncated
meanwhile kills the process with SIGBUS, and thousands of maps meet the kernel's limit; both must be errors with a name.

Opening costs one 64-byte read. The header's checksum stands in the manifest: a shard swapped for another is noticed.
"""

import bisect
import contextlib
import os
import stat
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import xxhash

from data_pipeline.errors import DataError

MAGIC = b"LCTOKENS"
VERSION = 1
_HEADER = struct.Struct("<8sIIQQQQQQ")
HEADER_BYTES = _HEADER.size
CHECKSUM_BYTES = 8
_CHECKSUM = np.dtype("<u8")


@dataclass(kw_only=True, slots=True)
class ShardInfo:
    """One shard as the manifest knows it: path relative to the corpus, tokens, checksum of the header (16 hex)."""

    file: str
    num_tokens: int
    checksum: str


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

    def __init__(self, path: Path, expected: ShardInfo | None = None) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not be waited for
        except OSError as error:
            raise DataError(
                f"{path}: shard cannot be opened ({error.strerror}); restore the file or build the corpus again"
            ) from error
        try:
            self._read_header(expected)
        except DataError:
            self.close()
            raise

    def _read_header(self, expected: ShardInfo | None) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise DataError(f"{self.path}: is no regular file; restore the file or build the corpus again")
        head = os.pread(self._descriptor, HEADER_BYTES, 0)
        if len(head) < HEADER_BYTES:
            raise self._corrupt(0, f"{len(head)} bytes long, shorter than the {HEADER_BYTES}-byte header")
        magic, version, itemsize, tokens, block, footer, tag, _, checksum = _HEADER.unpack(head)
        if magic != MAGIC:
            raise self._corrupt(0, "does not begin like a shard")
        if xxhash.xxh3_64_intdigest(head[:-CHECKSUM_BYTES]) != checksum:
            raise self._corrupt(0, "checksum of the header does not match")
        if version != VERSION or itemsize not in (2, 4) or block < 1:
            raise DataError(f"{self.path}: shard version {version}; this program reads version {VERSION}")
        self.dtype = np.dtype(f"<u{itemsize}")
        self.num_tokens, self.block_tokens = tokens, block
        self.num_blocks = -(-tokens // block)
        self.tokenizer_tag, self.checksum, self._footer_checksum = tag, f"{checksum:016x}", footer
        self._footer_offset = HEADER_BYTES + tokens * itemsize
        size = self._footer_offset + self.num_blocks * CHECKSUM_BYTES
        actual = os.fstat(self._descriptor).st_size
        if actual != size:
            raise self._corrupt(min(actual, size), f"{actual} bytes long, should be {size}")
        if expected is not None and (expected.checksum != self.checksum or expected.num_tokens != tokens):
            raise DataError(
                f"{self.path}: shard is not the one of the manifest (checksum {self.checksum}, "
                f"manifest {expected.checksum}); restore the file or build the corpus again"
            )

    def _corrupt(self, offset: int, what: str) -> DataError:
        return DataError(
            f"{self.path}: corrupt shard at byte {offset}: {what}; restore the file or build the corpus again"
        )

    def blocks(self, first: int, stop: int) -> list[np.ndarray]:
        """Blocks first..stop-1 as verified arrays of ids (the last one of the file may be short)."""
        itemsize = self.dtype.itemsize
        begin, end = first * self.block_tokens, min(stop * self.block_tokens, self.num_tokens)
        offset = HEADER_BYTES + begin * itemsize
        body = os.pread(self._descriptor, (end - begin) * itemsize, offset)
        footer_at = self._footer_offset + first * CHECKSUM_BYTES
        footer = os.pread(self._descriptor, (stop - first) * CHECKSUM_BYTES, footer_at)
        if len(body) != (end - begin) * itemsize or len(footer) != (stop - first) * CHECKSUM_BYTES:
            raise self._corrupt(offset, "file ended early: truncated while in use")
        sums = np.frombuffer(footer, dtype=_CHECKSUM).tolist()
        block_bytes = self.block_tokens * itemsize
        result = []
        for number, checksum in enumerate(sums):
            content = body[number * block_bytes : (number + 1) * block_bytes]
            if xxhash.xxh3_64_intdigest(content) != checksum:
                raise self._corrupt(offset + number * block_bytes, f"checksum of block {first + number} does not match")
            result.append(np.frombuffer(content, dtype=self.dtype))
        return result

    def verify(self) -> None:
        """Read and check everything, footer included. Raises DataError at the first difference."""
        footer = os.pread(self._descriptor, self.num_blocks * CHECKSUM_BYTES, self._footer_offset)
        if xxhash.xxh3_64_intdigest(footer) != self._footer_checksum:
            raise self._corrupt(self._footer_offset, "checksum of the footer does not match")
        for block in range(self.num_blocks):
            self.blocks(block, block + 1)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class ShardCache:
    """Open shards and recently verified blocks of one corpus, both bounded. Threads may share it."""

    def __init__(self, max_open: int = 128, max_blocks: int = 512) -> None:
        self._lock = threading.Lock()
        self._max_open, self._max_blocks = max_open, max_blocks
        self._open: OrderedDict[Path, ShardReader] = OrderedDict()
        self._blocks: OrderedDict[tuple[Path, int], np.ndarray] = OrderedDict()

    def read(self, path: Path, info: ShardInfo, start: int, stop: int) -> np.ndarray:
        """Ids [stop - start] of one shard; 0 <= start < stop <= num_tokens."""
        with self._lock:
            reader = self._reader(path, info)
            size = reader.block_tokens
            first, last = start // size, (stop - 1) // size
            held = [self._blocks.get((path, block)) for block in range(first, last + 1)]
            if any(block is None for block in held):
                held = reader.blocks(first, last + 1)
                self._keep(path, first, held)
        ids = held[0] if len(held) == 1 else np.concatenate(held)
        return ids[start - first * size : stop - first * size]

    def _reader(self, path: Path, info: ShardInfo) -> ShardReader:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        self._open[path] = reader = ShardReader(path, info)
        if len(self._open) > self._max_open:
            self._open.popitem(last=False)[1].close()
        return reader

    def _keep(self, path: Path, first: int, blocks: Sequence[np.ndarray]) -> None:
        for number, block in enumerate(blocks):
            self._blocks[path, first + number] = block
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def close(self) -> None:
        """Close every file; later reads open them again."""
        with self._lock, contextlib.ExitStack() as stack:
            for reader in self._open.values():
                stack.callback(reader.close)
            self._open.clear()
            self._blocks.clear()


class ShardedTokens:
    """The shards of one source and split, in order, as one long array of tokens."""

    def __init__(self, directory: Path, shards: Sequence[ShardInfo], cache: ShardCache) -> None:
        self._directory, self._shards, self._cache = directory, list(shards), cache
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + shard.num_tokens)
        self.num_tokens = self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids [stop - start], uint16 or uint32, read-only; 0 <= start < stop <= num_tokens."""
        assert 0 <= start < stop <= self.num_tokens, (start, stop, self.num_tokens)
        parts = []
        while start < stop:
            number = bisect.bisect_right(self._starts, start) - 1
            begin, info = self._starts[number], self._shards[number]
            end = min(stop, self._starts[number + 1])
            parts.append(self._cache.read(self._directory / info.file, info, start - begin, end - begin))
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def locate(self, token: int) -> str:
        """`file, byte offset` of a token, for messages."""
        number = bisect.bisect_right(self._starts, token) - 1
        info = self._shards[number]
        reader = ShardReader(self._directory / info.file, info)
        offset = HEADER_BYTES + (token - self._starts[number]) * reader.dtype.itemsize
        reader.close()
        return f"{self._directory / info.file}, byte {offset}"

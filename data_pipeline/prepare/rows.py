"""Rows of jsonl, parquet and Hugging Face datasets -> (name of the row, its columns).

Lines that are no JSON objects are counted, not fatal; a file that is itself damaged (truncated gzip, not a parquet
file) is a DataError, because nobody can say what it lost. Memory is bounded by one line or one batch of rows.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.errors import DataError, nearest_hint
from data_pipeline.prepare.documents import SourceConfig
from data_pipeline.prepare.files import TOO_LARGE, Skip

Row = tuple[str, dict[str, Any]]
_JSONL_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_PARQUET_BATCH_ROWS = 256
_READ_BYTES = 1 << 16
_ZSTD_INPUT_BYTES = 1 << 14  # small: a chunk may decompress to a thousand times its size
NOT_AN_OBJECT = "line is not a JSON object"


def read(config: SourceConfig, max_document_bytes: int, skip: Skip) -> Iterator[Row]:
    """The rows of a jsonl, parquet or huggingface source, in order of file name and row."""
    match config.kind.name:
        case "jsonl":
            return _jsonl(config, max_document_bytes, skip)
        case "parquet":
            return _parquet(config)
        case _:
            return _huggingface(config)


def _files(config: SourceConfig, endings: tuple[str, ...]) -> list[tuple[str, Path]]:
    root = Path(config.path)
    if root.is_file():
        return [(root.name, root)]
    if not root.is_dir():
        raise DataError(f"source {config.name!r}: {config.path} does not exist; correct its path")
    found = sorted(path for path in root.rglob("*") if path.is_file() and path.name.endswith(endings))
    if not found:
        raise DataError(f"source {config.name!r}: no {' or '.join(endings)} file in {config.path}; correct its path")
    return [(path.relative_to(root).as_posix(), path) for path in found]


def _jsonl(config: SourceConfig, max_document_bytes: int, skip: Skip) -> Iterator[Row]:
    import zstandard

    # A character takes at most 6 bytes in JSON (\u00e9); the rest is room for the other columns.
    limit = 6 * max_document_bytes + 65_536
    for name, path in _files(config, _JSONL_ENDINGS):
        try:
            with _open(path) as file:
                for number, line in _lines(file, limit, skip):
                    row = _object(line)
                    if row is None:
                        skip(NOT_AN_OBJECT, len(line))
                    else:
                        yield f"{name}:{number}", row
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise DataError(f"{path}: damaged compressed file ({error}); restore it or remove it") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}); correct the path") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdFile(path))  # type: ignore[return-value]
    return path.open("rb", buffering=_READ_BYTES)


class _ZstdFile(io.RawIOBase):
    """A .zst file of one or more frames. Unlike zstandard's own reader it notices that the last frame is cut off."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = path.open("rb")
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = None
        self._input, self._output = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._file.read(_ZSTD_INPUT_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("ends in the middle of a frame")
                return 0
            self._frame = self._frame or self._new_frame()
            self._output = self._frame.decompress(self._input)
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _lines(file: BinaryIO, limit: int, skip: Skip) -> Iterator[tuple[int, bytes]]:
    """(1-based number, line) of every line of at most `limit` bytes; blank lines are no rows."""
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        size = len(line)
        if size > limit:
            while not line.endswith(b"\n") and (line := file.readline(limit)):
                size += len(line)
            skip(TOO_LARGE, size)
        elif line.strip():
            yield number, line


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _parquet(config: SourceConfig) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [field for field in (config.text_field, config.language_field, config.name_field) if field]
    for name, path in _files(config, (".parquet",)):
        try:
            with pq.ParquetFile(path) as file:
                _check_columns(path, wanted, file.schema_arrow.names)
                number = 0
                for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=wanted):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{name}:{number}", row
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: not a readable parquet file ({reason}); restore it or remove it") from error


def _check_columns(where: object, wanted: list[str], present: list[str]) -> None:
    for field in wanted:
        if field not in present:
            raise DataError(f"{where}: no column {field!r}{nearest_hint(field, present)}")


def _huggingface(config: SourceConfig) -> Iterator[Row]:
    import datasets

    wanted = [field for field in (config.text_field, config.language_field, config.name_field) if field]
    try:
        dataset = _load(config)
        for number, row in enumerate(dataset, start=1):
            if number == 1:
                _check_columns(f"dataset {config.path}", wanted, list(row))
            yield f"{config.path}:{config.split}:{number}", row
    except DataError:
        raise
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"source {config.name!r}: dataset {config.path} split {config.split} cannot be read ({reason}); "
            "correct path and split, or log in"
        ) from error


def _load(config: SourceConfig) -> Any:
    import datasets

    path = Path(config.path)
    if (path / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(config.path)
        if config.split not in saved:
            raise DataError(f"source {config.name!r}: no split {config.split!r}{nearest_hint(config.split, saved)}")
        return saved[config.split]
    if (path / "state.json").is_file():
        return datasets.load_from_disk(config.path)
    name, _, subset = config.path.partition(":")
    return datasets.load_dataset(name, subset or None, split=config.split, streaming=True)

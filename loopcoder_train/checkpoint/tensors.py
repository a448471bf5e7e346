"""Tensors to and from the safetensors files of a checkpoint.

Writing: one rank's boxes, already in CPU memory, become one file, hashed while it is written. Reading: whatever boxes
the caller wants filled are intersected with the boxes on disk, and only the intersections are read. So any layout reads
what any other wrote. The bytes are read by the safetensors library, which checks a file's header against its size.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loopcoder_train.checkpoint.boxes import Box
from loopcoder_train.checkpoint.errors import CheckpointError
from loopcoder_train.checkpoint.index import DTYPES, Index, StoredBox, TensorEntry
from loopcoder_train.checkpoint.integrity import FileRecord, damaged
from loopcoder_train.model.state import TensorShard
from loopcoder_train.runtime.heartbeat import beat

_CHUNK_BYTES = 8 * 2**20
_DTYPE_NAMES = {dtype: (name, tag) for name, (dtype, tag) in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Name of `dtype` in index.json; AssertionError for a dtype that the format does not hold."""
    assert dtype in _DTYPE_NAMES, f"checkpoints do not hold {dtype}"
    return _DTYPE_NAMES[dtype][0]


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileRecord:
    """Create the safetensors file `path` from contiguous CPU tensors, hash it on the way and force it to the disk.

    Written here and not by the library so that the file is hashed without a second pass over memory, and so that a
    full disk stays an OSError with its reason. Raises OSError.
    """
    # Wide dtypes first keeps every tensor aligned to its item size, which readers that map the file need.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("xb", buffering=0) as file:
        for chunk in _file_chunks(ordered):
            digest.update(chunk)
            remaining = memoryview(chunk)
            while remaining:
                remaining = remaining[file.write(remaining) :]
            size_bytes += len(chunk)
            beat()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that the verification reads what the disk holds, not the page cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return FileRecord(path.name, size_bytes, digest.hexdigest())


def _file_chunks(tensors: list[tuple[str, Tensor]]) -> Iterable[bytes | memoryview]:
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for key, tensor in tensors:
        end = position + tensor.nbytes
        tag = _DTYPE_NAMES[tensor.dtype][1]
        header[key] = {"dtype": tag, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in tensors:
        flat = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
        for start in range(0, len(flat), _CHUNK_BYTES):
            yield flat[start : start + _CHUNK_BYTES]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One read: the part `box` of what `stored` holds goes to `target`."""

    stored: StoredBox
    entry: TensorEntry
    box: Box
    target: Tensor


def fill_shards(folder: Path, index: Index, shards: Iterable[TensorShard]) -> None:
    """Copy every shard's box from the checkpoint into its storage, casting to its dtype.

    Raises CheckpointError where the checkpoint has no tensor of that name, has it in another shape, or a file cannot
    be read; shards may then be filled partly.
    """
    pieces_of_file: dict[str, list[_Piece]] = defaultdict(list)
    for shard in shards:
        for piece in _pieces(folder, index, shard):
            pieces_of_file[piece.stored.file].append(piece)
    for file, pieces in sorted(pieces_of_file.items()):
        with _open_tensors(folder / file) as opened, torch.no_grad():
            for piece in pieces:
                piece.target.copy_(_read(folder / file, opened, piece))
                beat()


def _pieces(folder: Path, index: Index, shard: TensorShard) -> list[_Piece]:
    entry = index.get(shard.name)
    if entry is None:
        raise CheckpointError(f"{folder}: holds no tensor {shard.name}; load it with the model configuration it has")
    if entry.global_shape != tuple(shard.global_shape):
        raise CheckpointError(
            f"{folder}: {shard.name} has shape {list(entry.global_shape)}, the model wants "
            f"{list(shard.global_shape)}; load it with the model configuration it has"
        )
    wanted = Box(tuple(shard.offsets), tuple(shard.data.shape))
    data = shard.data.detach()
    pieces = []
    for stored in entry.boxes:
        common = stored.box.intersection(wanted)
        if common is not None:
            pieces.append(_Piece(stored, entry, common, data[wanted.slices_of(common)]))
    # The index was checked to cover each tensor exactly once, and the box lies within it.
    assert sum(piece.box.volume for piece in pieces) == wanted.volume, (shard.name, wanted)
    return pieces


@contextmanager
def _open_tensors(path: Path):
    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise damaged(path, f"is not a readable safetensors file ({reason})") from None


def _promised_slice(path: Path, opened, stored: StoredBox, entry: TensorEntry):
    """The library's lazy view of a stored box, after its shape and dtype were compared with the index."""
    part = opened.get_slice(stored.key)
    found = tuple(part.get_shape()), part.get_dtype()
    if found != (stored.box.lengths, DTYPES[entry.dtype][1]):
        raise damaged(path, f"{stored.key} is not as the index says, but {found[1]} {list(found[0])}")
    return part


def _read(path: Path, opened, piece: _Piece) -> Tensor:
    part = _promised_slice(path, opened, piece.stored, piece.entry)
    if piece.box == piece.stored.box:
        return opened.get_tensor(piece.stored.key)
    return part[piece.stored.box.slices_of(piece.box)]


def check_headers(folder: Path, index: Index, files: set[str]) -> None:
    """Check that `files` hold the boxes that the index promises, by key, shape and dtype; reads headers only."""
    promised: dict[str, list[tuple[StoredBox, TensorEntry]]] = defaultdict(list)
    for entry in index.values():
        for stored in entry.boxes:
            if stored.file in files:
                promised[stored.file].append((stored, entry))
    for file, boxes in promised.items():
        with _open_tensors(folder / file) as opened:
            for stored, entry in boxes:
                _promised_slice(folder / file, opened, stored, entry)


def read_tensor(folder: Path, index: Index, name: str, dtype: torch.dtype | None) -> Tensor:
    """The whole tensor `name` on the CPU, as `dtype` or as it was saved. Raises CheckpointError."""
    entry = index.get(name)
    if entry is None:
        raise CheckpointError(f"{folder}: holds no tensor {name}; load it with the model configuration it has")
    tensor = torch.empty(entry.global_shape, dtype=dtype or entry.torch_dtype)
    shard = TensorShard(name, entry.global_shape, (0,) * tensor.dim(), tensor)
    fill_shards(folder, index, [shard])
    return tensor

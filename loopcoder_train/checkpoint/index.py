"""index.json: which box of which tensor lies in which file, under which key.

Saving: every rank tells its boxes (`OwnedBox`), the same index comes out on every rank, and it says which file each
rank writes. Loading: the index is parsed, checked, and answers where any box of any tensor is found.
"""

import json
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from loopcoder_train.checkpoint.boxes import Box, cover_fault
from loopcoder_train.checkpoint.integrity import Manifest, check_fields, damaged, read_json
from loopcoder_train.checkpoint.layout import FORMAT_VERSION, INDEX, is_plain_file_name, tensors_name

# name in index.json -> (torch dtype, name in a safetensors header)
DTYPES: dict[str, tuple[torch.dtype, str]] = {
    "float64": (torch.float64, "F64"),
    "float32": (torch.float32, "F32"),
    "float16": (torch.float16, "F16"),
    "bfloat16": (torch.bfloat16, "BF16"),
    "int64": (torch.int64, "I64"),
    "int32": (torch.int32, "I32"),
    "int16": (torch.int16, "I16"),
    "int8": (torch.int8, "I8"),
    "uint8": (torch.uint8, "U8"),
    "bool": (torch.bool, "BOOL"),
}
MAX_DIMS = 16


@dataclass(frozen=True, slots=True)
class OwnedBox:
    """A box that one rank will write: what its shard says, without the data."""

    name: str
    global_shape: tuple[int, ...]
    dtype: str
    box: Box


@dataclass(frozen=True, slots=True)
class StoredBox:
    """A box on disk: the tensor `key` of the safetensors file `file`."""

    file: str
    key: str
    box: Box


@dataclass(slots=True)
class TensorEntry:
    """A tensor of the checkpoint, in boxes that cover it exactly once."""

    global_shape: tuple[int, ...]
    dtype: str
    boxes: list[StoredBox] = field(default_factory=list)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype][0]


Index = dict[str, TensorEntry]


def key_of(owned: OwnedBox) -> str:
    """The tensor's name within its safetensors file: the plain name if the box is the whole tensor."""
    if owned.box.lengths == owned.global_shape:
        return owned.name
    return f"{owned.name}@{','.join(map(str, owned.box.offsets))}"


def file_names(owned_by_rank: list[list[OwnedBox]]) -> list[str | None]:
    """The tensor file of every rank; None for ranks that own no elements."""
    writers = [rank for rank, boxes in enumerate(owned_by_rank) if any(owned.box.volume > 0 for owned in boxes)]
    names = {rank: tensors_name(number, len(writers)) for number, rank in enumerate(writers)}
    return [names.get(rank) for rank in range(len(owned_by_rank))]


def build_index(owned_by_rank: list[list[OwnedBox]]) -> Index:
    """The index of a checkpoint from every rank's boxes.

    Raises AssertionError naming the tensor where ranks disagree on its shape or dtype, or where the boxes do not cover
    it exactly once: a mistake of an engine must not become a checkpoint.
    """
    index: Index = {}
    for file, owned_boxes in zip(file_names(owned_by_rank), owned_by_rank, strict=True):
        for owned in owned_boxes:
            entry = index.setdefault(owned.name, TensorEntry(owned.global_shape, owned.dtype))
            assert (entry.global_shape, entry.dtype) == (owned.global_shape, owned.dtype), (
                f"{owned.name}: owned as {entry.dtype} {entry.global_shape} and as {owned.dtype} {owned.global_shape}"
            )
            if owned.box.volume > 0:
                assert file is not None
                entry.boxes.append(StoredBox(file, key_of(owned), owned.box))
    for name, entry in index.items():
        fault = cover_fault(entry.global_shape, [stored.box for stored in entry.boxes])
        assert fault is None, f"{name}: the saved shards are wrong, the tensor {fault}"
    return index


def index_bytes(index: Index) -> bytes:
    """The content of index.json."""
    tensors = {
        name: {
            "global_shape": entry.global_shape,
            "dtype": entry.dtype,
            "boxes": [
                {"file": stored.file, "key": stored.key, "offsets": stored.box.offsets, "lengths": stored.box.lengths}
                for stored in entry.boxes
            ],
        }
        for name, entry in sorted(index.items())
    }
    return json.dumps({"format_version": FORMAT_VERSION, "tensors": tensors}, separators=(",", ":")).encode()


def read_index(folder: Path, manifest: Manifest) -> Index:
    """Read and check index.json; raises CheckpointError.

    After the checks every box lies in a file of the manifest, no bytes are used twice, no file is asked for more bytes
    than it has, and every tensor is covered exactly once - so no entry can make a reader allocate more than the files'
    own size.
    """
    path = folder / INDEX
    if INDEX not in manifest.files:
        raise damaged(path, "is not in the manifest")
    content = read_json(folder, manifest.files[INDEX], {"format_version": int, "tensors": dict})
    index = {name: _entry(path, name, value) for name, value in content["tensors"].items()}
    used_bytes: dict[str, int] = {}
    keys: set[tuple[str, str]] = set()
    for name, entry in index.items():
        for stored in entry.boxes:
            if not is_plain_file_name(stored.file) or stored.file not in manifest.files:
                raise damaged(path, f"{name} lies in {stored.file!r}, which is not a file of the manifest")
            if (stored.file, stored.key) in keys:
                raise damaged(path, f"{name} uses key {stored.key!r} of {stored.file} a second time")
            keys.add((stored.file, stored.key))
            box_bytes = stored.box.volume * entry.torch_dtype.itemsize
            used_bytes[stored.file] = used_bytes.get(stored.file, 0) + box_bytes
    for file, size_bytes in used_bytes.items():
        if size_bytes > manifest.files[file].size_bytes:
            raise damaged(path, f"claims {size_bytes} bytes of {file}, which has {manifest.files[file].size_bytes}")
    return index


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    fields = check_fields(path, value, {"global_shape": list, "dtype": str, "boxes": list})
    shape = _sizes(path, name, fields["global_shape"])
    if fields["dtype"] not in DTYPES:
        raise damaged(path, f"{name} has the unknown dtype {fields['dtype']!r}")
    entry = TensorEntry(shape, fields["dtype"], [_stored_box(path, name, box) for box in fields["boxes"]])
    fault = (
        "has an empty box"
        if any(stored.box.volume == 0 for stored in entry.boxes)
        else cover_fault(shape, [stored.box for stored in entry.boxes])
    )
    if fault is not None:
        raise damaged(path, f"{name} {fault}")
    return entry


def _stored_box(path: Path, name: str, value: Any) -> StoredBox:
    fields = check_fields(path, value, {"file": str, "key": str, "offsets": list, "lengths": list})
    box = Box(_sizes(path, name, fields["offsets"]), _sizes(path, name, fields["lengths"]))
    return StoredBox(fields["file"], fields["key"], box)


def _sizes(path: Path, name: str, value: list[Any]) -> tuple[int, ...]:
    if len(value) > MAX_DIMS or any(type(size) is not int or not 0 <= size < 2**63 for size in value):
        raise damaged(path, f"{name} has a shape or box that is not up to {MAX_DIMS} sizes")
    return tuple(value)


def total_bytes(index: Index) -> int:
    """Bytes of all tensors of the checkpoint."""
    return sum(prod(entry.global_shape) * entry.torch_dtype.itemsize for entry in index.values())

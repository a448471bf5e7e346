"""One checkpoint on disk, read without an engine: its state, and any box of any of its tensors."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loopcoder_train.checkpoint.index import Index, read_index, total_bytes
from loopcoder_train.checkpoint.integrity import (
    Manifest,
    check_hash,
    check_presence,
    damaged,
    read_json,
    read_manifest,
)
from loopcoder_train.checkpoint.layout import COMMIT, FORMAT_VERSION, STATE, parse_folder
from loopcoder_train.checkpoint.tensors import check_headers, fill_shards, read_tensor
from loopcoder_train.model.state import TensorShard

_VERIFY_THREADS = 4  # hashing releases the interpreter lock


class Checkpoint:
    """A committed checkpoint folder.

    Opening costs nothing; the first use checks COMMIT, the manifest, the presence and size of every file, and the
    JSON files' hashes. Tensor files are hashed by `verify` only. Everything that is wrong is a CheckpointError.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r})"

    @property
    def step(self) -> int:
        """Optimizer steps done when it was saved; known from the folder's name also where the rest is damaged."""
        name = parse_folder(self.path.name)
        return self.manifest.step if name is None else name.step

    @property
    def commit(self) -> str:
        """The hash that it was committed with, which stands for every bit of it. OSError where it cannot be read."""
        return (self.path / COMMIT).read_text().strip()

    @property
    def state(self) -> dict[str, Any]:
        """The training state that was given to `save_checkpoint`."""
        return self._saved_state["training"]

    def rank_state(self, rank: int, world_size: int) -> dict[str, Any] | None:
        """What `rank` saved for itself (RNG); None if nothing, or if the job had another number of processes."""
        ranks = self._saved_state["ranks"]
        return ranks[rank] if self._saved_state["world_size"] == len(ranks) == world_size else None

    @property
    def world_size(self) -> int:
        """Processes of the job that saved it."""
        return self._saved_state["world_size"]

    def tensor_names(self) -> list[str]:
        """Names of all tensors, sorted: `model/...`, `adam_first_moment/...`, ..."""
        return sorted(self.index)

    def read_tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The whole tensor `name` on the CPU, as `dtype` or as it was saved."""
        return read_tensor(self.path, self.index, name, dtype)

    def fill(self, shards: Iterable[TensorShard]) -> None:
        """Copy every shard's box into its storage, casting to its dtype, whatever layout saved it.

        The caller's shards need not be those that were saved, nor all of them. After an error some may be filled.
        """
        fill_shards(self.path, self.index, shards)

    def verify(self, full: bool = True, share: tuple[int, int] = (0, 1)) -> None:
        """Raise CheckpointError unless everything is as it was saved.

        `full` also reads and hashes the tensor files (about 0.5 s per GB and core); without it only the JSON files are
        hashed and sizes compared. `share` = (i, n) restricts the expensive part to every n-th file from the i-th, for
        n processes that verify together.
        """
        _ = self.index, self._saved_state  # reading checks them
        if not full:
            return
        rank, size = share
        records = sorted(self.manifest.files.values(), key=lambda record: record.name)[rank::size]
        with ThreadPoolExecutor(min(_VERIFY_THREADS, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda record: check_hash(self.path, record), records):
                pass
        check_headers(self.path, self.index, {record.name for record in records})

    @cached_property
    def manifest(self) -> Manifest:
        """The checked manifest: every file is present with its size."""
        manifest = read_manifest(self.path)
        name = parse_folder(self.path.name)
        if name is not None and name.step != manifest.step:
            raise damaged(self.path, f"holds step {manifest.step}, not the one of its name")
        check_presence(self.path, manifest)
        return manifest

    @cached_property
    def index(self) -> Index:
        """Where every tensor lies."""
        return read_index(self.path, self.manifest)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return total_bytes(self.index)

    @cached_property
    def _saved_state(self) -> dict[str, Any]:
        path = self.path / STATE
        if STATE not in self.manifest.files:
            raise damaged(path, "is not in the manifest")
        fields = {"format_version": int, "step": int, "world_size": int, "training": dict, "ranks": list}
        state = read_json(self.path, self.manifest.files[STATE], fields)
        if state["step"] != self.manifest.step or state["format_version"] != FORMAT_VERSION:
            raise damaged(path, "belongs to another checkpoint")
        if len(state["ranks"]) != state["world_size"] or any(type(r) not in (dict, type(None)) for r in state["ranks"]):
            raise damaged(path, "ranks is not one object (or null) per process")
        return state

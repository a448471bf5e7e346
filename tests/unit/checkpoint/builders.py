"""Small runs, simulated ranks and forged folders for the checkpoint tests."""

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loopcoder_train.checkpoint import (
    AsyncSaver,
    Checkpoint,
    Ranks,
    SaveReport,
    save_checkpoint,
    take_snapshot,
    write_snapshot,
)
from loopcoder_train.checkpoint.layout import COMMIT, MANIFEST
from loopcoder_train.model.state import TensorShard, flat_range_boxes, whole


class _ThreadRanks(Ranks):
    """Ranks that are threads of this process, so that collective code runs in milliseconds."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        super().__init__(rank, size)
        self._barrier = barrier
        self._slots = slots

    def gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait(timeout=30)
        values = list(self._slots)
        self._barrier.wait(timeout=30)
        return values


def on_ranks(size: int, action: Callable[[Ranks], Any]) -> list[Any]:
    """Call `action(ranks)` on `size` simulated ranks; the outcome of each, an exception as a value."""
    barrier, slots, outcomes = threading.Barrier(size), [None] * size, [None] * size

    def call(rank: int) -> None:
        try:
            outcomes[rank] = action(_ThreadRanks(rank, size, barrier, slots))
        except Exception as error:  # handed to the test
            outcomes[rank] = error

    threads = [threading.Thread(target=call, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a rank hangs"
    return outcomes


def save_on_ranks(run_dir: Path, step: int, shards_by_rank: list[list[TensorShard]]) -> list[Any]:
    """Save from simulated ranks; reports or exceptions by rank."""

    def save(ranks: Ranks) -> SaveReport:
        snapshot = take_snapshot(step, shards_by_rank[ranks.rank], {"step": step}, {"rank": ranks.rank})
        return write_snapshot(run_dir, snapshot, ranks, keep_last=3, keep_every_steps=None)

    return on_ranks(len(shards_by_rank), save)


def cut(name: str, tensor: Tensor, how: str, parts: int) -> list[list[TensorShard]]:
    """Shards of `tensor` by rank: along dim 0 (`rows`), the last dim (`columns`) or its flat range (`flat`)."""
    if how == "flat" or tensor.dim() == 0:
        bounds = [tensor.numel() * rank // parts for rank in range(parts + 1)]
        return [_flat_part(name, tensor, bounds[rank], bounds[rank + 1]) for rank in range(parts)]
    dim = 0 if how == "rows" else tensor.dim() - 1
    bounds = [tensor.shape[dim] * rank // parts for rank in range(parts + 1)]
    shards = []
    for rank in range(parts):
        offsets = tuple(bounds[rank] if d == dim else 0 for d in range(tensor.dim()))
        data = tensor.narrow(dim, bounds[rank], bounds[rank + 1] - bounds[rank])
        shards.append([TensorShard(name, tuple(tensor.shape), offsets, data)])
    return shards


def _flat_part(name: str, tensor: Tensor, start: int, stop: int) -> list[TensorShard]:
    shards = []
    for offsets, lengths, _, _ in flat_range_boxes(tuple(tensor.shape), start, stop):
        slices = tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
        shards.append(TensorShard(name, tuple(tensor.shape), offsets, tensor[slices]))
    return shards


def tensors_of(step: int) -> dict[str, Tensor]:
    """Tensors whose values tell the step, of several ranks and dtypes."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model/embed": torch.randn(6, 4, generator=generator),
        "model/norm": torch.randn(5, generator=generator),
        "model/scale": torch.tensor(float(step)),
        "adam_first_moment/embed": torch.randn(6, 4, generator=generator).bfloat16(),
        "counts": torch.arange(step, step + 3),
    }


def save_step(run_dir: Path, step: int, *, keep_last: int = 3, keep_every_steps: int | None = None) -> SaveReport:
    """Save `tensors_of(step)` from one process."""
    shards = [whole(name, tensor) for name, tensor in tensors_of(step).items()]
    return save_checkpoint(
        run_dir,
        step,
        shards,
        {"step": step, "loss": 0.1 + step},
        rank_state={"rng": [step]},
        keep_last=keep_last,
        keep_every_steps=keep_every_steps,
    )


def save_step_in_a_thread(run_dir: Path, step: int, *, keep_last: int = 3) -> SaveReport:
    """`save_step` by an asynchronous saver."""
    saver = AsyncSaver(run_dir, Ranks.alone(), keep_last=keep_last, keep_every_steps=None)
    shards = [whole(name, tensor) for name, tensor in tensors_of(step).items()]
    saver.start(step, shards, {"step": step, "loss": 0.1 + step}, rank_state={"rng": [step]})
    return saver.result()


def assert_holds(checkpoint: Checkpoint | None, step: int) -> None:
    """`checkpoint` is exactly what `save_step(step)` saved."""
    assert checkpoint is not None
    assert checkpoint.step == step
    assert checkpoint.state == {"step": step, "loss": 0.1 + step}
    expected = tensors_of(step)
    assert checkpoint.tensor_names() == sorted(expected)
    for name, tensor in expected.items():
        loaded = checkpoint.read_tensor(name)
        assert loaded.dtype == tensor.dtype and torch.equal(loaded, tensor), name


def reseal(folder: Path, edit_manifest: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
    """Make manifest and COMMIT agree with the files of `folder` again, as somebody who means harm would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for record in manifest["files"]:
        content = (folder / record["name"]).read_bytes()
        record |= {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(manifest)
    content = json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / COMMIT).write_text(hashlib.sha256(content).hexdigest() + "\n")

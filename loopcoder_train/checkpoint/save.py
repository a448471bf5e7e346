"""The second half of a save: from the ranks' snapshots to a committed checkpoint.

    all ranks   tell which boxes they own; the union must cover every tensor exactly once
    rank 0      creates step-N.tmp-<unique>
    all ranks   write their tensor file, force it to the disk, read it back and compare hashes
    rank 0      writes index.json, state.json, manifest.json; renames the folder; writes COMMIT; moves `latest`; prunes

After each line the ranks tell each other whether it worked. If the file system refused anywhere (disk full, read-only,
not shared between nodes), the temporary folder goes away, every rank raises the same SaveFailed, and all earlier
checkpoints are as they were. A job killed anywhere leaves folders without COMMIT, which nobody takes for a checkpoint
and a later save removes.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from loopcoder_train.checkpoint.checkpoint import Checkpoint
from loopcoder_train.checkpoint.durable import publish, replace_durably, sync_folder, write_durably
from loopcoder_train.checkpoint.errors import CheckpointError, NoRoom, SaveFailed, Shortage
from loopcoder_train.checkpoint.index import Index, build_index, file_names, index_bytes
from loopcoder_train.checkpoint.integrity import (
    FileRecord,
    Manifest,
    check_hash,
    check_presence,
    commit_bytes,
    manifest_bytes,
)
from loopcoder_train.checkpoint.layout import (
    FORMAT_VERSION,
    INDEX,
    LATEST,
    MANIFEST,
    STATE,
    checkpoints_folder,
    final_name,
    unique_name,
)
from loopcoder_train.checkpoint.ranks import Ranks
from loopcoder_train.checkpoint.retention import clean_leftovers, prune
from loopcoder_train.checkpoint.room import bytes_of_save, shortage
from loopcoder_train.checkpoint.snapshot import Snapshot, take_snapshot
from loopcoder_train.checkpoint.tensors import write_tensors
from loopcoder_train.model.state import TensorShard

T = TypeVar("T")


@dataclass(slots=True)
class SaveReport:
    """What a save did, equal on every rank. Seconds are those of the slowest rank."""

    path: Path
    total_bytes: int  # of all files but COMMIT
    snapshot_seconds: float  # training cannot go on during these; during the others it can (`async_save`)
    write_seconds: float
    verify_seconds: float
    commit_seconds: float
    pruned: list[str] = field(default_factory=list)  # folder names
    warnings: list[str] = field(default_factory=list)  # what failed after the checkpoint was safe
    next_shortage: Shortage | None = None  # another checkpoint of this size does not fit beside those that stay


@dataclass(slots=True)
class _Written:
    """One rank's share of the writing."""

    record: FileRecord | None
    write_seconds: float
    verify_seconds: float


def save_checkpoint(
    run_dir: Path,
    step: int,
    shards: list[TensorShard],
    state: dict[str, Any],
    *,
    rank_state: dict[str, Any] | None = None,
    keep_last: int,
    keep_every_steps: int | None,
) -> SaveReport:
    """Save a checkpoint of `step` (optimizer steps done). Collective: every rank of the job calls it.

    Only shards with `owner` are saved. `state` is JSON, rank 0's is saved; `rank_state` is JSON of each rank, given
    back to a job of as many processes only. The newest `keep_last` checkpoints and those at multiples of
    `keep_every_steps` stay, older ones are deleted. Saving a step again replaces it.

    Raises SaveFailed (an OSError), the same on every rank, when the file system refused, and its NoRoom before anything
    is written when the checkpoint does not fit: nothing is lost but this checkpoint. Raises AssertionError when the
    owned shards do not cover every tensor exactly once.
    """
    snapshot = take_snapshot(step, shards, state, rank_state)
    return write_snapshot(
        Path(run_dir), snapshot, Ranks.current(), keep_last=keep_last, keep_every_steps=keep_every_steps
    )


def write_snapshot(
    run_dir: Path, snapshot: Snapshot, ranks: Ranks, *, keep_last: int, keep_every_steps: int | None
) -> SaveReport:
    """Write, verify and commit the snapshots of all `ranks`; see `save_checkpoint`. Touches no live tensor."""
    told = ranks.gather((snapshot.step, snapshot.owned, snapshot.rank_state, snapshot.seconds))
    assert {step for step, *_ in told} == {snapshot.step}, "ranks save different steps"
    owned_by_rank = [owned for _, owned, _, _ in told]
    index = build_index(owned_by_rank)
    folder = checkpoints_folder(run_dir)
    leader = ranks.rank == 0
    state = {
        "format_version": FORMAT_VERSION,
        "step": snapshot.step,
        "world_size": ranks.size,
        "training": snapshot.state,
        "ranks": [rank_state for _, _, rank_state, _ in told],
    }
    temporary: Path | None = None
    try:

        def begin() -> str | Shortage:
            return _begin(folder, snapshot.step, bytes_of_save(index, state)) if leader else ""

        begun = _together(ranks, snapshot.step, begin)[0]
        if isinstance(begun, Shortage):
            raise NoRoom(snapshot.step, begun)
        temporary = folder / begun
        file = file_names(owned_by_rank)[ranks.rank]
        written = _together(ranks, snapshot.step, lambda: _write_share(temporary, file, snapshot))
        records = [share.record for share in written if share.record is not None]

        def commit() -> SaveReport | None:
            return _commit(temporary, snapshot.step, index, state, records) if leader else None

        report = _together(ranks, snapshot.step, commit)[0]
    except SaveFailed:
        if leader and temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)  # what cannot be removed now, the next save removes
        raise
    report.snapshot_seconds = max(seconds for *_, seconds in told)
    report.write_seconds = max(share.write_seconds for share in written)
    report.verify_seconds = max(share.verify_seconds for share in written)
    if leader:
        _after_commit(folder, snapshot.step, keep_last, keep_every_steps, report)
    return ranks.gather(report)[0]


def _together(ranks: Ranks, step: int, action: Callable[[], T]) -> list[T]:
    """Do `action` on every rank and return all outcomes; if any rank's failed, raise SaveFailed on every rank."""
    outcome, reason = None, None
    try:
        outcome = action()
    except OSError as error:
        reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    except CheckpointError as error:  # what was written does not read back
        reason = str(error)
    told = ranks.gather((outcome, reason))
    for rank, (_, reason) in enumerate(told):
        if reason is not None:
            raise SaveFailed(f"checkpoint of step {step} was not saved: rank {rank}: {reason}")
    return [outcome for outcome, _ in told]


def _begin(folder: Path, step: int, needed_bytes: int) -> str | Shortage:
    """Remove what killed saves left and create the temporary folder; returns its name, or why it would not fit."""
    folder.mkdir(parents=True, exist_ok=True)
    clean_leftovers(folder)
    if (missing := shortage(folder, needed_bytes)) is not None:
        return missing
    name = unique_name(step, "tmp")
    (folder / name).mkdir()
    return name


def _write_share(temporary: Path, file: str | None, snapshot: Snapshot) -> _Written:
    """Write this rank's tensors and read them back."""
    if file is None:
        return _Written(None, 0.0, 0.0)
    start = time.perf_counter()
    record = write_tensors(temporary / file, snapshot.tensors)
    written = time.perf_counter()
    check_hash(temporary, record)
    return _Written(record, written - start, time.perf_counter() - written)


def _commit(
    temporary: Path, step: int, index: Index, state: dict[str, Any], tensor_records: list[FileRecord]
) -> SaveReport:
    """Complete the folder, give it its name, and only then commit it. On OSError the former state is restored."""
    start = time.perf_counter()
    records = list(tensor_records)
    for name, content in ((INDEX, index_bytes(index)), (STATE, json.dumps(state).encode())):
        records.append(_write_json(temporary, name, content))
    manifest = Manifest(step, {record.name: record for record in records})
    manifest_record = _write_json(temporary, MANIFEST, manifest_bytes(manifest))
    check_presence(temporary, manifest)  # also finds ranks that wrote to another, unshared file system
    sync_folder(temporary)

    final = publish(temporary, step, commit_bytes(manifest_record.sha256))
    total = sum(record.size_bytes for record in [*records, manifest_record])
    return SaveReport(final, total, 0.0, 0.0, 0.0, commit_seconds=time.perf_counter() - start)


def _write_json(temporary: Path, name: str, content: bytes) -> FileRecord:
    """Write a small file durably and read it back."""
    write_durably(temporary / name, content)
    record = FileRecord(name, len(content), hashlib.sha256(content).hexdigest())
    check_hash(temporary, record)
    return record


def _after_commit(folder: Path, step: int, keep_last: int, keep_every_steps: int | None, report: SaveReport) -> None:
    """Move `latest` and prune. The checkpoint is safe already, so a failure here is only reported."""
    start = time.perf_counter()
    try:
        replace_durably(folder / LATEST, (final_name(step) + "\n").encode())
        clean_leftovers(folder)  # the former checkpoint of this step
        report.pruned = prune(folder, keep_last, keep_every_steps, good=Checkpoint(report.path))
        report.next_shortage = shortage(folder, report.total_bytes)
    except OSError as error:
        report.warnings.append(f"{error.filename or folder}: {error.strerror or error} after the checkpoint was saved")
    report.commit_seconds += time.perf_counter() - start

"""What a person can ask about the checkpoints of a run: which there are, are they whole, which may go.

Everything works on a run's folder or on its mirror's, beside a run that is being trained too; only `prune_run` wants
the run for itself, and its caller holds the lock.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loopcoder_train.checkpoint.checkpoint import Checkpoint
from loopcoder_train.checkpoint.discovery import find_checkpoint
from loopcoder_train.checkpoint.errors import CheckpointError
from loopcoder_train.checkpoint.layout import COMMIT, checkpoints_folder, parse_folder
from loopcoder_train.checkpoint.ranks import Ranks
from loopcoder_train.checkpoint.retention import clean_leftovers, doomed, fault_of, kept_by, prune


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint folder, as far as sizes and small files tell."""

    step: int
    path: str
    saved_at: str  # ISO 8601, UTC: of COMMIT, of the folder where there is none
    size_bytes: int
    state: str  # good, bad or not committed
    reason: str  # one line; empty for a good one
    kept_by: str  # the rule; empty: the next save deletes it
    mirrored: str  # yes, no, only there (the run has lost it); empty without a mirror


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted, or would be: folder names, oldest first, and their bytes."""

    kept: Checkpoint  # the newest good one, verified in full
    names: list[str]
    freed_bytes: int


def survey(run_dir: Path, *, keep_last: int, keep_every_steps: int | None, mirror: Path | None) -> list[Entry]:
    """The checkpoint folders of `run_dir`, oldest first, then those that only `mirror` (a folder like run_dir) has.

    Reads sizes and small files, no tensor file. Folders may come and go meanwhile: one that goes is left out.
    """
    folder = checkpoints_folder(run_dir)
    paths = list(_folders(folder))
    good_step = max((_step(path) for path in paths if _is_final(path) and fault_of(path) is None), default=None)
    if good_step is None:
        rules = {_step(path): "no good one is there" for path in paths}
    else:
        rules = kept_by(folder, keep_last, keep_every_steps, good_step=good_step)
    entries = [_entry(path, rules, mirror) for path in paths]
    if mirror is not None:
        names = {path.name for path in paths}
        lost = [path for path in _folders(checkpoints_folder(mirror)) if _is_final(path) and path.name not in names]
        entries += [_entry(path, {}, None, mirrored="only there") for path in lost]
    return [entry for entry in entries if entry is not None]


def verify_run(run_dir: Path, step: int | None = None) -> Iterator[tuple[Path, bool, str | None]]:
    """Each checkpoint folder, oldest first, whether it has a COMMIT, and what is wrong with it (None: nothing).

    Reads every byte, about 0.5 s per GB and core. With `step`, folders of that step only.
    """
    for path in _folders(checkpoints_folder(run_dir)):
        if parse_folder(path.name).kind == "tmp" or step not in (None, _step(path)):
            continue
        reason = None
        try:
            Checkpoint(path).verify()
        except CheckpointError as error:
            reason = str(error)
        if reason is None or path.exists():  # not: pruned by a running job while it was being read
            yield path, (path / COMMIT).exists(), reason


def prune_run(run_dir: Path, *, keep_last: int, keep_every_steps: int | None, dry_run: bool) -> Pruned:
    """Delete what retention does not keep, and what killed saves left. The caller holds the run's lock.

    Raises CheckpointError, having deleted nothing, where the run has no good checkpoint; OSError.
    """
    folder = checkpoints_folder(run_dir)
    found = find_checkpoint(run_dir, ranks=Ranks.alone())
    if found.checkpoint is None:
        reason = found.rejected[0] if found.rejected else "it holds no checkpoint"
        raise CheckpointError(f"run_dir={run_dir}: no good checkpoint is left, so nothing is deleted ({reason})")
    good = found.checkpoint
    if not _is_final(good.path):
        raise CheckpointError(
            f"{good.path}: is the newest good checkpoint, and was being replaced when the run was killed; resume "
            "the run first, then prune"
        )
    old = doomed(folder, keep_last, keep_every_steps, good_step=good.step)
    leftovers = [path for path in _folders(folder) if not _is_final(path)]
    freed_bytes = sum(map(size_of, [*old, *leftovers]))
    if not dry_run:
        before = _bytes_of(folder)
        clean_leftovers(folder)
        prune(folder, keep_last, keep_every_steps, good=good)
        freed_bytes = before - _bytes_of(folder)  # less than announced where an `old` folder came back to its name
    return Pruned(good, [path.name for path in [*old, *leftovers]], freed_bytes)


def size_of(folder: Path) -> int:
    """Bytes of the files directly in `folder`; 0 where it has gone."""
    try:
        return sum(path.lstat().st_size for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return 0


def same_commit(path: Path, other: Path) -> bool:
    """Whether two folders were committed with the same content, as their COMMITs say; nothing is verified."""
    try:
        return (path / COMMIT).read_bytes()[:200] == (other / COMMIT).read_bytes()[:200]
    except OSError:
        return False


def _entry(path: Path, rules: dict[int, str | None], mirror: Path | None, mirrored: str = "") -> Entry | None:
    committed = (path / COMMIT).exists()
    try:
        seconds = ((path / COMMIT) if committed else path).lstat().st_mtime
    except FileNotFoundError:
        return None
    kind = parse_folder(path.name).kind
    reason = "left by a killed save, or being written" if kind == "tmp" else fault_of(path)
    state = "good" if reason is None else "bad" if committed and kind != "tmp" else "not committed"
    if mirror is not None and not mirrored:
        mirrored = "yes" if same_commit(path, checkpoints_folder(mirror) / path.name) else "no"
    rule = rules.get(_step(path)) if kind == "final" else None
    when = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    return Entry(_step(path), str(path), when, size_of(path), state, reason or "", rule or "", mirrored)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if parse_folder(path.name) is not None)


def _bytes_of(folder: Path) -> int:
    return sum(map(size_of, _folders(folder)))


def _step(path: Path) -> int:
    return parse_folder(path.name).step


def _is_final(path: Path) -> bool:
    return parse_folder(path.name).kind == "final"

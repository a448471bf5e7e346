"""Which checkpoints stay. Deleting one never makes the run poorer than its newest good checkpoint."""

import shutil
from pathlib import Path

from loopcoder_train.checkpoint.checkpoint import Checkpoint
from loopcoder_train.checkpoint.durable import remove_checkpoint, sync_folder
from loopcoder_train.checkpoint.errors import CheckpointError
from loopcoder_train.checkpoint.layout import COMMIT, LATEST, checkpoints_folder, final_name, parse_folder


def prune(folder: Path, keep_last: int, keep_every_steps: int | None, *, good: Checkpoint) -> list[str]:
    """Delete old checkpoints of `folder` (a run's `checkpoints/`); returns the names of the deleted ones, oldest first.

    `good` is one that was verified in full just now: it always stays, and so does everything newer. Of the older ones
    stay the newest that, with it, make `keep_last` (only those count whose sizes and small files are right), and those
    at multiples of `keep_every_steps`. Raises OSError.
    """
    assert keep_last >= 1
    older = sorted((name.step for name in _final_folders(folder) if name.step < good.step), reverse=True)
    kept = 1
    doomed = []
    for step in older:
        path = folder / final_name(step)
        if kept < keep_last and _looks_good(path):
            kept += 1
        elif keep_every_steps is None or step % keep_every_steps != 0 or not (path / COMMIT).exists():
            doomed.append(path)
    for path in reversed(doomed):
        remove_checkpoint(path)
    return [path.name for path in reversed(doomed)]


def clean_leftovers(folder: Path) -> None:
    """Remove what a killed job left in a run's `checkpoints/`; raises OSError. One job per run: nobody else writes.

    The former checkpoint of a step that was being saved again comes back unless the new one was committed.
    """
    for path in sorted(folder.iterdir()):
        name = parse_folder(path.name)
        if name is None or path.is_symlink():
            continue
        if name.kind == "tmp":
            shutil.rmtree(path)
        elif name.kind == "old":
            final = folder / final_name(name.step)
            if (final / COMMIT).exists():
                remove_checkpoint(path)
                continue
            if final.exists():
                remove_checkpoint(final)
            path.rename(final)
    (folder / f"{LATEST}.tmp").unlink(missing_ok=True)


def set_aside(run_dir: Path, *, after_step: int = -1) -> Path | None:
    """Move all checkpoints newer than `after_step` out of the way, for a run that starts over or goes back.

    They go to `<run_dir>/checkpoints-set-aside-<n>/`, where no resume finds them, and nothing is deleted. Returns that
    folder, or None if there was nothing to move. Not collective: one process calls it. Raises OSError.
    """
    folder = checkpoints_folder(run_dir)
    if not folder.is_dir():
        return None
    clean_leftovers(folder)
    newer = [final_name(name.step) for name in _final_folders(folder) if name.step > after_step]
    if not newer:
        return None
    number = 1
    while (target := Path(run_dir) / f"checkpoints-set-aside-{number}").exists():
        number += 1
    target.mkdir()
    (folder / LATEST).unlink(missing_ok=True)
    for name in sorted(newer, reverse=True):  # newest first: a kill in between leaves a consistent, shorter history
        (folder / name).rename(target / name)
    sync_folder(target)
    sync_folder(folder)
    return target


def _final_folders(folder: Path):
    names = [parse_folder(path.name) for path in folder.iterdir() if not path.is_symlink()]
    return [name for name in names if name is not None and name.kind == "final"]


def _looks_good(path: Path) -> bool:
    try:
        Checkpoint(path).verify(full=False)
    except CheckpointError:
        return False
    return True

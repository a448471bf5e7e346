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
    paths = doomed(folder, keep_last, keep_every_steps, good_step=good.step)
    for path in paths:
        remove_checkpoint(path)
    return [path.name for path in paths]


def doomed(folder: Path, keep_last: int, keep_every_steps: int | None, *, good_step: int) -> list[Path]:
    """The checkpoints in `folder` that `prune` deletes, oldest first."""
    rules = kept_by(folder, keep_last, keep_every_steps, good_step=good_step)
    return [folder / final_name(step) for step, rule in sorted(rules.items()) if rule is None]


def kept_by(folder: Path, keep_last: int, keep_every_steps: int | None, *, good_step: int) -> dict[int, str | None]:
    """Which rule keeps each step's folder in `folder`, in words for people; None for those that `prune` deletes.

    Reads sizes and small files of the older ones only. `good_step`: that of `prune`'s `good`.
    """
    assert keep_last >= 1
    rules: dict[int, str | None] = {}
    kept = 1
    for step in sorted((name.step for name in _final_folders(folder)), reverse=True):
        path = folder / final_name(step)
        if step >= good_step:
            rules[step] = "newest good" if step == good_step else "newer than it"
        elif kept < keep_last and looks_good(path):
            kept += 1
            rules[step] = f"keep_last={keep_last}"
        elif keep_every_steps is not None and step % keep_every_steps == 0 and (path / COMMIT).exists():
            rules[step] = f"keep_every_steps={keep_every_steps}"
        else:
            rules[step] = None
    return rules


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


def looks_good(path: Path) -> bool:
    """Whether sizes and small files of the checkpoint folder `path` are right; no tensor file is read."""
    return fault_of(path) is None


def fault_of(path: Path) -> str | None:
    """What is wrong with sizes and small files of the checkpoint folder `path`, as one line; None if nothing."""
    try:
        Checkpoint(path).verify(full=False)
    except CheckpointError as error:
        return str(error)
    return None

"""File operations that survive a crash of the machine: data first, then its name, each forced to the disk."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from loopcoder_train.checkpoint.layout import COMMIT, final_name, parse_folder, unique_name


def sync_folder(folder: Path) -> None:
    """Force the names in `folder` to the disk (creations, renames, deletions)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Create the file `path` with `content` and force the bytes (not yet the name) to the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, content: bytes) -> None:
    """Give `path` new content in one step: a reader sees the old bytes or the new ones, also after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # left by a killed job
    write_durably(temporary, content)
    temporary.replace(path)
    sync_folder(path.parent)


def publish(temporary: Path, step: int, commit: bytes) -> Path:
    """Give the complete folder `temporary` the name of `step` and commit it; on OSError the former state is restored.

    A checkpoint of that step that is there already gets an `old` name. Returns the new path.
    """
    folder = temporary.parent
    final, former = folder / final_name(step), None
    try:
        if final.exists():
            former = final.rename(folder / unique_name(step, "old"))
        temporary.rename(final)
        sync_folder(folder)
        replace_durably(final / COMMIT, commit)
    except OSError:
        with suppress(OSError):
            final.rename(temporary)
        with suppress(OSError):
            if former is not None:
                former.rename(final)
        raise
    return final


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint folder; under its own name it is there completely or not at all, also when killed."""
    name = parse_folder(folder.name)
    assert name is not None, folder
    if name.kind != "tmp":
        folder = folder.rename(folder.with_name(unique_name(name.step, "tmp")))
    shutil.rmtree(folder)

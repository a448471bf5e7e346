"""Whose copies a mirror folder holds: a run never resumes from, or prunes, those of another run of the same name."""

import os
from pathlib import Path

from loopcoder_train.config.errors import UserError

OWNER_FILE = "mirror-of"
_MAX_BYTES = 10_000


def check_mirror_owner(mirror: Path, run_dir: Path) -> None:
    """Raise UserError where `mirror` holds the copies of a run in another folder than `run_dir`. Changes nothing."""
    path = mirror / OWNER_FILE
    try:
        with path.open("rb") as file:
            owner = file.read(_MAX_BYTES).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"checkpoint.mirror_dir={mirror.parent}: cannot be read ({error.strerror}: {path})") from error
    if owner != str(run_dir.resolve()):
        raise UserError(
            f"checkpoint.mirror_dir={mirror.parent}: {mirror} holds the checkpoints of the run in {owner}; give "
            f"another folder, or delete {path} if that run now lies in {run_dir.resolve()}"
        )


def claim_mirror(mirror: Path, run_dir: Path) -> None:
    """Make the folder `mirror` and note that it belongs to `run_dir`. Raises UserError as `check_mirror_owner`.

    A folder that cannot be made costs nothing here: the first copy will fail, and say so.
    """
    check_mirror_owner(mirror, run_dir)
    path = mirror / OWNER_FILE
    temporary = mirror / f"{OWNER_FILE}.{os.getpid()}.partial"
    try:
        mirror.mkdir(parents=True, exist_ok=True)
        temporary.write_text(f"{run_dir.resolve()}\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:
        return

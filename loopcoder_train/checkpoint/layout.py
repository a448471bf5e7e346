"""Where the checkpoints of a run lie and how their folders and files are called.

    <run_dir>/checkpoints/step-00000100/                 a checkpoint, once it holds COMMIT
    <run_dir>/checkpoints/step-00000100.tmp-<unique>/    being written or deleted; left behind only by a killed job
    <run_dir>/checkpoints/step-00000100.old-<unique>/    the former checkpoint of a step that is being saved again
    <run_dir>/checkpoints/latest                         name of the newest folder, for people and scripts

Nothing decides by `latest`: discovery looks at the folders, so a torn `latest` costs nothing.
"""

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS = "checkpoints"
LATEST = "latest"
INDEX = "index.json"
STATE = "state.json"
MANIFEST = "manifest.json"
COMMIT = "COMMIT"

FORMAT_VERSION = 1

_FOLDER = re.compile(r"step-(\d{8,19})(?:\.(tmp|old)-[0-9a-f]+)?", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FolderName:
    """A parsed folder name: its step (optimizer steps done) and whether it is a final, `tmp` or `old` folder."""

    step: int
    kind: str  # "final", "tmp" or "old"


def checkpoints_folder(run_dir: Path) -> Path:
    """The folder that holds all checkpoints of the run."""
    return Path(run_dir) / CHECKPOINTS


def final_name(step: int) -> str:
    """Folder name of the checkpoint of `step`."""
    assert 0 <= step < 10**19, step
    return f"step-{step:08d}"


def unique_name(step: int, kind: str) -> str:
    """A fresh folder name of kind `tmp` or `old` for `step`."""
    return f"{final_name(step)}.{kind}-{secrets.token_hex(6)}"


def parse_folder(name: str) -> FolderName | None:
    """Read a folder name; None if it is not one of ours (`step-000000100` is not: it has another spelling)."""
    match = _FOLDER.fullmatch(name)
    if match is None or not name.startswith(final_name(int(match[1]))):
        return None
    step = int(match[1])
    if match[2] is None and name != final_name(step):
        return None
    return FolderName(step, match[2] or "final")


def tensors_name(index: int, count: int) -> str:
    """Name of the `index`-th of `count` tensor files; one per rank that owns something."""
    return f"tensors-{index:05d}-of-{count:05d}.safetensors"


def is_plain_file_name(name: str) -> bool:
    """Whether `name` can only mean a file directly inside its folder: no separators, no `..`, nothing hidden."""
    return _FILE.fullmatch(name) is not None

"""Whether a checkpoint fits on its file system, asked before a byte of it is written."""

import json
import shutil
from pathlib import Path
from typing import Any

from loopcoder_train.checkpoint.errors import Shortage
from loopcoder_train.checkpoint.index import Index, index_bytes, total_bytes

# Above what is counted: headers and manifest (by box), and the blocks that names and small files take.
_BYTES_PER_BOX = 512
_BYTES_BESIDE = 65_536


def bytes_of_save(index: Index, state: dict[str, Any]) -> int:
    """Bytes that a checkpoint with these tensors and this `state.json` will take, a little more than it does."""
    boxes = sum(len(entry.boxes) for entry in index.values())
    small = len(index_bytes(index)) + len(json.dumps(state))
    return total_bytes(index) + small + boxes * _BYTES_PER_BOX + _BYTES_BESIDE


def shortage(folder: Path, needed_bytes: int) -> Shortage | None:
    """The shortage for `needed_bytes` more below `folder`; None where they fit. Quotas are not seen. Raises OSError."""
    free_bytes = shutil.disk_usage(folder).free
    return Shortage(needed_bytes, free_bytes) if needed_bytes > free_bytes else None

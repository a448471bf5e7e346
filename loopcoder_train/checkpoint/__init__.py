"""Checkpoints: a run's state on disk, in safetensors and JSON only, readable by any layout and without an engine.

A save goes `snapshot` (copy to CPU memory) -> `save` (write, verify, COMMIT, `latest`, prune), the latter in a thread
with `async_save`; a load goes `discovery` (the newest good one) -> `checkpoint` (fill any boxes of any tensors). The
format is described in docs/checkpoints.md.
"""

from loopcoder_train.checkpoint.async_save import AsyncSaver
from loopcoder_train.checkpoint.checkpoint import Checkpoint
from loopcoder_train.checkpoint.discovery import Found, checkpoints_of, find_checkpoint, require_checkpoint
from loopcoder_train.checkpoint.errors import CheckpointError, NoRoom, SaveFailed
from loopcoder_train.checkpoint.mirror import Mirror
from loopcoder_train.checkpoint.ranks import Ranks
from loopcoder_train.checkpoint.retention import set_aside
from loopcoder_train.checkpoint.save import SaveReport, save_checkpoint, write_snapshot
from loopcoder_train.checkpoint.snapshot import Snapshot, take_snapshot

__all__ = [
    "AsyncSaver",
    "Checkpoint",
    "CheckpointError",
    "Found",
    "Mirror",
    "NoRoom",
    "Ranks",
    "SaveFailed",
    "SaveReport",
    "Snapshot",
    "checkpoints_of",
    "find_checkpoint",
    "require_checkpoint",
    "save_checkpoint",
    "set_aside",
    "take_snapshot",
    "write_snapshot",
]

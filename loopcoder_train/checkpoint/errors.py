"""What can be wrong with a checkpoint: it cannot be read (the user's matter) or not be written (the disk's)."""

from dataclasses import dataclass

from loopcoder_train.config.errors import UserError


class CheckpointError(UserError):
    """A checkpoint that cannot be used: one line that names the file, what is wrong with it and a remedy."""


class SaveFailed(OSError):  # noqa: N818 - an event of the disk that training survives
    """A save that the file system refused on at least one rank: one line, the same on every rank.

    Nothing of the attempt is left that could be taken for a checkpoint, and earlier checkpoints are untouched, so
    training may log it and go on.
    """


@dataclass(frozen=True, slots=True)
class Shortage:
    """What a save needs and what the file system has free for this user, in bytes."""

    needed_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        return f"needs {self.needed_bytes:,} bytes, {self.free_bytes:,} are free"


class NoRoom(SaveFailed):
    """A save that was not begun because the file system has not enough room for it; as SaveFailed."""

    def __init__(self, step: int, shortage: Shortage) -> None:
        super().__init__(f"checkpoint of step {step} was not begun: it {shortage}")
        self.shortage = shortage

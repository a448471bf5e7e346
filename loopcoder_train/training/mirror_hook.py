"""Has every committed checkpoint copied to a second location, and tells what came of it. For rank 0 only.

After the hook that saves. It looks at the folder, not at the hook: whatever is committed and not yet in the mirror is
copied, so a copy that a killed attempt lost is made up for when the next one starts.
"""

import time
from collections.abc import Callable

from loopcoder_train.checkpoint import Mirror, checkpoints_of
from loopcoder_train.config import RunConfig
from loopcoder_train.runtime.heartbeat import beat
from loopcoder_train.training.checkpoint_hook import CheckpointHook
from loopcoder_train.training.loop import Hook, Run, Step

MIRROR_SECONDS = 1800.0  # how long a run that is done waits for the last copy, at most
HURRIED_SECONDS = 10.0  # one that was asked to stop, because whoever asked will not wait long (KillWait: 30 s)


class MirrorHook(Hook):
    """Events `mirrored` and `mirror_failed`, the latter with a line on the console; training goes on after both.

    `saved_at()`: the step of the newest checkpoint, as far as this attempt knows.
    """

    doing = "copying a checkpoint to the mirror"

    def __init__(self, mirror: Mirror, *, saved_at: Callable[[], int], patience_seconds: float) -> None:
        self._mirror, self._saved_at, self._patience_seconds = mirror, saved_at, patience_seconds
        self._given = -1  # newest step that the mirror was given

    def on_start(self, run: Run) -> None:
        """The newest checkpoint may not have been copied yet."""
        self._give(run)

    def after_step(self, run: Run, step: Step) -> None:
        """Start the copy of a new checkpoint, tell what became of others."""
        if self._saved_at() > self._given:
            self._give(run)
        self._tell(run)

    def after_bad_step(self, run: Run, step: Step) -> None:
        """The run may have gone back, and will save steps again."""
        self._given = min(self._given, run.state.step)

    def on_stop(self, run: Run) -> None:
        """Wait a bounded time for the last copy; its loss is told and costs the checkpoint in run_dir nothing."""
        self._give(run)
        patience = self._patience_seconds
        if run.stop_reason is not None:
            patience = min(patience, HURRIED_SECONDS)
        deadline = time.monotonic() + patience
        while not (done := self._mirror.wait(min(1.0, patience))) and time.monotonic() < deadline:
            beat()
        self._tell(run)
        if not done:
            self._warn(run, f"a copy to {self._mirror.folder} was not finished after {patience:.0f} s; {_NEXT_START}")

    def _give(self, run: Run) -> None:
        committed = checkpoints_of(run.run_dir)
        if committed and committed[-1].step > self._given:
            self._given = committed[-1].step
            self._mirror.start(committed[-1].path)

    def _tell(self, run: Run) -> None:
        for copied in self._mirror.outcomes():
            if copied.problem is None:
                run.metrics.event(
                    "mirrored",
                    run.state.step,
                    f"copied the checkpoint of step {copied.step} to {self._mirror.folder}",
                    checkpoint_step=copied.step,
                    checkpoint_bytes=copied.total_bytes,
                    copy_seconds=copied.seconds,
                )
            else:
                what = f"the checkpoint of step {copied.step} was not copied to {self._mirror.folder}"
                self._warn(run, f"{what} ({copied.problem}); training goes on", checkpoint_step=copied.step)

    def _warn(self, run: Run, message: str, **fields: int) -> None:
        run.metrics.event("mirror_failed", run.state.step, message, **fields)
        run.console.note(f"WARNING: {message}")


_NEXT_START = "the next start of the run copies it"


def mirror_hooks(config: RunConfig, rank: int, saving: CheckpointHook) -> list[Hook]:
    """The copies to a second location, by rank 0 after the commit, where they are asked for."""
    folder = config.checkpoint.mirror_of(config.run_dir)
    if folder is None or rank != 0:
        return []
    # The others wait for rank 0 at the end, and are taken for hanging after the whole time.
    hang_timeout = config.guards.hang_timeout_seconds
    patience = MIRROR_SECONDS if hang_timeout is None else min(MIRROR_SECONDS, hang_timeout / 2)
    mirror = Mirror(folder, keep_last=config.checkpoint.mirror_keep_last)
    return [MirrorHook(mirror, saved_at=lambda: saving.saved_at, patience_seconds=patience)]

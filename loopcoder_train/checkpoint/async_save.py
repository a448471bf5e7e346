"""Saving while training goes on: training stands still for the snapshot only.

    main thread   start: take_snapshot (copy to CPU memory)  |  trains, asks `done`        |  result
    a thread                                                 |  write_snapshot, all of it  |

One save at a time: its snapshot lies in buffers that the next one fills again. The thread is a daemon, so a process
that ends for another reason is not held up by it; such a save is one that was killed, and leaves what those leave.
"""

import threading
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from loopcoder_train.checkpoint.ranks import Ranks
from loopcoder_train.checkpoint.save import SaveReport, write_snapshot
from loopcoder_train.checkpoint.snapshot import Snapshot, SnapshotBuffers, take_snapshot
from loopcoder_train.model.state import TensorShard


class AsyncSaver:
    """Saves checkpoints of one run in a thread. Every rank of `ranks` makes one and calls `start` for the same steps.

    `ranks`: with a group of its own (`Ranks.for_a_thread`). The other arguments are those of `save_checkpoint`.
    """

    def __init__(self, run_dir: Path, ranks: Ranks, *, keep_last: int, keep_every_steps: int | None) -> None:
        self._run_dir, self._ranks = Path(run_dir), ranks
        self._keep_last, self._keep_every_steps = keep_last, keep_every_steps
        self._buffers = SnapshotBuffers()
        self._future: Future[SaveReport] | None = None

    def start(
        self, step: int, shards: list[TensorShard], state: dict[str, Any], *, rank_state: dict[str, Any] | None = None
    ) -> None:
        """Take the snapshot of `step` and leave it to the thread; the arguments are those of `save_checkpoint`.

        Returns when the tensors may change. The former save's `result` must have been taken.
        """
        assert self._future is None, "a save is in flight: its buffers are being written"
        snapshot = take_snapshot(step, shards, state, rank_state, self._buffers)
        self._future = Future()
        threading.Thread(target=self._write, args=(snapshot, self._future), name="checkpoint", daemon=True).start()

    @property
    def in_flight(self) -> bool:
        """Whether there is a save whose result was not taken yet."""
        return self._future is not None

    def done(self) -> bool:
        """Whether the save in flight has ended on this rank, well or not; others may be a moment behind."""
        return self._future is not None and self._future.done()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the save in flight to end on this rank; whether it did. Not collective."""
        assert self._future is not None
        return bool(wait([self._future], timeout_seconds).done)

    def error(self) -> BaseException | None:
        """What ended the save in flight, without raising it; waits for it. None if it was saved."""
        assert self._future is not None
        return self._future.exception()

    def result(self) -> SaveReport:
        """The report of the save in flight, or the error that ended it; waits for it. Then another may start.

        Raises what `save_checkpoint` raises, SaveFailed on every rank alike; and whatever else the thread met.
        """
        assert self._future is not None
        future, self._future = self._future, None
        return future.result()

    def _write(self, snapshot: Snapshot, future: "Future[SaveReport]") -> None:
        try:
            report = write_snapshot(
                self._run_dir,
                snapshot,
                self._ranks,
                keep_last=self._keep_last,
                keep_every_steps=self._keep_every_steps,
            )
        except BaseException as error:  # a thread has no caller: whatever it is, the main thread must see it
            future.set_exception(error)
        else:
            future.set_result(report)

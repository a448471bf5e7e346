"""The heartbeats of all processes of a job, each seen by the others: through the store of torch's rendezvous.

Under torchrun the store lives in the agent of the first machine, so it answers while workers hang. Without it the store
lives in rank 0, and no answer means that rank 0 is stopped.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from loopcoder_train.runtime.heartbeat import Heart

_STORE_TIMEOUT = timedelta(seconds=10)


@dataclass(slots=True)
class Seen:
    """What was last seen of one process; times are this process's clock, so no clocks are compared."""

    rank: int
    host: str
    pid: int
    phase: str
    beats: int
    published: int  # how often its watchdog has published: grows while the process runs at all
    published_at: float  # when a new one was first seen
    moved_at: float  # when other `beats` were first seen

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, process {self.pid})"


class Partners:
    """Publishes this process's heartbeat and reads everybody's; `seen` is the last reading, for any thread.

    Both raise dist.DistError (a RuntimeError) where the store refuses, and may block where it does not answer.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size
        self._host, self._published = socket.gethostname(), 0
        self.seen: dict[int, Seen] = {}

    @classmethod
    def of_this_job(cls, rank: int, size: int) -> "Partners | None":
        """The partners of a job that torchrun (or what sets the same variables) started; None for a process alone.

        With a connection of its own: the one of the process group is busy while a collective waits for it.
        """
        if size == 1:
            return None
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_STORE_TIMEOUT)
        attempt = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        return cls(dist.PrefixStore(f"loopcoder/heartbeat/{attempt}", store), rank, size)

    def publish(self, heart: Heart) -> None:
        """Tell the others where this process stands."""
        self._published += 1
        content = [self._host, os.getpid(), heart.phase, heart.beats, self._published]
        self._store.set(str(self.rank), json.dumps(content))

    def look(self) -> None:
        """Read everybody's heartbeat into `seen`. All have published one before, or this waits for those in vain."""
        contents = self._store.multi_get([str(rank) for rank in range(self.size)])
        now, seen = time.monotonic(), {}
        for rank, content in enumerate(contents):
            host, pid, phase, beats, published = json.loads(content)
            before = self.seen.get(rank)
            seen[rank] = Seen(
                rank, host, pid, phase, beats, published,
                published_at=before.published_at if before and before.published == published else now,
                moved_at=before.moved_at if before and before.beats == beats else now,
            )  # fmt: skip
        self.seen = seen  # at once: another thread reads it

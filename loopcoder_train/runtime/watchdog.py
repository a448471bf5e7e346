"""Ends a process of a job that no longer gets on, with its stacks in the log and a record of who holds it up.

A thread looks at the heartbeat (`heartbeat.py`). When this process has made no progress for `timeout_seconds`, and no
other process of the job for half of that, the job hangs: every process whose thread still runs records where it stands
and which partners do not answer or are elsewhere, writes the Python stacks of all its threads to stderr and ends with
exit code 1; the launcher then ends the rest. That is after 1 to 1.6 times `timeout_seconds`. A slow partner (one that
writes a large file while the others wait) is no hang as long as its heartbeat counts on.

A process that was stopped and goes on (`kill -STOP`, a suspended job) does not take the pause for a hang. One that
hangs inside C code with the interpreter's lock cannot run this thread: its stacks are written by a thread of C, and its
partners see that it does not answer.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

from loopcoder_train.runtime.failure import HangError, record_failure
from loopcoder_train.runtime.heartbeat import HEART, Heart
from loopcoder_train.runtime.partners import Partners, Seen

EXIT_HANG = 1
_POLLS, _LONGEST_POLL_SECONDS = 50, 1.0  # how often the heartbeat is looked at during the time-out
_PUBLICATIONS, _LONGEST_PUBLISH_SECONDS = 20, 5.0  # how often it is told to the others
_SILENT_PUBLICATIONS = 4  # who has published nothing for so many intervals does not answer
_LEAVING_PUBLICATIONS = 2  # intervals between the record and the end
_NAMED = 8  # partners in a message


class Watchdog:
    """`with Watchdog(timeout): ...`; `meet` adds the partners once the process group is there. See above."""

    def __init__(self, timeout_seconds: float, *, heart: Heart = HEART) -> None:
        self.timeout_seconds, self._heart = timeout_seconds, heart
        self._poll = min(_LONGEST_POLL_SECONDS, timeout_seconds / _POLLS)
        self._publish_every = min(_LONGEST_PUBLISH_SECONDS, timeout_seconds / _PUBLICATIONS)
        self._partners: Partners | None = None
        self._suspicious = False
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()

    def meet(self, partners: Partners | None) -> None:
        """From now on tell and ask the partners; None: there are none. Every rank meets before any rank trains."""
        if partners is not None:
            self._partners = partners
            partners.publish(self._heart)
            threading.Thread(target=self._tell, name="heartbeat", daemon=True).start()

    def _watch(self) -> None:
        beats, looked = -1, time.monotonic()
        moved = armed = looked
        while not self._stop.wait(self._poll):
            now = time.monotonic()
            pause = now - looked - self._poll
            if pause > self._publish_every:  # this process stood still, stopped or without the interpreter's lock
                moved += pause
            looked = now
            if self._heart.beats != beats:
                beats, moved = self._heart.beats, now
            self._suspicious = now - moved > self.timeout_seconds / 2 - 2 * self._publish_every
            if now - armed >= self._publish_every:
                armed = now
                self._arm_dump_from_c()
            if now - moved > self.timeout_seconds and not self._partner_moves(now):
                self._end(now - moved)

    def _tell(self) -> None:
        """In a thread of its own, because a store that does not answer blocks its callers."""
        partners = self._partners
        while not self._stop.wait(self._publish_every):
            with contextlib.suppress(RuntimeError, OSError):  # the store is gone: `seen` grows old, which is told
                partners.publish(self._heart)
                if self._suspicious:  # at scale, everybody reading everybody always is too much
                    partners.look()

    def _arm_dump_from_c(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr without a file: nowhere to write
            faulthandler.dump_traceback_later(2 * self.timeout_seconds + self._publish_every, file=sys.stderr)

    def _partner_moves(self, now: float) -> bool:
        if self._partners is None:
            return False
        others = (seen for rank, seen in self._partners.seen.items() if rank != self._partners.rank)
        return any(now - seen.moved_at < self.timeout_seconds / 2 for seen in others)

    def _end(self, seconds: float) -> None:
        """Record, tell, dump, and end the process; nothing that may hang belongs here."""
        message = f"no progress for {seconds:.0f} s in {self._heart.phase}"
        if self._partners is not None:
            silent_seconds = _SILENT_PUBLICATIONS * self._publish_every
            seen = list(self._partners.seen.values())
            message += f"; {describe(seen, time.monotonic(), silent_seconds)}"
        message += f" (guards.hang_timeout_seconds={self.timeout_seconds:g})"
        record_failure(HangError(message))
        with contextlib.suppress(OSError, ValueError, AttributeError):
            print(f"watchdog: {message}; stacks of all threads:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        # The launcher ends everybody when one has ended: the others, a moment later, shall have written theirs too.
        time.sleep(_LEAVING_PUBLICATIONS * self._publish_every)
        os._exit(EXIT_HANG)


def describe(seen: list[Seen], now: float, silent_seconds: float) -> str:
    """Who probably holds up the job: who does not answer, or else who is elsewhere than most."""
    if all(now - one.published_at > silent_seconds for one in seen):  # this rank's own heartbeat included
        return "who holds it up is not known: the store of the rendezvous does not answer"
    silent = [one for one in seen if now - one.published_at > silent_seconds]
    parts = [f"{one} does not answer, it was last in {one.phase}" for one in silent]
    if not parts:
        phases = Counter(one.phase for one in seen)
        ((usual, count), *others) = phases.most_common()
        if not others:
            return f"all {count} ranks answer and are there"
        parts = [f"{one} is in {one.phase}" for one in seen if one.phase != usual]
        parts[0] = f"{count} of {len(seen)} ranks are in {usual}, but {parts[0]}"
    more = f"; and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return "; ".join(parts[:_NAMED]) + more

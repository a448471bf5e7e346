"""The part of every step's batch that one data-parallel rank needs, read ahead by a thread.

The journey of a batch: batch t is G sequences of the stream of its segment (segments.py); rank d of D takes the d-th
contiguous G/D of them and reads them in micro-batches. So the union over ranks does not depend on D, on the
micro-batch size or on how far ahead the thread reads. State: the number of the next batch. That is the number of steps
done as long as no batch was discarded (training/bad_steps.py).
"""

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

from data_pipeline.errors import DataError
from data_pipeline.segments import SegmentedStream
from data_pipeline.stream import Batch

_POLL_SECONDS = 0.1


class BatchStream(Protocol):
    """What a loader reads: `SegmentedStream`, or anything else with numbered batches that can be cut into parts."""

    batch_sizes: list[int]  # every size, in sequences, that some batch has

    def read(self, batch: int, part: int = 0, parts: int = 1) -> Batch:
        """The `part`-th of `parts` equal contiguous parts of a batch."""
        ...

    def prefetch(self, batch: int, part: int = 0, parts: int = 1) -> None:
        """Begin to fetch what `read` needs."""
        ...

    def interrupt(self) -> None:
        """End reads that are in progress in other threads."""
        ...

    def state(self, batch: int) -> dict[str, Any]:
        """What a checkpoint needs to go on at `batch`: < 1 KB of JSON, equal on all ranks."""
        ...

    def check_state(self, state: dict[str, Any]) -> int:
        """The batch of a saved state; DataError if this stream has other tokens before it."""
        ...


class StreamLoader(Iterator[list[Batch]]):
    """Iterates over `num_steps` batches from batch `start_step`; each item is this rank's micro-batches of one.

    num_steps None: without end; the stream goes on behind what was planned, for runs that discard batches. Otherwise
    `stream` is a SegmentedStream that is planned for them.

    expected_steps: those from there on are read when they are asked for and no sooner, so that a run that ends where it
    should has read its own batches and no more: which damaged blocks it met does not depend on who was faster.

    Sizes are in sequences; batches are as large as their segment says. prefetch_steps >= 1 steps are read ahead.
    `wait_seconds`: how long the last `next` waited. An error of the reading thread is raised by the `next` that would
    have returned its step. `close` stops the thread; the loader is also a context manager. Raises DataError when the
    sizes do not divide.
    """

    def __init__(
        self,
        stream: BatchStream,
        *,
        start_step: int,
        num_steps: int | None,
        expected_steps: int | None = None,
        micro_batch_size: int,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
        prefetch_steps: int = 2,
    ) -> None:
        for batch_size in stream.batch_sizes:
            _check_sizes(batch_size, micro_batch_size, data_parallel_size)
        if not 0 <= data_parallel_rank < data_parallel_size:
            raise DataError(f"data parallel rank {data_parallel_rank}: must be in 0..{data_parallel_size - 1}")
        if prefetch_steps < 1:
            raise DataError(f"data.prefetch_steps={prefetch_steps}: must be >= 1")
        if start_step < 0:
            raise DataError(f"data: step {start_step}: must be >= 0")
        if num_steps is not None:
            _check_plan(stream, start_step, num_steps)
        self.wait_seconds = 0.0
        self._stream = stream
        self._steps = itertools.count(start_step) if num_steps is None else range(start_step, start_step + num_steps)
        self._micro_batch_size = micro_batch_size
        self._rank, self._num_ranks = data_parallel_rank, data_parallel_size
        self._queue: queue.Queue[list[Batch] | BaseException | None] = queue.Queue(maxsize=prefetch_steps)
        self._stop = threading.Event()
        self._expected = expected_steps
        self._asked_for = 0  # by `next`, so far
        self._asking = threading.Condition()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="token-stream", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for number, step in enumerate(self._steps):
                self._wait_until_asked_for(number)
                if number == 0:
                    self._stream.prefetch(step, self._rank, self._num_ranks)
                if self._is_expected(number + 1):
                    self._stream.prefetch(step + 1, self._rank, self._num_ranks)
                if self._stop.is_set() or not self._put(self._read(step)):
                    return
            self._put(None)
        except BaseException as error:  # a thread has no caller: whatever it is, the consumer must see it
            self._put(error)

    def _is_expected(self, number: int) -> bool:
        return self._expected is None or number < self._expected

    def _wait_until_asked_for(self, number: int) -> None:
        if not self._is_expected(number):
            with self._asking:
                self._asking.wait_for(lambda: self._asked_for > number or self._stop.is_set())

    def _put(self, item: list[Batch] | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def _read(self, step: int) -> list[Batch]:
        batch = self._stream.read(step, self._rank, self._num_ranks)
        size = self._micro_batch_size
        return [batch.rows(start, start + size) for start in range(0, len(batch), size)]

    def __next__(self) -> list[Batch]:
        if self._ended is not None:
            raise self._ended
        if self._stop.is_set():
            raise StopIteration
        began = time.monotonic()
        with self._asking:
            self._asked_for += 1
            self._asking.notify()
        item = self._queue.get()
        self.wait_seconds = time.monotonic() - began
        if item is None or isinstance(item, BaseException):
            self._ended = item or StopIteration()
            raise self._ended
        return item

    def close(self) -> None:
        """Stop the reading thread and wait for it; safe to call twice."""
        self._stop.set()
        with self._asking:
            self._asking.notify()
        while self._thread.is_alive():
            self._stream.interrupt()  # a remote that does not answer must not hold up the end
            self._thread.join(_POLL_SECONDS)

    def __enter__(self) -> "StreamLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_plan(stream: SegmentedStream, start_step: int, num_steps: int) -> None:
    last = stream.segments[-1]
    planned = last.first_batch + last.planned_batches
    if num_steps < 0 or start_step + num_steps > planned:
        raise DataError(
            f"data: steps {start_step}..{start_step + num_steps}: the mixture is planned for {planned}; plan it for "
            "the whole run"
        )


def _check_sizes(global_batch: int, micro_batch: int, size: int) -> None:
    if global_batch < 1 or micro_batch < 1 or size < 1:
        raise DataError(
            f"training.global_batch_size={global_batch}, training.micro_batch_size={micro_batch}, "
            f"parallel.data_parallel_size={size}: each must be >= 1"
        )
    if global_batch % (micro_batch * size):
        raise DataError(
            f"training.global_batch_size={global_batch}: must be a multiple of micro_batch_size {micro_batch} x "
            f"data_parallel_size {size} = {micro_batch * size}"
        )

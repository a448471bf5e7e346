"""Counts what the weights are made of: tokens of every source, and attention pairs, from the batches that were read.

The stream can say the same from positions alone (`SegmentedStream.consumed_tokens`). This is the other count, by the
source ids of the rows that went through the engine, summed over the ranks; `loopcoder data audit` compares the two.

And hashes it: `state.data_digest` is the same in two runs when the weights of both are made of the same batches in the
same order, token by token. A batch is a set of rows: how it was cut over ranks and micro-batches does not show.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from loopcoder_train.model.counts import attention_pairs
from loopcoder_train.training.batch import NumpyBatch
from loopcoder_train.training.loop import Hook, Run, Step

KINDS = ("text", "code")


class ConsumptionHook(Hook):
    """Adds every step that was made to `state.source_tokens`, the pairs and `state.data_digest`; before hooks that
    record or save the state.

    `names_of(batch)`: the sources that the source ids of a batch count. `window_left`: of the model.
    """

    doing = "counting tokens by source"

    def __init__(self, names_of: Callable[[int], Sequence[str]], window_left: int) -> None:
        self._names_of, self._window_left = names_of, window_left

    def after_step(self, run: Run, step: Step) -> None:
        """Count and hash this rank's rows and sum over ranks: one small collective of 64-bit integers."""
        names = self._names_of(run.state.batches - 1)
        own, others = np.zeros(len(names), dtype=np.int64), np.zeros(3, dtype=np.int64)
        for batch in step.batches:
            rows = np.bincount(batch.source_ids, minlength=len(names))
            own += rows * batch.input_ids.shape[1]
            pairs = attention_pairs(batch.document_ids, self._window_left)
            others += pairs.causal, pairs.window, sum_of_row_hashes(batch)
        total = run.engine.sum_over_data_parallel(torch.from_numpy(np.concatenate([own, others]))).tolist()
        *tokens_of_sources, causal, window, row_hashes = total
        run.state.causal_pairs += causal
        run.state.window_pairs += window
        run.state.data_digest = _next_digest(run.state.data_digest, row_hashes)
        for name, tokens in zip(names, tokens_of_sources, strict=True):
            if tokens:
                run.state.source_tokens[name] = run.state.source_tokens.get(name, 0) + tokens


def sum_of_row_hashes(batch: NumpyBatch) -> np.int64:
    """Sum, modulo 2^64, of one 64-bit hash per row: of its tokens, its labels and where its documents begin."""
    begins = np.diff(batch.document_ids, axis=1) != 0
    hashes = np.zeros(len(batch.input_ids), dtype=np.int64)
    for number, row in enumerate(zip(batch.input_ids, batch.labels, begins, strict=True)):
        content = b"".join(np.ascontiguousarray(part, dtype="<i4").tobytes() for part in row)
        digest = hashlib.blake2b(content, digest_size=8).digest()
        hashes[number] = int.from_bytes(digest, "little", signed=True)
    return hashes.sum()  # an array's sum wraps around, as the sum over ranks does


def _next_digest(before: str, row_hashes: int) -> str:
    content = bytes.fromhex(before) + row_hashes.to_bytes(8, "little", signed=True)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def side_tokens(source_tokens: Mapping[str, int], kinds: Mapping[str, str]) -> dict[str, int]:
    """`text_tokens` and `code_tokens` of counts by source name; `kinds`: name -> text | code."""
    sums = {f"{kind}_tokens": 0 for kind in KINDS}
    for name, tokens in source_tokens.items():
        sums[f"{kinds[name]}_tokens"] += tokens
    return sums

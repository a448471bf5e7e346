"""Counts what the weights are made of: tokens of every source, and attention pairs, from the batches that were read.

The stream can say the same from positions alone (`SegmentedStream.consumed_tokens`). This is the other count, by the
source ids of the rows that went through the engine, summed over the ranks; `loopcoder data audit` compares the two.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from loopcoder_train.model.counts import attention_pairs
from loopcoder_train.training.loop import Hook, Run, Step

KINDS = ("text", "code")


class ConsumptionHook(Hook):
    """Adds every step that was made to `state.source_tokens` and the pairs; before hooks that record or save the state.

    `names_of(batch)`: the sources that the source ids of a batch count. `window_left`: of the model.
    """

    doing = "counting tokens by source"

    def __init__(self, names_of: Callable[[int], Sequence[str]], window_left: int) -> None:
        self._names_of, self._window_left = names_of, window_left

    def after_step(self, run: Run, step: Step) -> None:
        """Count this rank's rows and sum over ranks: one small collective, exact below 2^53 a step."""
        names = self._names_of(run.state.batches - 1)
        own, pairs_of_own = np.zeros(len(names)), np.zeros(2)
        for batch in step.batches:
            rows = np.bincount(batch.source_ids, minlength=len(names))
            own += rows * batch.input_ids.shape[1]
            pairs = attention_pairs(batch.document_ids, self._window_left)
            pairs_of_own += pairs.causal, pairs.window
        total = run.engine.sum_over_data_parallel(torch.from_numpy(np.concatenate([own, pairs_of_own]))).tolist()
        *tokens_of_sources, causal, window = total
        run.state.causal_pairs += round(causal)
        run.state.window_pairs += round(window)
        for name, tokens in zip(names, tokens_of_sources, strict=True):
            if tokens:
                run.state.source_tokens[name] = run.state.source_tokens.get(name, 0) + round(tokens)


def side_tokens(source_tokens: Mapping[str, int], kinds: Mapping[str, str]) -> dict[str, int]:
    """`text_tokens` and `code_tokens` of counts by source name; `kinds`: name -> text | code."""
    sums = {f"{kind}_tokens": 0 for kind in KINDS}
    for name, tokens in source_tokens.items():
        sums[f"{kinds[name]}_tokens"] += tokens
    return sums

"""Counts what the weights are made of: tokens of every source, from the batches that were really read.

The stream can say the same from positions alone (`SegmentedStream.consumed_tokens`). This is the other count, by the
source ids of the rows that went through the engine, summed over the ranks; `loopcoder data audit` compares the two.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from loopcoder_train.training.loop import Hook, Run, Step

KINDS = ("text", "code")


class ConsumptionHook(Hook):
    """Adds every step that was made to `state.source_tokens`; comes before the hooks that record or save the state.

    `names_of(batch)`: the sources that the source ids of a batch count.
    """

    doing = "counting tokens by source"

    def __init__(self, names_of: Callable[[int], Sequence[str]]) -> None:
        self._names_of = names_of

    def after_step(self, run: Run, step: Step) -> None:
        """Count this rank's rows and sum over ranks: one small collective, exact below 2^53 tokens a step."""
        names = self._names_of(run.state.batches - 1)
        own = np.zeros(len(names))
        for batch in step.batches:
            rows = np.bincount(batch.source_ids, minlength=len(names))
            own += rows * batch.input_ids.shape[1]
        total = run.engine.sum_over_data_parallel(torch.from_numpy(own))
        for name, tokens in zip(names, total.tolist(), strict=True):
            if tokens:
                run.state.source_tokens[name] = run.state.source_tokens.get(name, 0) + round(tokens)


def side_tokens(source_tokens: Mapping[str, int], kinds: Mapping[str, str]) -> dict[str, int]:
    """`text_tokens` and `code_tokens` of counts by source name; `kinds`: name -> text | code."""
    sums = {f"{kind}_tokens": 0 for kind in KINDS}
    for name, tokens in source_tokens.items():
        sums[f"{kinds[name]}_tokens"] += tokens
    return sums

import numpy as np
import pytest
import torch

from loopcoder_train.model.counts import attention_pairs, training_flops
from loopcoder_train.training.loop import Step
from loopcoder_train.training.throughput import ThroughputMeter
from tests.unit.training.fakes import BATCH, SEQUENCE_LENGTH, TINY, FakeEngine, batch_of_step


class TwoRanks(FakeEngine):
    """Rank 0 of 2: the sum and the maximum take in what the other rank would send."""

    data_parallel_size = 2

    def __init__(self, other_sum: list[float], other_max: list[float]) -> None:
        super().__init__()
        self.other_sum, self.other_max = (torch.tensor(x, dtype=torch.float64) for x in (other_sum, other_max))

    def sum_over_data_parallel(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + self.other_sum

    def max_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.maximum(tensor, self.other_max)


def step_of(batches, seconds, wait) -> Step:
    return Step(1, 0.1, 1.0, 1.0, 1, 2 * BATCH * SEQUENCE_LENGTH, batches, wait, seconds)


def test_window_adds_flops_over_ranks_and_takes_the_slowest_time():
    own, theirs = batch_of_step(1), batch_of_step(2)
    theirs.document_ids[:] = 0  # longer documents: more pairs
    pairs = attention_pairs(theirs.document_ids, TINY.window_left)
    other = TwoRanks([pairs.causal, pairs.window], [3.0, 0.5, 1e15])
    meter = ThroughputMeter(TINY, other, torch.device("cpu"))
    meter.add(step_of([own], seconds=2.0, wait=1.0))
    window = meter.read()
    both = attention_pairs(np.concatenate([own.document_ids, theirs.document_ids]), TINY.window_left)
    assert window.model_flops == training_flops(TINY, 2 * BATCH * SEQUENCE_LENGTH, both)
    assert (window.seconds, window.data_wait_seconds, window.memory_bytes) == (3.0, 1.0, 10**15)
    assert window.metrics()["tokens_per_second"] == pytest.approx(2 * BATCH * SEQUENCE_LENGTH / 3.0)
    assert meter.steps == 0


def test_documents_lower_the_flops():
    meter = ThroughputMeter(TINY, FakeEngine(), torch.device("cpu"))
    packed, whole = batch_of_step(1), batch_of_step(1)
    whole.document_ids[:] = 0
    flops = []
    for batch in (packed, whole):
        meter.add(step_of([batch], 1.0, 0.0))
        flops.append(meter.read().model_flops)
    assert flops[0] < flops[1]

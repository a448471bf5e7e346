"""Who holds other bits than the others: majorities, pairs, several sets of replicas; what is said and when."""

import socket

import pytest
import torch

from loopcoder_train.training import replicas
from loopcoder_train.training.loop import Run, fit
from loopcoder_train.training.metrics import METRICS_FILE, MetricsWriter, read_metrics
from loopcoder_train.training.replicas import Odd, RecomputeHook, ReplicaHook, SilentCorruptionError, find_odd
from tests.unit.training.fakes import BATCH, SEQUENCE_LENGTH, FakeEngine, data_from


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, 5), (0, 5)], []),
        ([(0, 5), (1, 6)], []),  # other weights are nobody's fault
        ([(0, 5), (0, 6)], [Odd([0, 1], [])]),
        ([(0, 5), (0, 6), (0, 5)], [Odd([0, 1, 2], [1])]),
        ([(0, 5), (0, 6), (0, 7)], [Odd([0, 1, 2], [])]),
        ([(0, 5), (0, 5), (0, 7), (0, 7)], [Odd([0, 1, 2, 3], [])]),
        ([(0, 5), (1, 9), (0, 5), (1, 8), (0, 5), (1, 9)], [Odd([1, 3, 5], [3])]),
        ([(0, -5), (0, -5), (0, -6), (0, -7), (0, -5)], [Odd([0, 1, 2, 3, 4], [2, 3])]),
    ],
)
def test_the_minority_is_wrong_where_there_is_a_majority(rows, expected):
    assert find_odd(rows) == expected


class ThreeRanks:
    """This process is rank 0 of 3; `values` are what the others say, given what this one says."""

    rank, size = 0, 3

    def __init__(self) -> None:
        self.last = None

    def gather(self, value):
        others = [value, value]
        if isinstance(value, dict):  # the names: rank 2 has another weight
            others[1] = {**value, "model/weight": 1}
        return [value, *others]


class ThreeEngine(FakeEngine):
    """Rank 2's weight differs from step `broken_at` on; its gradients come out differently the second time."""

    def __init__(self, broken_at: int) -> None:
        super().__init__()
        self.broken_at, self.compared = broken_at, []

    def max_over_ranks(self, tensor):
        if tensor.dim() == 2:
            self.compared.append(self.steps)
            tensor[1:] = tensor[0]
            if self.steps >= self.broken_at:
                tensor[2, -1] += 1
        return tensor


@pytest.fixture
def three(monkeypatch):
    monkeypatch.setattr(replicas, "Ranks", type("Ranks", (), {"current": staticmethod(ThreeRanks)}))
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")


def train(folder, hook, *, broken_at, num_steps=12, stop_after_step=None):
    engine = ThreeEngine(broken_at)
    with MetricsWriter(folder / METRICS_FILE) as metrics:
        run = Run(
            run_dir=folder,
            engine=engine,
            data=data_from(0),
            learning_rate=lambda tokens: 0.05,
            num_steps=num_steps,
            batch_tokens=lambda batch: BATCH * SEQUENCE_LENGTH,
            metrics=metrics,
            stop_after_step=stop_after_step,
        )
        try:
            fit(run, [hook])
        finally:
            train.compared = engine.compared
    return engine


def test_replicas_are_compared_at_the_interval_before_saves_and_at_the_end(tmp_path, three):
    assert train(tmp_path, ReplicaHook(5, save_every_steps=4), broken_at=99).compared == [4, 5, 8, 10, 12]
    engine = train(tmp_path, ReplicaHook(5, save_every_steps=4), broken_at=99, stop_after_step=7)
    assert engine.compared == [4, 5, 7]


def test_the_rank_its_machine_and_the_tensor_are_named(tmp_path, three):
    with pytest.raises(SilentCorruptionError) as found:
        train(tmp_path, ReplicaHook(5, save_every_steps=100), broken_at=7)
    assert "after step 10: rank 2 (node7) differ(s) from the other 2 replicas in model/weight" in str(found.value)
    (event,) = read_metrics(tmp_path / METRICS_FILE, ["event"])
    assert event["wrong_ranks"] == [2] and event["differing_ranks"] == [0, 1, 2] and event["step"] == 10


def test_a_rank_whose_gradients_differ_between_two_passes_is_named(tmp_path, three):
    class TwiceDifferent(ThreeEngine):
        def max_over_ranks(self, tensor):
            assert tensor.tolist()[0] == [0]
            return super().max_over_ranks(tensor)

    assert train(tmp_path, RecomputeHook(3), broken_at=99).compared == [3, 6, 9, 12]
    with pytest.raises(SilentCorruptionError, match=r"at step 9: rank 2 \(node7\) got two different gradients"):
        train(tmp_path, RecomputeHook(3), broken_at=7)


def test_this_ranks_own_two_passes_are_compared(tmp_path):
    class Flaky(FakeEngine):
        def own_gradient_fingerprint(self, micro_batches):
            self.passes = getattr(self, "passes", 0) + 1
            return self.passes if self.steps == 6 else 0

    run = Run(tmp_path, Flaky(), data_from(0), lambda tokens: 0.05, num_steps=8, batch_tokens=lambda batch: 1)
    with pytest.raises(SilentCorruptionError, match="at step 6: rank 0"):
        fit(run, [RecomputeHook(2)])


def test_one_process_has_nobody_to_compare_with(tmp_path):
    class Counting(FakeEngine):
        def replicated_tensors(self):
            raise AssertionError("no fingerprint is needed")

    run = Run(tmp_path, Counting(), data_from(0), lambda tokens: 0.05, num_steps=4, batch_tokens=lambda batch: 1)
    fit(run, [ReplicaHook(1, save_every_steps=1)])
    assert torch.isfinite(run.engine.weight).all()

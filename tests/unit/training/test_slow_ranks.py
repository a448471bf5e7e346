"""Which ranks are called slow, and how often it is said."""

import io

import pytest

from loopcoder_train.training import slow_ranks
from loopcoder_train.training.across_ranks import Machines, gather_over_ranks
from loopcoder_train.training.loop import Run, fit
from loopcoder_train.training.metrics import METRICS_FILE, MetricsWriter, read_metrics
from loopcoder_train.training.progress import PlainConsole
from loopcoder_train.training.slow_ranks import SlowRankHook
from tests.unit.training.fakes import FakeEngine, data_from


class FakeRanks:
    rank = 0

    def __init__(self, size) -> None:
        self.size = size

    def gather(self, value):
        return [value] * self.size


class Table(FakeEngine):
    """The other ranks' own seconds per step, by the step at which they are compared."""

    own_seconds = 0.1

    def __init__(self, others) -> None:
        super().__init__()
        self.others = others

    def max_over_ranks(self, tensor):
        self.mine = int(tensor[0, 0])
        for rank, seconds in enumerate(self.others[self.steps], start=1):
            tensor[rank, 0] = round(1e6 * seconds)
        return tensor


def compare(folder, monkeypatch, others, size):
    monkeypatch.setattr(slow_ranks, "Ranks", type("Ranks", (), {"current": staticmethod(lambda: FakeRanks(size))}))
    monkeypatch.setattr(Machines, "of", staticmethod(lambda ranks: Machines([f"node{n}" for n in range(ranks.size)])))
    console = io.StringIO()
    with MetricsWriter(folder / METRICS_FILE) as metrics:
        run = Run(
            run_dir=folder,
            engine=Table(others),
            data=data_from(0),
            learning_rate=lambda tokens: 0.05,
            num_steps=max(others),
            batch_tokens=lambda batch: 1,
            metrics=metrics,
            console=PlainConsole(console),
        )
        fit(run, [SlowRankHook(4, 1.5)])
    return read_metrics(folder / METRICS_FILE, ["event"]), console.getvalue().splitlines(), run.engine.mine


def test_a_rank_is_named_when_it_becomes_slow_and_counted_while_it_is(tmp_path, monkeypatch):
    others = {4: [0.1, 0.1], 8: [0.1, 0.16], 12: [0.1, 0.2], 16: [0.1, 0.14], 20: [0.2, 0.1]}
    events, notes, mine = compare(tmp_path, monkeypatch, others, 3)
    assert [(event["step"], event["ranks"]) for event in events] == [(8, [2]), (12, [2]), (20, [1])]
    assert len(notes) == 2 and "slow: rank 2 (node2), up to 0.16 s" in notes[0] and "rank 1 (node1)" in notes[1]
    assert "last 4 steps" in notes[0]
    assert 0.1e6 <= mine < 0.11e6, "the mean over the steps, waits for data included"


@pytest.mark.parametrize(("other", "slow"), [(0.149, []), (0.16, [1]), (0.05, [0])])
def test_of_two_ranks_the_faster_one_is_the_measure(tmp_path, monkeypatch, other, slow):
    events, _, _ = compare(tmp_path, monkeypatch, {4: [other]}, 2)
    assert [event["ranks"] for event in events] == ([slow] if slow else [])


def test_integers_of_all_ranks_come_through_whole():
    engine = Table({0: []})
    assert gather_over_ranks(engine, FakeRanks(1), [-(2**63) + 1, 2**63 - 1]) == [[-(2**63) + 1, 2**63 - 1]]

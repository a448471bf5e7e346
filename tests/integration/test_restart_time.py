"""What a run says about its time: what each start is made of, and what share of all was training that was kept."""

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from loopcoder_train.cli.run_state import state_of
from loopcoder_train.runtime.start_clock import PARTS
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from tests.integration.conftest import Outcome, pretrain_arguments
from tests.integration.running import Running, events

NEAR = 0.5  # seconds from one measurement to the next, on a busy machine


@dataclass(slots=True)
class Made:
    """A run that was killed and started again."""

    run_dir: Path
    began: list[tuple[float, float]]  # Unix seconds around the start of each command
    outcomes: list[Outcome]

    @property
    def records(self) -> list[dict]:
        return read_metrics(self.run_dir / METRICS_FILE)


def start(run_dir: Path, corpus: Path) -> tuple[Running, tuple[float, float]]:
    before = time.time()
    running = Running(run_dir, pretrain_arguments(run_dir, corpus, "training.num_steps=40"))
    return running, (before, time.time())


@pytest.fixture(scope="module")
def made(tmp_path_factory, corpus) -> Made:
    run_dir = tmp_path_factory.mktemp("accounts") / "run"
    first, began_first = start(run_dir, corpus)
    with first:
        first.wait_for(lambda: events(run_dir, "saved") if (run_dir / METRICS_FILE).exists() else None, "a save")
        first.signal_worker(0, signal.SIGKILL)
        killed = first.end()
    assert killed.code == 1, killed
    time.sleep(2 * NEAR)  # nobody is running
    second, began_second = start(run_dir, corpus)
    with second:
        ended = second.end()
    assert ended.code == 0, ended
    return Made(run_dir, [began_first, began_second], [killed, ended])


def test_each_attempt_says_once_what_its_start_was_made_of(made):
    told = events(made.run_dir, "ready")
    (resumed,) = events(made.run_dir, "resumed")
    assert [(event["attempt"], event["first_step"]) for event in told] == [(1, 1), (2, resumed["step"] + 1)]
    for event, outcome in zip(told, made.outcomes, strict=True):
        assert list(event["parts"]) == list(PARTS), "every part was seen, in this order"
        assert all(seconds >= 0 for seconds in event["parts"].values())
        assert [line for line in outcome.stdout.splitlines() if line.startswith("ready in")] == [event["message"]]


def test_the_parts_add_up_to_what_a_clock_outside_saw(made):
    for event, (before, after) in zip(events(made.run_dir, "ready"), made.began, strict=True):
        assert sum(event["parts"].values()) == pytest.approx(event["ready_seconds"], abs=0.01)
        began = event["time"] - event["ready_seconds"]
        assert before - 0.05 < began < after + NEAR
        # The launcher takes seconds before it starts a worker, and a worker until it has torch.
        assert min(event["parts"]["start"], event["parts"]["imports"]) > 0.3


def test_the_share_of_steps_that_were_kept(made):
    steps = [record for record in made.records if record["kind"] == "train"]
    last = steps[-1]
    assert [record["step"] for record in steps] == list(range(1, 41)) and last["attempt"] == 2
    kept = sum(record["step_seconds"] for record in steps)  # of the attempt whose weights counted in the end
    assert last["kept_seconds"] == pytest.approx(kept, abs=0.01)
    lines = [record for record in made.records if record["attempt"] == 1]
    first_life = max(record["time"] for record in lines) - made.began[0][0]
    elapsed, second_life = last["time"] - made.began[0][0], last["time"] - made.began[1][0]
    assert last["elapsed_seconds"] == pytest.approx(elapsed, abs=NEAR)
    assert last["running_seconds"] == pytest.approx(first_life + second_life, abs=NEAR)
    assert last["elapsed_seconds"] - last["running_seconds"] > 2 * NEAR - 0.1, "the pause is in one of them only"
    assert last["effective_training_share"] == pytest.approx(kept / last["elapsed_seconds"], rel=1e-2)
    assert last["effective_training_share_running"] == pytest.approx(kept / last["running_seconds"], rel=1e-2)
    assert state_of(made.run_dir).effective_training_share == last["effective_training_share"]

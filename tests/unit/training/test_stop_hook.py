"""All ranks stop at the same step, for the same reason, before the time limit; cut evaluations are made up for."""

import threading
import time
from contextlib import suppress

import pytest
import torch

from loopcoder_train.checkpoint import find_checkpoint
from loopcoder_train.config import UserError
from loopcoder_train.runtime.signals import StopCause, StopRequests
from loopcoder_train.training.evaluate_hook import EvaluateHook
from loopcoder_train.training.loop import Hook, fit
from loopcoder_train.training.metrics import METRICS_FILE, MetricsWriter, last_event, read_metrics
from loopcoder_train.training.resume import restore
from loopcoder_train.training.stop_deadline import Deadline, deadline_of
from loopcoder_train.training.stop_hook import StopAgreement, StopHook
from tests.unit.training.fakes import FakeEngine, data_from
from tests.unit.training.test_loop import CPU, make_run, standard_hooks


class RanksInThreads:
    """`max_over_ranks` between threads, each of which plays a rank."""

    def __init__(self, size: int) -> None:
        self.calls = 0
        self._barrier = threading.Barrier(size, timeout=20)
        self._values: list[torch.Tensor | None] = [None] * size

    def engine(self, rank: int) -> FakeEngine:
        engine = FakeEngine()

        def max_over_ranks(tensor):
            self._values[rank] = tensor
            self._barrier.wait()
            largest = torch.stack(self._values).amax(dim=0)
            self._barrier.wait()
            self.calls += rank == 0
            return largest

        engine.max_over_ranks = max_over_ranks
        return engine


class AskAt(Hook):
    """Requests a stop while `step` is being made."""

    def __init__(self, requests: StopRequests, step: int, cause: StopCause) -> None:
        self._requests, self._step, self._cause = requests, step, cause

    def after_step(self, run, step):
        if step.number == self._step:
            self._requests.ask(self._cause)


def train_ranks(folder, asks: dict[int, tuple[int, StopCause]]):
    """Two ranks; `asks`: rank -> (step, cause). Returns (step, reason, exit cause) of each and the collectives."""
    ranks, ended = RanksInThreads(2), {}

    def train(rank: int) -> None:
        engine, requests = ranks.engine(rank), StopRequests()
        agreement = StopAgreement(requests, engine, rank, None)
        hook = StopHook(agreement)
        step, cause = asks.get(rank, (0, StopCause.term))
        run = make_run(folder / str(rank), MetricsWriter(folder / str(rank) / METRICS_FILE), engine)
        fit(run, [AskAt(requests, step, cause), hook])
        ended[rank] = run.state.step, run.stop_reason, hook.cause_of_the_end(run)

    for rank in range(2):
        (folder / str(rank)).mkdir()
    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return ended, ranks.calls


def test_one_rank_is_asked_and_both_stop_at_the_same_step(tmp_path):
    ended, collectives = train_ranks(tmp_path, {1: (5, StopCause.term)})
    assert ended == dict.fromkeys(range(2), (5, "SIGTERM to rank 1", StopCause.term))
    assert collectives == 1 + 5, "one before the first step and one after each"
    (event,) = [r for r in read_metrics(tmp_path / "0" / METRICS_FILE, ["event"]) if r["event"] == "asked_to_stop"]
    assert (event["cause"], event["rank"], event["exit_code"], event["step"]) == ("term", 1, 143, 5)
    assert 0 <= event["seconds_to_agreement"] < 20 and 0 <= event["seconds_to_end"] < 20


def test_a_persons_word_counts_over_a_clocks(tmp_path):
    ended, _ = train_ranks(tmp_path, {0: (3, StopCause.usr2), 1: (3, StopCause.interrupt)})
    assert ended == dict.fromkeys(range(2), (3, "SIGINT to rank 1", StopCause.interrupt))


def test_nobody_asks_and_the_run_is_done(tmp_path):
    ended, collectives = train_ranks(tmp_path, {})
    assert ended == dict.fromkeys(range(2), (12, None, None)) and collectives == 13


def test_asked_at_the_last_step_the_run_is_done_all_the_same(tmp_path):
    ended, _ = train_ranks(tmp_path, {0: (12, StopCause.usr2)})
    assert ended == dict.fromkeys(range(2), (12, "SIGUSR2 to rank 0", None))


def test_exit_codes():
    codes = {cause.name: cause.exit_code for cause in StopCause}
    assert codes == {"time_limit": 75, "usr2": 75, "term": 143, "hangup": 129, "interrupt": 130}


def attempt(folder, *, ask_before=None, evaluate=None, deadline=None, **options):
    """One attempt on one rank with every hook, resumed from what is in `folder`; the run and why it ended."""
    engine, requests = FakeEngine(), StopRequests()
    agreement = StopAgreement(requests, engine, 0, deadline)
    stop = StopHook(agreement)
    if ask_before:
        requests.ask(ask_before)
    checkpoint = find_checkpoint(folder).checkpoint
    with MetricsWriter(folder / METRICS_FILE) as metrics:
        run = make_run(folder, metrics, engine, **options)
        if checkpoint is not None:
            snapshot = restore(checkpoint, engine, rank=0, world_size=1, device=CPU)
            run.state, run.data = snapshot.training, data_from(snapshot.training.step)
        hooks = standard_hooks(engine)
        if evaluate:
            hooks[3] = EvaluateHook(lambda: evaluate(agreement, requests, engine), every_steps=5)
        fit(run, [*hooks, stop])
    return run, stop.cause_of_the_end(run)


def test_asked_while_it_starts_it_ends_before_the_first_step(tmp_path):
    run, cause = attempt(tmp_path, ask_before=StopCause.interrupt)
    assert (run.state.step, cause) == (0, StopCause.interrupt)
    assert find_checkpoint(tmp_path).checkpoint is None


def test_an_evaluation_cut_short_is_the_first_thing_of_the_next_attempt(tmp_path):
    straight = tmp_path / "straight"
    straight.mkdir()
    evaluated = []

    def evaluate(agreement, requests, engine):
        if len(evaluated) == 0 and engine.steps == 10:
            requests.ask(StopCause.term)  # in the middle of it
        if agreement.reached():
            return None
        evaluated.append(engine.steps)
        return {"loss": float(engine.weight)}

    run, cause = attempt(tmp_path, evaluate=lambda a, r, e: evaluate(a, r, e) if e.steps == 10 else {"loss": 50.0})
    assert (run.state.step, cause) == (10, StopCause.term)
    assert [r["step"] for r in read_metrics(tmp_path / METRICS_FILE, ["evaluation"])] == [5]
    evaluated.append(None)  # from now on nobody asks
    run, cause = attempt(tmp_path, evaluate=evaluate)
    assert (run.state.step, cause, evaluated) == (12, None, [None, 10, 12])
    attempt(straight)
    ours, theirs = (
        {r["step"]: r["loss"] for r in read_metrics(folder / METRICS_FILE, ["evaluation"])}
        for folder in (tmp_path, straight)
    )
    assert ours[10] == theirs[10] and ours[12] == theirs[12]
    assert not run.state.evaluation_owed


def test_a_run_that_owes_its_last_evaluation_is_not_done(tmp_path):
    def ask(agreement, requests, engine):
        if engine.steps == 12:
            requests.ask(StopCause.usr2)
        return None if agreement.reached() else {"loss": 1.0}

    run, cause = attempt(tmp_path, evaluate=ask)
    assert (run.state.step, cause) == (12, StopCause.usr2)


def test_margin_follows_the_last_save_and_the_slowest_of_the_last_steps():
    deadline = Deadline(started=0.0, end=10_000.0)
    assert deadline.margin == pytest.approx(60 + 10)  # nothing measured: a minute for the save
    deadline.save_seconds = 40.0
    for seconds in (100.0, *[2.0] * 9):
        deadline.add_step(seconds)
    assert deadline.margin == pytest.approx(2 * (40 + 100) + 10)
    deadline.add_step(3.0)  # the first step of an attempt is slow; ten steps later it no longer counts
    assert deadline.margin == pytest.approx(2 * (40 + 3) + 10)
    assert not deadline.is_near(now=10_000 - 97) and deadline.is_near(now=10_000 - 96)


def test_a_short_attempt_does_not_give_all_its_time_to_a_save_that_nobody_measured():
    assert Deadline(started=0.0, end=40.0).margin == pytest.approx(10 + 10)


def test_the_deadline_is_the_earlier_of_option_and_slurm():
    assert deadline_of(1000.0, None, {}) is None
    assert deadline_of(1000.0, None, {"SLURM_JOB_END_TIME": "NONE"}) is None
    assert deadline_of(1000.0, None, {"SLURM_JOB_END_TIME": "0"}) is None

    def end(minutes, environment):
        deadline = deadline_of(1000.0, minutes, environment)
        return next(now for now in range(1000, 100_000) if deadline.is_near(now)) + deadline.margin

    assert end(10.0, {}) == pytest.approx(1600, abs=1)
    assert end(None, {"SLURM_JOB_END_TIME": "9000"}) == pytest.approx(9000, abs=1)
    assert end(10.0, {"SLURM_JOB_END_TIME": "9000"}) == pytest.approx(1600, abs=1)
    assert end(1000.0, {"SLURM_JOB_END_TIME": "9000"}) == pytest.approx(9000, abs=1)


def test_time_runs_out_in_the_middle_of_a_run(tmp_path, monkeypatch):
    """The clock is the test's: every look at it takes a second."""
    clock = iter(range(1000, 100_000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    run, cause = attempt(tmp_path, deadline=Deadline(started=1000.0, end=1030.0))
    assert cause is StopCause.time_limit and 0 < run.state.step < 12
    assert find_checkpoint(tmp_path).checkpoint.step == run.state.step
    assert last_event(tmp_path / METRICS_FILE, "asked_to_stop")["exit_code"] == 75


def test_a_limit_that_leaves_no_time_for_a_step_is_an_error(tmp_path):
    attempt(tmp_path, stop_after_step=4)
    line = (tmp_path / METRICS_FILE).read_text().replace('"save_seconds":', '"save_seconds":400.0,"measured":')
    (tmp_path / METRICS_FILE).write_text(line)
    now = time.time()
    with pytest.raises(UserError, match=r"training.time_limit_minutes=10 .* 810 s are needed"):
        attempt(tmp_path, deadline=Deadline(started=now, end=now + 600))
    with suppress(UserError):
        attempt(tmp_path, deadline=Deadline(started=now, end=now + 6000))
    assert find_checkpoint(tmp_path).checkpoint.step == 12

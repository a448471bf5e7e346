"""What became of the time, with a clock that only stands for what the test says takes time."""

import contextlib
import itertools

import pytest
import torch

from loopcoder_train.checkpoint import find_checkpoint
from loopcoder_train.config import CheckpointConfig, GuardsConfig, OnBadStep
from loopcoder_train.runtime import start_clock
from loopcoder_train.runtime.heartbeat import HEART
from loopcoder_train.runtime.start_clock import StartClock
from loopcoder_train.training import accounts as accounts_module
from loopcoder_train.training import loop as loop_module
from loopcoder_train.training import metrics as metrics_module
from loopcoder_train.training.accounts import open_accounts
from loopcoder_train.training.bad_steps import BadStepHook
from loopcoder_train.training.checkpoint_hook import CheckpointHook
from loopcoder_train.training.log_hook import LogHook
from loopcoder_train.training.loop import Hook, Run, fit
from loopcoder_train.training.metrics import METRICS_FILE, MetricsWriter, newest_records, read_metrics
from loopcoder_train.training.progress import Console
from loopcoder_train.training.resume import restore
from loopcoder_train.training.start_hook import StartHook
from loopcoder_train.training.state import TrainingState
from loopcoder_train.training.step_history import StepHistory
from tests.unit.training.fakes import BATCH, SEQUENCE_LENGTH, TINY, FakeEngine, data_from

CPU = torch.device("cpu")
WAIT, COMPUTE, HOOK = 0.25, 1.0, 0.5  # seconds of a step, and of what a hook does after it
START, PAUSE = 10.0, 100.0
STEP = WAIT + COMPUTE
NAN = float("nan")


class World:
    """Stands for the module `time` in everything that looks at a clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return 1e9 + self.now

    def monotonic(self) -> float:
        return 500.0 + self.now

    perf_counter = monotonic


@pytest.fixture
def world(monkeypatch):
    world = World()
    for module in (start_clock, accounts_module, loop_module, metrics_module):
        monkeypatch.setattr(module, "time", world)
    monkeypatch.setattr(HEART, "clock", None)
    return world


class Slow(FakeEngine):
    def __init__(self, world, **options) -> None:
        super().__init__(**options)
        self.world = world

    def train_step(self, *arguments, **options):
        self.world.now += COMPUTE
        return super().train_step(*arguments, **options)


class KilledError(Exception):
    pass


class Working(Hook):
    """Takes its time; kills the run after a step, before it is logged or saved."""

    def __init__(self, world, kill_after) -> None:
        self.world, self.kill_after = world, kill_after

    def after_step(self, run, step):
        self.world.now += HOOK
        if step.number == self.kill_after:
            raise KilledError

    def after_bad_step(self, run, step):
        self.world.now += HOOK


class Notes(Console):
    def __init__(self) -> None:
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def slow_data(world, first):
    for batches in data_from(first):
        world.now += WAIT
        yield batches


def attempt(run_dir, world, *, num_steps=8, kill_after=None, losses=None, log_every=1, policy=OnBadStep.skip):
    """One attempt as build.py puts it together, with START seconds before the first step. Returns run and console."""
    clock = HEART.clock = StartClock("start", knows_launcher=True)
    engine, console = Slow(world, losses=losses), Notes()

    def load():
        checkpoint = find_checkpoint(run_dir).checkpoint
        return checkpoint and restore(checkpoint, engine, rank=0, world_size=1, device=CPU)

    snapshot = load()
    engine.batches = snapshot.training.batches if snapshot else 0
    state = snapshot.training if snapshot else TrainingState()
    world.now += 1.0
    clock.enter("imports")
    world.now += START - 1.0
    accounts = open_accounts(state, newest_records(run_dir / METRICS_FILE), clock)
    state.first_began = accounts.first_began
    with MetricsWriter(run_dir / METRICS_FILE) as metrics:
        run = Run(
            run_dir=run_dir,
            engine=engine,
            data=slow_data(world, state.batches),
            learning_rate=lambda tokens: 0.05,
            num_steps=num_steps,
            batch_tokens=lambda batch: BATCH * SEQUENCE_LENGTH,
            metrics=metrics,
            console=console,
            state=state,
            accounts=accounts,
        )
        if snapshot:
            run.history = StepHistory.from_json(snapshot.history, 4)
        saving = CheckpointHook(
            CheckpointConfig(every_steps=4, asynchronous=False),
            CPU,
            stream_state=lambda batches: {"position": batches * BATCH},
            logger_run_ids={},
            options={},
        )
        guards = GuardsConfig(history_steps=4, spike_warmup_steps=3, nonfinite=policy, spike=OnBadStep.ignore)
        hooks = [
            StartHook(clock),
            BadStepHook(guards, last_saved=saving.last_saved, load=load),
            LogHook(TINY, CPU, every_steps=log_every),
            saving,
            Working(world, kill_after),
        ]
        with contextlib.suppress(KilledError):
            fit(run, hooks)
    return run, console


def last_train(run_dir):
    return next(record for record in newest_records(run_dir / METRICS_FILE) if record["kind"] == "train")


def events(run_dir, name):
    return [record for record in read_metrics(run_dir / METRICS_FILE, ["event"]) if record["event"] == name]


def check(run_dir, *, kept, elapsed, running):
    """The last train record, which is written before the hook of its step has worked."""
    record = last_train(run_dir)
    assert record["kept_seconds"] == pytest.approx(kept)
    assert (record["elapsed_seconds"], record["running_seconds"]) == pytest.approx((elapsed, running))
    assert record["effective_training_share"] == pytest.approx(kept / elapsed)
    assert record["effective_training_share_running"] == pytest.approx(kept / running)


def test_without_an_interruption_start_and_hooks_are_what_is_lost(tmp_path, world):
    attempt(tmp_path, world)
    whole = START + 8 * STEP + 7 * HOOK
    check(tmp_path, kept=8 * STEP, elapsed=whole, running=whole)


def test_steps_that_are_repeated_after_a_crash_count_once(tmp_path, world):
    attempt(tmp_path, world, kill_after=6)  # steps 5 and 6 are not saved
    first = START + 6 * STEP + 5 * HOOK
    check(tmp_path, kept=6 * STEP, elapsed=first, running=first)
    world.now += PAUSE
    attempt(tmp_path, world)
    second = START + 4 * STEP + 3 * HOOK
    # The last half second of the first attempt left no line: nobody knows that it was running.
    check(tmp_path, kept=8 * STEP, elapsed=first + HOOK + PAUSE + second, running=first + second)


def test_a_crash_before_the_first_checkpoint_is_not_forgotten(tmp_path, world):
    attempt(tmp_path, world, kill_after=2)
    first = START + 2 * STEP + HOOK
    attempt(tmp_path, world)
    second = START + 8 * STEP + 7 * HOOK
    check(tmp_path, kept=8 * STEP, elapsed=first + HOOK + second, running=first + second)


def test_attempts_that_come_to_no_step_are_not_forgotten(tmp_path, world):
    for _ in range(2):
        attempt(tmp_path, world, num_steps=0)
        world.now += PAUSE
    attempt(tmp_path, world, num_steps=1)
    check(tmp_path, kept=STEP, elapsed=3 * START + 2 * PAUSE + STEP, running=3 * START + STEP)


def test_any_line_tells_how_long_an_attempt_was_there(tmp_path, world):
    attempt(tmp_path, world, kill_after=6, log_every=100)  # "saved" after step 4 is the last line
    there = START + 4 * STEP + 3 * HOOK
    attempt(tmp_path, world)
    lost = HOOK + 2 * (STEP + HOOK)
    second = START + 4 * STEP + 3 * HOOK
    check(tmp_path, kept=8 * STEP, elapsed=there + lost + second, running=there + second)


@pytest.mark.parametrize(("attempt", "running"), [(3, 45.0), (4, 15.0)])
def test_the_last_line_of_the_attempt_that_told_counts(world, attempt, running):
    """An attempt that left a line and never said what was spent is not taken for a part of the one before."""
    line = {"kind": "event", "event": "saved", "step": 4, "attempt": attempt, "time": 1e9 + 50}
    told = {"kind": "train", "step": 2, "attempt": 3, "time": 1e9 + 20, "elapsed_seconds": 20, "running_seconds": 15}
    world.now = 100.0
    accounts = open_accounts(TrainingState(running_seconds=12.0), [line, told], StartClock("device"))
    assert (accounts.first_began, accounts.running_before) == (1e9, running)


def test_without_the_record_the_checkpoint_knows(tmp_path, world):
    attempt(tmp_path, world, kill_after=6)
    (tmp_path / METRICS_FILE).unlink()
    world.now += PAUSE
    attempt(tmp_path, world)
    before, second = START + 4 * STEP + 3 * HOOK, START + 4 * STEP + 3 * HOOK
    elapsed = START + 6 * (STEP + HOOK) + PAUSE + second
    check(tmp_path, kept=8 * STEP, elapsed=elapsed, running=before + second)


@pytest.mark.parametrize(("policy", "undone"), [(OnBadStep.skip, 0), (OnBadStep.rewind, 2)])
def test_refused_and_undone_steps_are_lost(tmp_path, world, policy, undone):
    """Batch 7 is not a number. Skipped it costs itself, rewound steps 5 and 6 too; the time in hooks goes on."""
    run, _ = attempt(tmp_path, world, losses={7: NAN}, policy=policy)
    assert run.state.discarded_batches == 1 + undone
    batches = 8 + 1 + undone
    whole = START + batches * STEP + (batches - 1) * HOOK
    check(tmp_path, kept=8 * STEP, elapsed=whole, running=whole)


def test_what_was_running_survives_a_rewind(tmp_path, world):
    """In the checkpoint that is saved afterwards, where the record cannot help."""
    attempt(tmp_path, world, losses={7: NAN}, policy=OnBadStep.rewind)
    saved = find_checkpoint(tmp_path).checkpoint.state["training"]
    batches = 11
    assert saved["running_seconds"] == pytest.approx(START + batches * STEP + (batches - 1) * HOOK)
    assert saved["kept_seconds"] == pytest.approx(8 * STEP) and saved["first_began"] == pytest.approx(1e9)


def test_a_state_goes_back_with_its_time_kept_and_without_the_time_spent():
    saved = TrainingState(step=4, kept_seconds=4.0, running_seconds=5.0, first_began=1.0)
    now = TrainingState(step=6, kept_seconds=6.0, running_seconds=9.0, first_began=1.0)
    back = now.gone_back_to(saved)
    assert (back.kept_seconds, back.running_seconds, back.first_began) == (4.0, 9.0, 1.0)


@pytest.mark.parametrize("losses", [None, {1: NAN}], ids=["made", "refused"])
def test_one_line_and_one_event_say_what_a_start_is_made_of(tmp_path, world, losses):
    _, console = attempt(tmp_path, world, losses=losses)
    (event,) = events(tmp_path, "ready")
    assert event["ready_seconds"] == START + STEP == sum(event["parts"].values())
    assert event["parts"] == {
        "start": 1.0, "imports": START - 1.0, "hooks": 0.0, "first_batch": WAIT, "first_step": COMPUTE,
    }  # fmt: skip
    assert event["message"] == "ready in 11.2 s: start 1.0, imports 9.0, first batch 0.2, first step 1.0"
    assert [line for line in console.lines if "ready" in line] == [event["message"]]


def test_every_attempt_tells_its_own_start(tmp_path, world):
    attempt(tmp_path, world, kill_after=6)
    attempt(tmp_path, world)
    told = events(tmp_path, "ready")
    assert [(event["attempt"], event["first_step"]) for event in told] == [(1, 1), (2, 5)]


def test_a_start_without_our_launcher_says_so(tmp_path, world):
    hook, notes = StartHook(StartClock("device")), Notes()
    run = Run(tmp_path, Slow(world), itertools.repeat(None), lambda tokens: 0.1, 1, 1, console=notes)
    hook._tell(run, loop_module.Step(1, True, 0.1, 1.0, 1.0, 1, 1, [], 0.0, 1.0))
    assert "what its launcher took before is not known" in notes.lines[0]


def test_a_clock_that_was_set_back_makes_no_share_above_one(tmp_path, world):
    run, _ = attempt(tmp_path, world)
    world.time = lambda: 0.0
    assert 0 < run.accounts.metrics(8 * STEP)["effective_training_share"] < 1

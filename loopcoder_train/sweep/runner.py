"""Takes every arm through its stages, each once, whatever is killed in between.

A stage is a process of its own. When it has ended well, a record of its arguments is written below the arm; the same
sweep passes over it from then on. Without a record the command is started again: a training run resumes from its last
checkpoint, bit for bit, or finds nothing left to do; evaluations and diagnoses write their files anew, at once. A stage
whose arguments have changed since is started again too, and a training run refuses what it cannot go on with.

The record also knows the newest checkpoint of the run: when that is another one, or gone, the stage is not done. Nor is
it when the file that it leaves is gone, or of another step.

A stage that fails ends its arm, not the others. A stop signal goes to the running command, and ends the sweep.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.manifest import write_durably
from loopcoder_train.checkpoint import checkpoints_of
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import RUN_CONFIG_FILE, read_run_config
from loopcoder_train.config.process import EXIT_FAILURE, EXIT_USER_ERROR, STOP_SIGNALS, signal_exit_code
from loopcoder_train.runtime.lock import holder_of
from loopcoder_train.sweep.arms import Arm
from loopcoder_train.sweep.stages import STAGES_FOLDER, Stage
from loopcoder_train.training.progress import duration

LAUNCHER_LOCK = "launcher"
_POLL_SECONDS = 0.5
_LEAST_SECONDS = 1.0  # of an arm with something to do: starting one command takes longer
STOP_CODES = frozenset(signal_exit_code(number) for number in STOP_SIGNALS)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an arm: `failed` is the name of the stage that did not end well, with its exit code."""

    arm: Arm
    failed: str | None = None
    code: int = 0


class Stopped(Exception):  # noqa: N818 - not an error
    """A person, the system or the clock ended the sweep; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped with exit code {code}")
        self.code = code


class StageProcesses:
    """Runs commands of `loopcoder` one after the other; stop signals go to the one that runs.

    Each is the leader of a session: a terminal's Ctrl-C reaches this process alone, and is passed on once.
    """

    def __init__(self, say: Say) -> None:
        self.stopped_by: int | None = None
        self._running: subprocess.Popen | None = None
        self._say = say

    def listening(self) -> AbstractContextManager[None]:
        """Receive stop signals in place of the process."""
        return received_by(self._received)

    def _received(self, number: int, _frame: object) -> None:
        self.stopped_by = self.stopped_by or number
        if self._running is not None and self._running.poll() is None:
            os.kill(self._running.pid, number)

    def run(self, stage: Stage, log: Path) -> int:
        """Its exit code, 1 for a training that paused. Training shows its progress; others print to `log`.

        Raises Stopped when this process or the stage itself was told to stop: there is nobody here but who did that.
        """
        if stage.trains:
            self._wait_for_former(stage)
        self._stop_if_told()
        line = [sys.executable, "-m", "loopcoder_train.cli.main", *stage.arguments]
        with log.open("ab") as output:
            process = subprocess.Popen(line, stdout=None if stage.trains else output, start_new_session=True)
            if self.stopped_by is not None:  # told while it was being started
                process.send_signal(self.stopped_by)
            self._running = process
            code = process.wait()
        self._running = None
        self._stop_if_told()
        if code == 0 and stage.trains and not is_trained(stage.run_dir):
            return EXIT_FAILURE
        code = exit_code_of(code)
        if code in STOP_CODES:
            raise Stopped(code)
        return code

    def _stop_if_told(self) -> None:
        if self.stopped_by is not None:
            raise Stopped(signal_exit_code(self.stopped_by))

    def _wait_for_former(self, stage: Stage) -> None:
        """A sweep that was killed may have left its training run at work: it makes the very steps that are missing."""
        holder = holder_of(stage.run_dir, LAUNCHER_LOCK)
        if holder is not None:
            self._say(f"{stage.run_dir}: is being trained by {holder}; waiting for it")
        while holder is not None:
            self._stop_if_told()
            time.sleep(_POLL_SECONDS)
            holder = holder_of(stage.run_dir, LAUNCHER_LOCK)


def exit_code_of(returncode: int) -> int:
    """What a shell makes of the `returncode` of a Popen: 128 + N for a process that signal N ended."""
    return returncode if returncode >= 0 else 128 - returncode


@contextmanager
def received_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    """`handler` gets the stop signals of this process; those that are ignored stay so."""
    former = {n: signal.getsignal(n) for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


def run_arms(
    folder: Path, arms: Sequence[tuple[Arm, list[Stage]]], run: Callable[[Stage, Path], int], say: Say
) -> list[Outcome]:
    """Every arm in turn. `run(stage, log)` starts a stage and gives its exit code, or raises Stopped, as this does."""
    outcomes, worked = [], _Worked()
    for number, (arm, stages) in enumerate(arms, start=1):
        began = time.monotonic()
        outcome = run_arm(
            folder / arm.name, arm, stages, run, lambda text, n=number: say(f"[{n} of {len(arms)}] {text}")
        )
        outcomes.append(outcome)
        if outcome.failed is None and worked.add(arm, time.monotonic() - began):
            left = worked.left([later for later, _ in arms[number:]])
            after = f", about {duration(left)} left for the other arms" if left else ""
            say(f"[{number} of {len(arms)}] {arm.name}: done in {duration(time.monotonic() - began)}{after}")
    return outcomes


class _Worked:
    """How long arms took, and by their training FLOPs how long others will."""

    def __init__(self) -> None:
        self._seconds = self._flops = 0.0

    def add(self, arm: Arm, seconds: float) -> bool:
        """Count an arm; says whether there was anything to do for it, without which it tells nothing."""
        if seconds < _LEAST_SECONDS:
            return False
        self._seconds += seconds
        self._flops += arm.estimated_flops
        return True

    def left(self, arms: Sequence[Arm]) -> float:
        """Seconds that these will take."""
        return sum(arm.estimated_flops for arm in arms) * self._seconds / self._flops


def run_arms_together(
    folder: Path, arms: Sequence[tuple[Arm, list[Stage]]], run: Callable[[Stage, Path], int], say: Say
) -> list[Outcome]:
    """As `run_arms`, all arms at once: for stages that run elsewhere and are only waited for."""
    with ThreadPoolExecutor(len(arms)) as threads:
        going = [threads.submit(run_arm, folder / arm.name, arm, stages, run, say) for arm, stages in arms]
        return [one.result() for one in going]


def run_arm(folder: Path, arm: Arm, stages: list[Stage], run: Callable[[Stage, Path], int], say: Say) -> Outcome:
    """The stages of one arm that are not done."""
    records = folder / STAGES_FOLDER
    for stage in stages:
        try:
            records.mkdir(parents=True, exist_ok=True)
            if is_done(records, stage):
                continue
            say(f"{arm.name}: {stage.name}")
            began = time.time()
            _check_source(records, stage)
            code = run(stage, records / f"{stage.name}.log")
            if code == 0:
                _record(records, stage, time.time() - began)
        except (UserError, OSError) as error:  # of a folder, or of SLURM: no reason to leave the other arms
            say(f"{arm.name}: {error}")
            code = EXIT_USER_ERROR
        if code:
            say(f"{arm.name}: {stage.name} failed (exit code {code}); the other arms go on")
            return Outcome(arm, stage.name, code)
    return Outcome(arm)


def is_done(records: Path, stage: Stage) -> bool:
    """Whether a process with these arguments ended well, and its run and the one that it starts from are as then, and
    what it left is there."""
    found = _read_record(records, stage)
    return (
        found is not None
        and all(found.get(key) == value for key, value in _state(stage).items())
        and all(output.exists() for output in stage.outputs)
        and (not stage.outputs or _is_of_newest_step(stage.outputs[0], stage.run_dir))
    )


def undone(folder: Path, stages: list[Stage]) -> list[Stage]:
    """The stages of the arm in `folder` that are still to be run; what cannot be read is told when its turn comes."""
    left = []
    for stage in stages:
        try:
            done = is_done(folder / STAGES_FOLDER, stage)
        except (UserError, OSError):
            done = False
        if not done:
            left.append(stage)
    return left


def _is_of_newest_step(output: Path, run_dir: Path) -> bool:
    """Whether the file of an evaluation or a diagnosis can be read and speaks of the newest checkpoint."""
    try:
        step = json.loads(output.read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError):  # gone, cut off, or somebody else's
        return False
    checkpoints = checkpoints_of(run_dir)
    return bool(checkpoints) and step == checkpoints[-1].step


def _state(stage: Stage) -> dict[str, Any]:
    source = None if stage.source is None else newest_checkpoint(stage.source)
    return {"arguments": stage.arguments, "checkpoint": newest_checkpoint(stage.run_dir), "source": source}


def _record(records: Path, stage: Stage, seconds: float) -> None:
    record = {**_state(stage), "seconds": round(seconds, 3)}
    write_durably(records / f"{stage.name}.json", json.dumps(record, indent=1) + "\n")


def _read_record(records: Path, stage: Stage) -> dict[str, Any] | None:
    """None without one, and for one that is damaged: the stage is run again."""
    path = records / f"{stage.name}.json"
    try:
        return json.loads(path.read_bytes()) if path.exists() else None
    except ValueError:
        return None


def _check_source(records: Path, stage: Stage) -> None:
    """A run reads its source once: resumed, it would go on with weights of a pretraining that is no longer there."""
    found = _read_record(records, stage)
    if found is None or not found.get("source") or newest_checkpoint(stage.run_dir) is None:
        return
    if found["source"] != newest_checkpoint(stage.source):
        raise UserError(
            f"{stage.run_dir}: was started from another checkpoint than the newest one of {stage.source}; remove the "
            "folder, and the same command makes it again"
        )


def newest_checkpoint(run_dir: Path) -> list[str] | None:
    """Name of the newest checkpoint and the hash that it was committed with; None without one."""
    found = checkpoints_of(run_dir)
    return [found[-1].path.name, found[-1].commit] if found else None


def is_trained(run_dir: Path) -> bool:
    """Whether the last step of the run is saved."""
    run_yaml = run_dir / RUN_CONFIG_FILE
    if not run_yaml.exists():
        return False
    last = read_run_config(run_yaml).training.num_steps
    return any(checkpoint.step == last for checkpoint in checkpoints_of(run_dir))

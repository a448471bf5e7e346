"""Stages are done once, in order; a failed arm costs the others nothing; what changed is done again."""

import dataclasses
import json
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from loopcoder_train.runtime.lock import RunLock
from loopcoder_train.sweep import runner
from loopcoder_train.sweep.arms import Arm
from loopcoder_train.sweep.runner import LAUNCHER_LOCK, StageProcesses, Stopped, run_arms
from loopcoder_train.sweep.stages import Stage


def arm(name: str) -> Arm:
    return Arm(name=name, label=name, value=1, seed=0, reference=None, changes={})


def stages(folder: Path, name: str, *words: str) -> list[Stage]:
    return [
        Stage(name=word, arguments=[word, name], run_dir=folder / name / word, trains=word == "a") for word in words
    ]


class Commands:
    """Answers with exit codes, and remembers what was run."""

    def __init__(self, **codes: int) -> None:
        self.codes, self.done = codes, []

    def __call__(self, stage: Stage, log: Path) -> int:
        assert log.parent.is_dir()
        self.done.append("".join(stage.arguments))
        return self.codes.get(self.done[-1], 0)


def sweep(folder: Path, commands: Commands, words: str = "abc") -> list[str | None]:
    arms = [(arm(name), stages(folder, name, *words)) for name in ("x", "y")]
    return [outcome.failed for outcome in run_arms(folder, arms, commands, lambda text: None)]


def test_every_stage_once_in_order(tmp_path):
    commands = Commands()
    assert sweep(tmp_path, commands) == [None, None]
    assert commands.done == ["ax", "bx", "cx", "ay", "by", "cy"]
    again = Commands()
    assert sweep(tmp_path, again) == [None, None] and again.done == []


def test_arms_that_are_done_tell_how_long_the_others_take(tmp_path, monkeypatch):
    clock = iter([0.0, 60.0, 60.0, 100.0, 100.4, 100.4, 1000.0, 1000.0])
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
    arms = [(dataclasses.replace(arm(name), estimated_flops=flops), stages(tmp_path, name, "b")) for name, flops in
            (("x", 1.0), ("y", 2.0), ("z", 4.0))]  # fmt: skip
    said = []
    run_arms(tmp_path, arms, Commands(), said.append)
    assert "[1 of 3] x: done in 1m 00s, about 6m 00s left for the other arms" in said
    assert not any("y: done" in text for text in said), "there was nothing to do, by the clock"
    assert "[3 of 3] z: done in" in said[-1] and "left" not in said[-1]


def test_a_failed_arm_costs_the_others_nothing_and_is_taken_up_where_it_failed(tmp_path):
    commands = Commands(bx=1)
    assert sweep(tmp_path, commands) == ["b", None]
    assert commands.done == ["ax", "bx", "ay", "by", "cy"]
    again = Commands()
    assert sweep(tmp_path, again) == [None, None] and again.done == ["bx", "cx"]


@pytest.mark.parametrize("code", [75, 130, 143])
def test_a_command_that_was_told_to_stop_ends_the_sweep(tmp_path, monkeypatch, code):
    """On this machine: nobody but the clock, the system or a person tells it, and they mean the sweep."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$3$4" >> {tmp_path}/done\n[ "$3$4" != bx ] || exit {code}\n')
    python.chmod(0o755)
    monkeypatch.setattr(runner.sys, "executable", str(python))
    arms = [(arm(name), stages(tmp_path, name, *"bc")) for name in ("x", "y")]
    with pytest.raises(Stopped) as stopped:
        run_arms(tmp_path, arms, StageProcesses(print).run, print)
    assert stopped.value.code == code and (tmp_path / "done").read_text().split() == ["bx"]


def test_a_command_that_a_signal_ended_otherwise_costs_its_arm_only(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(runner.sys, "executable", str(python))
    arms = [(arm(name), stages(tmp_path, name, "b")) for name in ("x", "y")]
    assert [outcome.code for outcome in run_arms(tmp_path, arms, StageProcesses(print).run, print)] == [137, 137]


@pytest.mark.parametrize("content", [None, "{", '{"step": 4}', "[]", "no documents", '{"step": 6}'])
def test_what_has_lost_its_output_is_done_again(tmp_path, monkeypatch, content):
    """Gone, cut off, of another step, not its own: only the last one is the evaluation of the newest checkpoint."""
    (tmp_path / "run").mkdir()
    output, documents = tmp_path / "run" / "evaluation.json", tmp_path / "run" / "evaluation_documents.json"
    checkpoint = SimpleNamespace(step=6, path=Path("step-6"), commit="abc")
    monkeypatch.setattr(runner, "checkpoints_of", lambda run_dir: [checkpoint])
    stage = Stage(name="b", arguments=["b"], run_dir=tmp_path / "run", trains=False, outputs=(output, documents))
    output.write_text('{"step": 6}')
    documents.write_text("{}")
    for expected in (["b"], []):
        commands = Commands()
        run_arms(tmp_path, [(arm("x"), [stage])], commands, lambda text: None)
        assert commands.done == expected
    output.unlink() if content is None else output.write_text(content)
    if content == "no documents":
        output.write_text('{"step": 6}')
        documents.unlink()
    run_arms(tmp_path, [(arm("x"), [stage])], commands, lambda text: None)
    assert commands.done == ([] if content == '{"step": 6}' else ["b"])


def test_other_arguments_are_another_stage(tmp_path):
    sweep(tmp_path, Commands())
    record = tmp_path / "x" / "stages" / "b.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"arguments": ["b", "x", "old"]}))
    again = Commands()
    sweep(tmp_path, again)
    assert again.done == ["bx"]


def test_a_folder_that_cannot_be_used_costs_its_arm_only(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("a file, where the run's folder should be")
    processes, commands = StageProcesses(print), Commands()

    def run(stage: Stage, log: Path) -> int:
        return processes.run(stage, log) if stage.run_dir == tmp_path / "x" / "a" else commands(stage, log)

    arms = [(arm(name), stages(tmp_path, name, *"abc")) for name in ("x", "y")]
    assert [outcome.failed for outcome in run_arms(tmp_path, arms, run, print)] == ["a", None]
    assert commands.done == ["ay", "by", "cy"]


def test_an_arm_whose_folder_is_a_file_costs_itself_only(tmp_path):
    (tmp_path / "x").write_text("a file")
    commands = Commands()
    assert sweep(tmp_path, commands) == ["a", None] and commands.done == ["ay", "by", "cy"]


def checkpoint(run_dir: Path, step: int, content: str = "hash") -> None:
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "COMMIT").write_text(content)


def test_a_run_that_went_on_or_is_gone_is_done_again(tmp_path):
    for name in ("x", "y"):
        checkpoint(tmp_path / name / "a", 5)
        checkpoint(tmp_path / name / "b", 5)
    sweep(tmp_path, Commands())
    checkpoint(tmp_path / "x" / "b", 9)
    shutil.rmtree(tmp_path / "y" / "a")
    again = Commands()
    sweep(tmp_path, again)
    assert again.done == ["bx", "ay"]


def test_what_was_tuned_from_another_checkpoint_is_not_called_done(tmp_path):
    first, tuned = tmp_path / "x" / "first", tmp_path / "x" / "tuned"
    stage = Stage(name="tune", arguments=["tune"], run_dir=tuned, trains=True, source=first)
    checkpoint(first, 5)
    commands, said = Commands(), []

    def again() -> str | None:
        return run_arms(tmp_path, [(arm("x"), [stage])], commands, said.append)[0].failed

    assert again() is None and again() is None and commands.done == ["tune"]
    checkpoint(tuned, 3)
    assert again() is None and len(commands.done) == 2, "its own steps are gone on with"
    (first / "checkpoints" / "step-00000005" / "COMMIT").write_text("trained anew")
    assert again() == "tune" and len(commands.done) == 2 and "another checkpoint" in said[-2]
    shutil.rmtree(tuned)
    assert again() is None and len(commands.done) == 3


def training(folder: Path) -> Stage:
    return Stage(name="pretrain", arguments=["--version"], run_dir=folder / "run", trains=True)


def test_a_training_that_paused_is_not_done(tmp_path):
    assert StageProcesses(print).run(training(tmp_path), tmp_path / "log") == 1


def test_a_stop_ends_the_wait_for_a_former_run_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    processes = StageProcesses(lambda text: stop())
    stop = threading.Timer(0.1, lambda: processes._received(signal.SIGINT, None)).start
    with RunLock(tmp_path / "run", name=LAUNCHER_LOCK), pytest.raises(Stopped) as stopped:
        processes.run(training(tmp_path), tmp_path / "log")
    assert stopped.value.code == 130

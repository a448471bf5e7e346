"""Stages are done once, in order; a failed arm costs the others nothing; what changed is done again."""

import json
from pathlib import Path

import pytest

from loopcoder_train.sweep.arms import Arm
from loopcoder_train.sweep.runner import Stopped, run_arms
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


def test_a_failed_arm_costs_the_others_nothing_and_is_taken_up_where_it_failed(tmp_path):
    commands = Commands(bx=1)
    assert sweep(tmp_path, commands) == ["b", None]
    assert commands.done == ["ax", "bx", "ay", "by", "cy"]
    again = Commands()
    assert sweep(tmp_path, again) == [None, None] and again.done == ["bx", "cx"]


@pytest.mark.parametrize("code", [75, 130, 143])
def test_a_stop_ends_the_sweep(tmp_path, code):
    commands = Commands(bx=code)
    with pytest.raises(Stopped) as stopped:
        sweep(tmp_path, commands)
    assert stopped.value.code == code and commands.done == ["ax", "bx"]


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
    commands = Commands()
    assert sweep(tmp_path, commands) == ["a", None] and commands.done == ["ay", "by", "cy"]

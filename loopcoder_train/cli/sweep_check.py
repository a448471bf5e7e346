"""The stages after the pretraining of an arm, composed before it: a word misspelt there must not cost a pretraining."""

import subprocess
import sys
from collections.abc import Sequence

import yaml
from omegaconf import MISSING

from loopcoder_train.cli import messages
from loopcoder_train.cli.finetune import inherit
from loopcoder_train.config.commands import DiagnoseOptions, EvaluateOptions
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import from_dict, to_dict
from loopcoder_train.config.keys import flatten
from loopcoder_train.config.run import RunConfig
from loopcoder_train.sweep.matching import inherited, lies_in
from loopcoder_train.sweep.stages import Stage

_SCHEMAS = {"evaluate": EvaluateOptions, "diagnose": DiagnoseOptions, "finetune": RunConfig}
_PREFIX = "loopcoder: error: "


def check_later_stages(arms: Sequence[tuple[RunConfig, list[Stage]]], axis: str) -> None:
    """Compose what is still to be done after each pretraining, as its process will, and meet its rules.

    arms: the configuration that a tuning inherits from, and the stages left. Tunings differ by what they inherit, so
    each arm's is composed; of the other commands the first. Raises UserError naming the sweep's option and the fault.
    """
    seen: set[str] = set()
    for pretrained, stages in arms:
        for stage in stages:
            command = stage.arguments[0]
            if command not in _SCHEMAS or command in seen:
                continue
            try:
                _check(stage, pretrained, _SCHEMAS[command], axis)
            except UserError as error:
                raise UserError(f"sweep.{command}: {error}") from error
            if command != "finetune":
                seen.add(command)


def _check(stage: Stage, pretrained: RunConfig, schema: type, axis: str) -> None:
    values = _composed(stage)
    if schema is not RunConfig:
        from_dict(schema, values)
        return
    source = to_dict(pretrained)
    inherit(values, source)
    for key, value in flatten(values).items():
        if value == MISSING:
            raise messages.not_set(key, lambda key: f"{key}=VALUE")
    tuned, swept = flatten(to_dict(from_dict(schema, values))), flatten(source)
    other = [key for key in tuned if lies_in(key, (axis,)) and inherited(axis) and tuned[key] != swept[key]]
    if other:
        raise UserError(f"{other[0]}={tuned[other[0]]}: is what the sweep is over ({swept[other[0]]}); leave it out")


def _composed(stage: Stage) -> dict:
    line = [sys.executable, "-m", "loopcoder_train.cli.main", *stage.arguments, "--cfg", "job", "--resolve"]
    composed = subprocess.run(line, capture_output=True, text=True)
    if composed.returncode:
        told = composed.stderr.strip().splitlines() or [f"exit code {composed.returncode}"]
        raise UserError(told[-1].removeprefix(_PREFIX))
    return yaml.safe_load(composed.stdout)

"""The stages after the pretraining of an arm, composed before it: a word misspelt there must not cost a pretraining."""

import subprocess
import sys

import yaml

from loopcoder_train.cli.finetune import inherit
from loopcoder_train.config.commands import DiagnoseOptions, EvaluateOptions
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import from_dict, to_dict
from loopcoder_train.config.run import RunConfig
from loopcoder_train.sweep.stages import Stage

_SCHEMAS = {"evaluate": EvaluateOptions, "diagnose": DiagnoseOptions, "finetune": RunConfig}
_PREFIX = "loopcoder: error: "


def check_later_stages(stages: list[Stage], pretrained: RunConfig) -> None:
    """Compose each stage that does not pretrain, as its process will, and meet its rules.

    pretrained: the configuration that a tuning inherits from. Raises UserError naming the sweep's option and the fault.
    """
    for stage in stages:
        command = stage.arguments[0]
        if command in _SCHEMAS:
            try:
                _compose(stage, pretrained, _SCHEMAS[command])
            except UserError as error:
                raise UserError(f"sweep.{command}: {error}") from error


def _compose(stage: Stage, pretrained: RunConfig, schema: type) -> None:
    line = [sys.executable, "-m", "loopcoder_train.cli.main", *stage.arguments, "--cfg", "job"]
    composed = subprocess.run(line, capture_output=True, text=True)
    if composed.returncode:
        told = composed.stderr.strip().splitlines() or [f"exit code {composed.returncode}"]
        raise UserError(told[-1].removeprefix(_PREFIX))
    values = yaml.safe_load(composed.stdout)
    if schema is RunConfig:
        inherit(values, to_dict(pretrained))
    from_dict(schema, values)

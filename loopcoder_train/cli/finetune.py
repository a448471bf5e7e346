"""`loopcoder finetune`: tune the model of a run on conversations. The same training as `loopcoder pretrain`."""

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from loopcoder_train.cli import hydra_app, messages
from loopcoder_train.cli.arguments import parse
from loopcoder_train.cli.pretrain import PATHS, at_scale, pretrain
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import RUN_CONFIG_FILE, read_run_config, to_dict
from loopcoder_train.config.model import ModelConfig, run_and_step
from loopcoder_train.config.run import RunConfig

# What a tuned run has from the run whose weights it starts from, unless it is set.
INHERITED = (
    *(f"model.{field.name}" for field in dataclasses.fields(ModelConfig) if field.name != "init_from"),
    *("data.corpus_dir", "data.cache_dir", "data.sequence_length"),
)


def run(arguments: list[str]) -> int:
    """Parse, compose, tune: one run, or one per job of a sweep."""
    command = hydra_app.Command(
        name="finetune",
        config_name="finetune",
        schema=RunConfig,
        execute=pretrain,
        prepare=_inherit,
        inherited=INHERITED,
        example_experiment="sft",
    )
    return hydra_app.run(command, parse(arguments, paths=(*PATHS, "finetune.chat_template")))


def _inherit(values: dict[str, Any]) -> None:
    """Give every inherited option that nobody set its value in the run that is tuned; a dry run its ranks."""
    if values["model"]["init_from"] is None:
        raise messages.not_set("model.init_from", lambda key: f"{key}=RUN or {key}=RUN@STEP")
    inherit(values, to_dict(_source(values["model"]["init_from"], values["run_dir"])))
    at_scale(values)


def inherit(values: dict[str, Any], source: dict[str, Any]) -> None:
    """Give every inherited option of `values` that nobody set its value in `source`, the run that is tuned."""
    for key in INHERITED:
        group, name = key.split(".")
        if values[group][name] == MISSING:
            values[group][name] = source[group][name]


def _source(init_from: str, run_dir: str) -> RunConfig:
    """The configuration of the run that is tuned; where it is gone, the one that a tuned run has of it."""
    folder = Path(run_and_step(init_from)[0])
    for candidate in (folder, Path(run_dir)):
        if (candidate / RUN_CONFIG_FILE).is_file():
            return read_run_config(candidate / RUN_CONFIG_FILE)
    raise UserError(
        f"model.init_from={init_from}: no run there ({RUN_CONFIG_FILE} is missing); give the folder of a run"
    )

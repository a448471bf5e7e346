"""Compose a command's configuration with Hydra and run it: once, or once per job of a sweep (`-m`).

The journey: arguments -> Hydra (defaults, groups, overrides, types from the dataclass) -> plain dictionary -> the
dataclass, whose rules are checked -> the command. Hydra sees no process but this one; workers read run.yaml.
"""

import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, get_args, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from data_pipeline.errors import DataError
from loopcoder_train.cli import messages
from loopcoder_train.cli.arguments import Arguments
from loopcoder_train.cli.main import drop_output, print_error
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import from_dict
from loopcoder_train.config.keys import dotted_keys, free_form_keys
from loopcoder_train.config.process import EXIT_BROKEN_PIPE, EXIT_USER_ERROR, STOP_SIGNALS, signal_exit_code
from loopcoder_train.config.run import RunConfig

# By a person, the system or the clock: the rest of a sweep must not start.
_STOPPED = {signal_exit_code(number) for number in STOP_SIGNALS}
_UNSAFE_IN_NAMES = re.compile(r"[^\w.=+-]+")


@dataclasses.dataclass(kw_only=True, slots=True)
class Command:
    """A command whose options are a dataclass. `execute` gets an instance and returns the exit code."""

    name: str  # as typed after `loopcoder`
    config_name: str  # primary file in configs/, which starts with `<config_name>_schema`, for a run with `run_schema`
    schema: type
    execute: Callable[[Any], int]
    prepare: Callable[[dict[str, Any]], None] | None = None  # changes the composed values before their rules are met
    inherited: tuple[str, ...] = ()  # options without a default here: what nobody sets, `prepare` does
    example_experiment: str = "quickstart"  # composed where somebody asks for help

    @property
    def composes_run(self) -> bool:
        """Whether an experiment is chosen."""
        return issubclass(self.schema, RunConfig)

    @property
    def schema_name(self) -> str:
        """What the primary file calls the dataclass."""
        return "run_schema" if self.composes_run else f"{self.config_name}_schema"

    @property
    def schema_node(self) -> Any:
        """The dataclass for Hydra; inherited options have no value."""
        node = OmegaConf.structured(self.schema)
        for key in self.inherited:
            group, name = key.split(".")
            if OmegaConf.is_missing(node, group):
                node[group] = OmegaConf.structured(get_type_hints(self.schema)[group])
            node[group][name] = MISSING
        return node

    @property
    def known_keys(self) -> list[str]:
        """Every option, and the groups that files can be chosen for."""
        return dotted_keys(self.schema) + ["experiment"] * self.composes_run

    def example(self, key: str) -> str:
        """`training.num_steps=<int>`: how to set an option."""
        hint: Any = self.schema
        for part in key.split("."):
            if not dataclasses.is_dataclass(hint):
                return ""
            hint = get_type_hints(hint).get(part)
        if isinstance(hint, type) and issubclass(hint, Enum):
            return f"{key}=<{'|'.join(member.name for member in hint)}>"
        inner = [option for option in get_args(hint) if option is not type(None)] or [hint]
        return f"{key}=<{getattr(inner[0], '__name__', 'value')}>"


def run(command: Command, arguments: Arguments) -> int:
    """Compose and execute. Returns 0 when every job returned 0, else the first other code."""
    if arguments.asks_for_help:
        # Composing must not fail over what is asked about.
        arguments.overrides = [f"experiment={command.example_experiment}"] if command.composes_run else []
    _refuse_absent_groups(command, arguments.overrides)
    arguments.open_keys(free_form_keys(command.schema))
    jobs = _Jobs(command, arguments)
    ConfigStore.instance().store(name=command.schema_name, node=command.schema_node)
    application = hydra.main(version_base="1.3", config_path="pkg://configs", config_name=command.config_name)(jobs.run)
    with tempfile.TemporaryDirectory(prefix="loopcoder-sweep-") as scratch:
        # A sweep of Hydra insists on a folder for its own notes; nobody needs them.
        sweep = [f"hydra.sweep.dir={scratch}", "hydra.sweep.subdir=."] if arguments.multirun else []
        with _command_line([f"loopcoder {command.name}", *arguments.flags, *arguments.overrides, *sweep]):
            try:
                application()
            except messages.COMPOSITION_ERRORS as error:
                raise messages.translate(error, command.known_keys, command.example) from error
            except ValueError as error:
                if jobs.running:
                    raise
                raise UserError(str(error)) from error  # Hydra's own about flags and group choices
    return jobs.exit_code()


def _refuse_absent_groups(command: Command, overrides: list[str]) -> None:
    """Groups that only some commands have: Hydra fails at an option below nothing without saying which."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] == "finetune" and command.composes_run and command.name != "finetune":
            raise UserError(
                f"{key}: is an option of `loopcoder finetune`, not of `loopcoder {command.name}`; leave it out"
            )


class _Jobs:
    """The function that Hydra calls for each job, and what came of them."""

    def __init__(self, command: Command, arguments: Arguments) -> None:
        self.command, self.arguments = command, arguments
        self.results: list[tuple[str, int]] = []
        self.running = False

    def run(self, composed: DictConfig) -> None:
        """One job. Its user error is printed here, so that the next job of a sweep still starts."""
        self.running = True
        name = job_name(self._swept_overrides())
        try:
            code = self.command.execute(self._options(composed))
        except (UserError, DataError) as error:
            print_error(f"{name}: {error}" if name else error)
            code = EXIT_USER_ERROR
        except messages.COMPOSITION_ERRORS as error:  # an interpolation that cannot be resolved
            print_error(messages.translate(error, self.command.known_keys, self.command.example))
            code = EXIT_USER_ERROR
        except BrokenPipeError as error:  # past Hydra, which would report it
            drop_output()
            raise SystemExit(EXIT_BROKEN_PIPE) from error
        self.running = False
        self.results.append((name, code))
        if code in _STOPPED:
            raise SystemExit(code)

    def _options(self, composed: DictConfig) -> Any:
        inherited = set(self.command.inherited)
        missing = sorted(OmegaConf.missing_keys(composed) - set(self.arguments.literals) - inherited)
        if missing:
            raise messages.not_set(missing[0], self.command.example)
        values = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
        values.update(self.arguments.literals)
        if self.command.config_name in ("pretrain", "finetune", "sweep"):
            values["run_dir"] = self._run_dir(values["run_dir"])
        if self.command.prepare is not None:
            self.command.prepare(values)
        return from_dict(self.command.schema, values)

    def _run_dir(self, run_dir: str) -> str:
        """Each job of a sweep gets its own folder, below the one that a single run would have."""
        given = any(override.partition("=")[0] == "run_dir" for override in self.arguments.overrides)
        if not given and HydraConfig.get().runtime.choices.get("experiment") is None:
            raise messages.not_set("run_dir", lambda key: f"{key}=runs/<name>")
        swept = self._swept_overrides()
        if "run_dir" in swept:
            return run_dir
        if not given:
            swept.pop("experiment", None)  # already in the folder's name
        return f"{run_dir}/{job_name(swept)}" if swept else run_dir

    def _swept_overrides(self) -> dict[str, str]:
        if not self.arguments.multirun:
            return {}
        keys = self.arguments.swept_keys
        task = dict(override.split("=", 1) for override in HydraConfig.get().overrides.task if "=" in override)
        return {key: task[key] for key in keys if key in task}

    def exit_code(self) -> int:
        """The first code that is not 0; says at the end of a sweep which jobs failed."""
        failed = [(name, code) for name, code in self.results if code]
        if self.arguments.multirun and failed:
            names = " ".join(name or "(unnamed)" for name, _ in failed)
            print(f"loopcoder: {len(failed)} of {len(self.results)} runs failed: {names}", file=sys.stderr)
        return failed[0][1] if failed else 0


def job_name(overrides: dict[str, str]) -> str:
    """`model.num_loops=2,seed=1`: a folder name for one job of a sweep."""
    return ",".join(_UNSAFE_IN_NAMES.sub("_", f"{key.lstrip('+')}={value}") for key, value in overrides.items())


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and only with this variable does it raise errors instead of printing them."""
    before, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = arguments, "1"
    try:
        yield
    except SystemExit as stop:
        if stop.code:  # 0 comes after --help
            raise
    finally:
        sys.argv = before
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error

"""What users write on the command line -> what Hydra's grammar accepts.

Three conveniences: a folder given first needs no `run_dir=`; paths and prompts may hold `=`, `,` and quotes, which in
Hydra's grammar mean something; `--fresh` is `fresh=true`, `--json` is `json=true`. And one restriction: Hydra's flag
that runs a pickle from disk, and those that swap our configurations for others, are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from loopcoder_train.config.errors import UserError
from loopcoder_train.config.keys import did_you_mean, in_quotes

# Flag -> whether the next argument is its value.
FLAGS = {
    "--help": False, "-h": False, "--hydra-help": False, "--version": False,
    "--multirun": False, "-m": False, "--resolve": False, "--shell-completion": False, "-sc": False,
    "--cfg": True, "-c": True, "--package": True, "-p": True, "--info": True, "-i": True,
    "--config-dir": True, "-cd": True,
}  # fmt: skip
SWITCHES = ("--fresh", "--json")  # for what people type as a flag: `--fresh` is `fresh=true`
_MULTIRUN = ("-m", "--multirun")


@dataclass(kw_only=True, slots=True)
class Arguments:
    """A command line, sorted."""

    flags: list[str]  # for Hydra, values included
    overrides: list[str]  # for Hydra, quoted where needed
    literals: dict[str, str]  # options that no grammar may touch

    def open_keys(self, free_form: list[str]) -> None:
        """Let options below dictionaries be set like any other: Hydra wants `++` in front of new keys."""
        starts = tuple(f"{key}{end}" for key in free_form for end in ".=")
        self.overrides = [
            f"++{override}" if starts and override.startswith(starts) else override for override in self.overrides
        ]

    @property
    def asks_for_help(self) -> bool:
        return "--help" in self.flags or "-h" in self.flags

    @property
    def multirun(self) -> bool:
        return any(flag in self.flags for flag in _MULTIRUN)

    @property
    def swept_keys(self) -> list[str]:
        """Options that have several values, in the order given."""
        overrides = OverridesParser.create().parse_overrides(self.overrides)
        return [override.get_key_element() for override in overrides if override.is_sweep_override()]


def parse(
    arguments: list[str], *, positional: str | None = None, paths: tuple[str, ...] = (), literals: tuple[str, ...] = ()
) -> Arguments:
    """Sort a command line.

    positional: the option that an argument without `option=` means, once. paths: options whose values may hold
    `=` and `,`. literals: options whose values are taken as they are and kept from Hydra.
    """
    result = Arguments(flags=[], overrides=[], literals={})
    multirun = any(flag in arguments for flag in _MULTIRUN)
    rest = iter(arguments)
    for argument in rest:
        if argument in SWITCHES:
            result.overrides.append(f"{argument.removeprefix('--')}=true")
        elif argument.startswith("-"):
            result.flags.extend(_flag(argument, rest))
        elif positional is not None and _is_path(argument):
            result.overrides.append(f"{positional}={quote(argument)}")
            positional = None
        else:
            key, value = _split(argument)
            if key in literals:
                result.literals[key] = value
            elif key in paths and not multirun:
                result.overrides.append(f"{key}={quote(value)}")
            elif value == "null" and key == "experiment":
                result.overrides.append(f"~{key}")  # Hydra's way to choose no file
            else:
                result.overrides.append(argument)
    return result


def _flag(argument: str, rest: Iterator[str]) -> list[str]:
    name = argument.partition("=")[0]
    if name not in FLAGS:
        raise UserError(f"{name}: unknown flag{did_you_mean(name, [*FLAGS, *SWITCHES])}")
    if not FLAGS[name] or "=" in argument:
        return [argument]
    value = next(rest, None)
    if value is None:
        raise UserError(f"{name}: needs a value" + (", as in --cfg job" if name in ("--cfg", "-c") else ""))
    return [name, value]


def _is_path(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    return not equals or "/" in key or Path(argument).exists()


def _split(argument: str) -> tuple[str, str]:
    if argument.startswith("~"):
        return argument, ""
    key, equals, value = argument.partition("=")
    if not equals:
        raise UserError(f"{argument}: is not of the form option=value")
    return key, value


def quote(value: str) -> str:
    """A path as Hydra's grammar reads it back unchanged. What is already quoted stays."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value
    if value.isascii() and not any(character in value for character in "=,'\"[]{}() \t\\:#"):
        return value
    return in_quotes(value)

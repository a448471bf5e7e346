"""Hydra's and OmegaConf's many-line errors -> one line: the option, its value, the rule and the nearest key."""

import re
from collections.abc import Callable, Iterable

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError

from loopcoder_train.config.errors import UserError
from loopcoder_train.config.keys import did_you_mean

# What composing a configuration may raise because of what a user wrote.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)

_NO_OVERRIDE = re.compile(r"Could not (?:override|append to config)[^']*'([^']+)'")
_NO_GROUP_CHOICE = re.compile(r"You must specify '([^']+)'")


def translate(error: Exception, known: Iterable[str], example: Callable[[str], str]) -> UserError:
    """The same error as one line. `known`: every option's dotted name; `example(option)`: how to set it, or ''."""
    known = list(known)
    cause = _omegaconf_cause(error)
    if isinstance(error, OverrideParseException):
        reason = _one_line(error).partition(" See https://")[0]
        return UserError(f"{error.override}: cannot be read as option=value ({reason})")
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(str(cause.full_key), known)
    if isinstance(cause, MissingMandatoryValue):
        return not_set(str(cause.full_key), example)
    if isinstance(cause, ValidationError):
        hint = example(str(cause.full_key))
        return UserError(f"{cause.full_key}: {_rule(cause)}" + (f"; give {hint}" if hint else ""))
    if cause is not None and cause.full_key:
        return UserError(f"{cause.full_key}: {_rule(cause)}")
    if isinstance(error, ConfigCompositionException):
        return _composition(error, known)
    return UserError(_one_line(error))


def not_set(key: str, example: Callable[[str], str]) -> UserError:
    """A mandatory option has no value."""
    hint = example(key)
    return UserError(f"{key}: is not set" + (f"; give {hint}" if hint else ""))


def _omegaconf_cause(error: BaseException | None) -> OmegaConfBaseException | None:
    while error is not None and not isinstance(error, OmegaConfBaseException):
        error = error.__cause__
    return error


def _unknown_key(key: str, known: list[str]) -> UserError:
    return UserError(f"{key}: unknown option{did_you_mean(key, known)}")


def _unknown_choice(error: MissingConfigException) -> UserError:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    options = list(error.options or ())
    if not group or not options:
        return UserError(_one_line(error))
    meant = did_you_mean(choice, options)
    return UserError(f"{group}={choice}: unknown choice{meant} (known: {', '.join(options)})")


def _composition(error: ConfigCompositionException, known: list[str]) -> UserError:
    text = str(error)
    if match := _NO_GROUP_CHOICE.search(text):
        options = [line.strip() for line in text.splitlines() if line.startswith("\t")]
        return UserError(f"{match[1]}: is not set; give {match[1]}=<one of {', '.join(options)}>")
    if match := _NO_OVERRIDE.search(text):
        return _unknown_key(match[1].partition("@")[0], known)
    if text.startswith("Ambiguous value"):
        argument = text.splitlines()[0].rpartition("argument ")[2].strip("'")
        return UserError(f"{argument}: several values; add -m to start one run for each")
    return UserError(_one_line(error))


def _rule(cause: OmegaConfBaseException) -> str:
    # The first line holds the rule; the others repeat key and types.
    lines = str(cause).splitlines() or [type(cause).__name__]
    return re.sub(r"of type '(\w+)' ", r"(\1) ", lines[0])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""`run.yaml`: the resolved configuration of a run, written by the launcher and read by every worker.

RunConfig -> plain dictionary (enums by name) -> YAML, and strictly back: a key that does not exist, a value of another
type or a missing value is a UserError that names the option. Loading never constructs anything but these dataclasses.
"""

import dataclasses
import os
import types
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from loopcoder_train.config.errors import UserError
from loopcoder_train.config.keys import did_you_mean, dotted_keys
from loopcoder_train.config.run import RunConfig

RUN_CONFIG_FILE = "run.yaml"
MAX_CONFIG_BYTES = 1_000_000  # a real one has about 3 kB; YAML can be made to eat all memory

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain dictionaries, strings and numbers, in order of definition."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def write_run_config(config: RunConfig, path: str | Path) -> None:
    """Write `config` as YAML; after a crash the file is the old one or the new one, whole."""
    path = Path(path)
    content = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_run_config(path: str | Path) -> RunConfig:
    """The configuration in a `run.yaml`. Raises UserError naming file and option when it is not exactly one."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path}: is no regular file; give the run.yaml of a run")
        if size > MAX_CONFIG_BYTES:
            raise UserError(f"{path}: {size} bytes; a run configuration has at most {MAX_CONFIG_BYTES}")
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the run.yaml of a run") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; give the run.yaml of a run") from error
    try:
        _refuse_aliases(content, path)
        values = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deep; give the run.yaml of a run") from error
    except ValueError as error:  # of the constructors of dates and integers
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: holds a value that cannot be read ({error}); give the run.yaml of a run") from error
    try:
        return from_dict(RunConfig, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _refuse_aliases(content: str, path: Path) -> None:
    # A kilobyte of nested aliases expands to gigabytes; nothing here needs one.
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{path}: line {event.start_mark.line + 1}: YAML aliases (*name) are not allowed")


def from_dict(schema: type[T], values: Any) -> T:
    """A configuration dataclass from plain values. Raises UserError for unknown, missing or wrongly typed options."""
    return _build(schema, values, "", dotted_keys(schema))


def _build(schema: type[T], values: Any, prefix: str, known: list[str]) -> T:
    if not isinstance(values, dict):
        raise UserError(f"{prefix.rstrip('.') or 'configuration'}={values!r}: must be a group of options (a mapping)")
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key in values:
        if key not in fields:
            raise UserError(f"{prefix}{key}: unknown option{did_you_mean(f'{prefix}{key}', known)}")
    arguments = {}
    hints = get_type_hints(schema)
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], f"{prefix}{name}", known)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{prefix}{name}: is not set")
    return schema(**arguments)


def _convert(hint: Any, value: Any, key: str, known: list[str]) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (option for option in get_args(hint) if option is not type(None))
        return None if value is None else _convert(inner, value, key, known)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{key}.", known)
    if get_origin(hint) is dict:
        return _convert_dict(hint, value, key, known)
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise UserError(f"{key}={value!r}: must be a list, not {type(value).__name__}")
        return [_convert(get_args(hint)[0], item, f"{key}[{index}]", known) for index, item in enumerate(value)]
    return _convert_scalar(hint, value, key)


def _convert_scalar(hint: type, value: Any, key: str) -> Any:
    if issubclass(hint, Enum):
        names = [member.name for member in hint]
        if value not in names:
            raise UserError(f"{key}={value!r}: must be one of {', '.join(names)}{did_you_mean(str(value), names)}")
        return hint[value]
    if hint is float and type(value) is int:
        return float(value)
    if hint is float and isinstance(value, str):
        return _float_of_text(value, key)
    if type(value) is not hint:  # exact: True is no integer here
        raise UserError(f"{key}={value!r}: must be of type {hint.__name__}, not {type(value).__name__}")
    return value


def _convert_dict(hint: Any, value: Any, key: str, known: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{key}={value!r}: must be a mapping, not {type(value).__name__}")
    key_hint, value_hint = get_args(hint)
    return {_convert(key_hint, k, key, known): _convert(value_hint, v, f"{key}.{k}", known) for k, v in value.items()}


def _float_of_text(value: str, key: str) -> float:
    # YAML 1.1 reads 1e-15, without a point, as text.
    try:
        return float(value)
    except ValueError as error:
        raise UserError(f"{key}={value!r}: must be of type float, not str") from error

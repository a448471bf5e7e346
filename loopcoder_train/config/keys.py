"""The dotted option names of a configuration class, and which of them a misspelt one probably meant."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, get_type_hints


def dotted_keys(schema: type) -> list[str]:
    """Every option of a configuration dataclass, `model` and `model.num_loops` alike, in order of definition."""
    keys = []
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        keys.append(field.name)
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            keys.extend(f"{field.name}.{key}" for key in dotted_keys(hint))
    return keys


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known name that `key` most probably meant, or None.

    Compared as a whole first, then by the last component alone: `num_lops` and `training.num_loops` both mean
    `model.num_loops`.
    """
    names = list(known)
    last_part = key.rpartition(".")[2]
    by_last_part: dict[str, str] = {}
    for name in names:
        by_last_part.setdefault(name.rpartition(".")[2], name)
    if last_part in by_last_part:
        return by_last_part[last_part]
    if close := difflib.get_close_matches(key, names, n=1, cutoff=0.6):
        return close[0]
    if close := difflib.get_close_matches(last_part, by_last_part, n=1, cutoff=0.6):
        return by_last_part[close[0]]
    # `optimizer.lr` for `optimizer.peak_lr`: too short for a ratio, yet part of a single known name.
    containing = [name for part, name in by_last_part.items() if len(last_part) > 1 and last_part in part.split("_")]
    return containing[0] if len(containing) == 1 else None


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """`; did you mean model.num_loops?`, or nothing when no known name is close."""
    name = nearest(key, known)
    return f"; did you mean {name}?" if name else ""


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"num_loops": 2}}` -> `{"model.num_loops": 2}`. An empty inner dictionary stays as one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat

"""The dotted option names of a configuration class, and which of them a misspelt one probably meant."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, get_origin, get_type_hints


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

    An option given under another group, or under none, means the one of that name; else the closest name of its own
    group; else of any group; else the only one that has the word: `optimizer.lr` means `optimizer.peak_lr`.
    """
    group, _, last = key.rpartition(".")
    by_last: dict[str, str] = {}
    in_group: dict[str, str] = {}
    for name in known:
        name_group, _, name_last = name.rpartition(".")
        by_last.setdefault(name_last, name)
        if name_group == group:
            in_group[name_last] = name
    if last in by_last and by_last[last] != key:
        return by_last[last]
    if close := difflib.get_close_matches(last, in_group, n=1, cutoff=0.6):
        return in_group[close[0]]
    if close := difflib.get_close_matches(last, by_last, n=1, cutoff=0.7):
        return by_last[close[0]]
    containing = [name for part, name in by_last.items() if len(last) > 1 and last in part.split("_")]
    return containing[0] if len(containing) == 1 else None


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """`; did you mean model.num_loops?`, or nothing when no known name is close."""
    name = nearest(key, known)
    return f"; did you mean {name}?" if name else ""


def free_form_keys(schema: type) -> list[str]:
    """Options that are dictionaries: any key may stand below them."""
    hints = get_type_hints(schema)
    found = []
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        if get_origin(hint) is dict:
            found.append(field.name)
        elif dataclasses.is_dataclass(hint):
            found.extend(f"{field.name}.{key}" for key in free_form_keys(hint))
    return found


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"num_loops": 2}}` -> `{"model.num_loops": 2}`. An empty inner dictionary stays as one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat

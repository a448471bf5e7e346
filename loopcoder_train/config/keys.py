"""The dotted option names of a configuration class, which of them a misspelt one probably meant, and how a value is
spelt for the command line."""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import Any, get_args, get_origin, get_type_hints


def dotted_keys(schema: type) -> list[str]:
    """Every option of a configuration dataclass, `model` and `model.num_loops` alike, in order of definition."""
    keys = []
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        keys.append(field.name)
        hint = group_of(hints[field.name])
        if hint is not None:
            keys.extend(f"{field.name}.{key}" for key in dotted_keys(hint))
    return keys


def group_of(hint: Any) -> Any:
    """The dataclass of a group of options that may be absent (`X | None`) or not; None for any other option."""
    candidates = [option for option in get_args(hint) or (hint,) if dataclasses.is_dataclass(option)]
    return candidates[0] if candidates and get_origin(hint) is not list else None


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known name that `key` most probably meant, or None.

    In this order: a very close name of its own group; the same name in another group (`num_loops` means
    `model.num_loops`); a close name of its own group; of any group; the only one that has the word, in its own group
    or anywhere (`optimizer.lr` means `optimizer.peak_lr`).
    """
    group, _, last = key.rpartition(".")
    anywhere: dict[str, str] = {}
    in_group: dict[str, str] = {}
    for name in known:
        name_group, _, name_last = name.rpartition(".")
        anywhere.setdefault(name_last, name)
        if name_group == group:
            in_group[name_last] = name
    for names, cutoff in ((in_group, 0.75), (anywhere, 1.0), (in_group, 0.6), (anywhere, 0.7)):
        if close := difflib.get_close_matches(last, names, n=1, cutoff=cutoff):
            return names[close[0]]
    for names in (in_group, anywhere):
        having = [name for name_last, name in names.items() if last in name_last.split("_")]
        if len(having) == 1:
            return having[0]
    return None


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


def in_quotes(text: str) -> str:
    """A text as a quoted string of Hydra's grammar, which reads it back unchanged."""
    # There backslashes count as escapes only in front of a quote: each is doubled there.
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + "\\'" * bool(match[2]), text) + "'"

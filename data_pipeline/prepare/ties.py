"""What in a text decides between the languages that claim one extension: the rules of `ties.yaml`, compiled.

The journey: an extension or file name -> its rules -> the language of the first rule whose pattern is found, or None.
A pattern is compiled when a text first needs it: few of the shared extensions occur in any one corpus.
"""

import functools
import re
from collections.abc import Iterator
from importlib import resources

import yaml

_ELSE = "else"


def decide(key: str, head: str) -> str | None:
    """The language of the first rule of `key` (`.h`, `hosts`) that `head` fulfils; None if there is none."""
    for language, pattern in _rules(key):
        if pattern.search(head):
            return language
    return None


@functools.cache
def table() -> dict[str, list[tuple[str, str]]]:
    """Extension or file name -> (language, regular expression; empty: always) in order."""
    text = resources.files("data_pipeline.prepare").joinpath("ties.yaml").read_text(encoding="utf-8")
    found: dict[str, list[tuple[str, str]]] = {}
    for keys, rules in yaml.safe_load(text)["ties"].items():
        spelled = [(language, _expression(pattern)) for rule in rules for language, pattern in rule.items()]
        found.update(dict.fromkeys(keys.split(), spelled))
    return found


def _expression(pattern: str | list) -> str:
    if pattern == _ELSE:
        return ""
    joined = "|".join(_alternatives(pattern))
    # Possessive repeats: what follows a run of blanks never begins with a blank.
    return joined.replace(r"\h*", "[ \\t]*+").replace(r"\h+", "[ \\t]++").replace(r"\h", "[ \\t]")


def _alternatives(pattern: list) -> Iterator[str]:
    for part in pattern:
        if isinstance(part, str):
            yield part
        else:
            yield from _alternatives(part)


@functools.cache
def _rules(key: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((language, re.compile(regex, re.MULTILINE)) for language, regex in table().get(key, ()))

"""Which documents are worth training on: the filters' options, and the verdict on a document.

The journey: filters.yaml (or the user's copy) -> layers of rules -> one `Rules` per language -> `Filters.reason` asks
the rules one after another, cheap ones first, and returns the first objection. What the rules mean is in
filter_code.py and filter_text.py; a rule that is None is off.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import xxhash
import yaml

from data_pipeline import languages
from data_pipeline.errors import DataError, nearest_hint
from data_pipeline.prepare import filter_code, filter_text

DEFAULT, NONE = "default", "none"
_TYPES = ("programming", "markup", "data", "prose")
# Raised when a rule's verdict changes, so that corpora know that they were filtered otherwise.
_VERSION = 1


def _whole(low: int = 1) -> Any:
    return dataclasses.field(default=None, metadata={"type": int, "low": low, "high": 10**12})


def _fraction() -> Any:
    # A bound of 0 would mean off in datatrove's filters; here off is null.
    return dataclasses.field(default=None, metadata={"type": float, "low": 1e-9, "high": 1.0})


def _switch() -> Any:
    return dataclasses.field(default=False, metadata={"type": bool})


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The rules of one language. Lengths in characters; None: off."""

    min_characters: int | None = _whole()
    max_characters: int | None = _whole()
    drop_vendored: bool = _switch()
    drop_generated: bool = _switch()
    max_line_length: int | None = _whole()
    max_mean_line_length: int | None = _whole()
    min_alphanumeric_fraction: float | None = _fraction()
    licences: tuple[str, ...] | None = dataclasses.field(default=None, metadata={"type": list})
    min_visible_text_fraction: float | None = _fraction()
    check_syntax: bool = _switch()
    min_words: int | None = _whole()
    max_words: int | None = _whole()
    min_mean_word_length: int | None = _whole()
    max_mean_word_length: int | None = _whole()
    max_symbol_word_ratio: float | None = _fraction()
    max_bullet_line_fraction: float | None = _fraction()
    max_ellipsis_line_fraction: float | None = _fraction()
    min_alphabetic_word_fraction: float | None = _fraction()
    min_stop_words: int | None = _whole()
    max_duplicate_line_fraction: float | None = _fraction()
    max_duplicate_line_character_fraction: float | None = _fraction()
    max_duplicate_paragraph_fraction: float | None = _fraction()
    max_duplicate_paragraph_character_fraction: float | None = _fraction()


_FIELDS = {item.name: item.metadata for item in dataclasses.fields(Rules)}
Layer = dict[str, Any]


@dataclass(slots=True)
class Filters:
    """Rules per language, from `load_filters`. Plain data: it can be sent to other processes."""

    rules: dict[str, Rules]

    def reason(self, text: str, language: str, name: str) -> str | None:
        """Why a document is dropped ("filter: ..."), None if it is kept.

        language: a name of languages.table(). name: the path in its source, `/` between folders.
        """
        rules = self.rules[language]
        for check in (_size_reason, filter_code.reason, filter_text.reason):
            found = check(text, name, rules)
            if found is not None:
                return f"filter: {found}"
        return None

    @property
    def content_hash(self) -> str:
        """32 hex digits of everything that decides a verdict."""
        plain = {language: dataclasses.asdict(rules) for language, rules in sorted(self.rules.items())}
        return xxhash.xxh3_128_hexdigest(json.dumps([_VERSION, plain], sort_keys=True))


def _size_reason(text: str, name: str, rules: Rules) -> str | None:
    if rules.min_characters is not None and len(text) < rules.min_characters:
        return f"fewer than {rules.min_characters} characters"
    if rules.max_characters is not None and len(text) > rules.max_characters:
        return f"more than {rules.max_characters} characters"
    return None


def load_filters(path_or_name: str) -> Filters:
    """`default`: filters.yaml of this package; `none`: no filters; else the path of a .yaml file.

    DataError for an unknown section, rule or language, a value of another type or out of bounds, a key given twice.
    """
    if path_or_name == NONE:
        return Filters({language: Rules() for language in languages.table()})
    if path_or_name == DEFAULT:
        content = resources.files("data_pipeline.prepare").joinpath("filters.yaml").read_text(encoding="utf-8")
        return _parse(content, "filters.yaml")
    path = Path(path_or_name)
    if path.suffix not in (".yaml", ".yml"):
        raise DataError(
            f"filters={path_or_name!r}: not the path of a .yaml file{nearest_hint(path_or_name, (DEFAULT, NONE))}"
        )
    try:
        return _parse(path.read_text(encoding="utf-8"), path_or_name)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"filters={path_or_name}: cannot be read ({error}); correct the path") from error


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that is given twice is an error instead of the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _parse(content: str, where: str) -> Filters:
    try:
        root = yaml.load(content, Loader=_Loader)
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a key that is a list
        raise DataError(f"{where}: not readable as YAML ({' '.join(str(error).split())}); correct it") from error
    sections = _mapping(root, where, ("code", "text", "types", "languages"))
    sides = {side: _layer(sections.get(side), f"{where}: {side}") for side in ("code", "text")}
    types = {
        name: _layer(value, f"{where}: types.{name}")
        for name, value in _mapping(sections.get("types"), f"{where}: types", _TYPES).items()
    }
    own: dict[str, Layer] = {}
    for name, value in _mapping(sections.get("languages"), f"{where}: languages", None).items():
        language = languages.require_language(str(name), f"{where}: languages")
        if language in own:
            raise DataError(f"{where}: languages: {name!r} is {language!r}, which is given twice; keep one")
        own[language] = _layer(value, f"{where}: languages.{name}")
    rules = {}
    for language in languages.table():
        layers = (sides[languages.side_of(language)], types.get(languages.type_of(language), {}), own.get(language, {}))
        rules[language] = Rules(**{key: value for layer in layers for key, value in layer.items()})
        _check_pairs(rules[language], f"{where}: {language}")
    return Filters(rules)


def _mapping(value: Any, where: str, known: tuple[str, ...] | None) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{where}: is {type(value).__name__}, must be names with values")
    for key in value:
        if known is not None and key not in known:
            raise DataError(f"{where}: unknown key {key!r}{nearest_hint(str(key), known)}")
    return value


def _layer(value: Any, where: str) -> Layer:
    layer = dict(_mapping(value, where, tuple(_FIELDS)))
    return {key: _checked(item, f"{where}.{key}", _FIELDS[key]) for key, item in layer.items()}


def _checked(value: Any, option: str, rule: Mapping[str, Any]) -> Any:
    """The value of a rule as `Rules` has it, or a DataError."""
    if rule["type"] is bool:
        if not isinstance(value, bool):
            raise DataError(f"{option}={value!r}: must be true or false")
        return value
    if value is None:
        return None
    if rule["type"] is list:
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise DataError(f"{option}={value!r}: must be a list of SPDX identifiers and `none`")
        return tuple(value)
    numeric = (int, float) if rule["type"] is float else (int,)
    if isinstance(value, bool) or not isinstance(value, numeric):
        raise DataError(f"{option}={value!r}: must be a {'number' if rule['type'] is float else 'whole number'}")
    if not rule["low"] <= value <= rule["high"]:
        bounds = "above 0, at most 1" if rule["type"] is float else f"from {rule['low']} to {rule['high']}"
        raise DataError(f"{option}={value!r}: must be {bounds}; null is off")
    return value


def _check_pairs(rules: Rules, where: str) -> None:
    for name in ("characters", "words", "mean_word_length"):
        low, high = getattr(rules, f"min_{name}"), getattr(rules, f"max_{name}")
        if low is not None and high is not None and low > high:
            raise DataError(f"{where}: min_{name}={low} is above max_{name}={high}; nothing would be kept")
    if rules.check_syntax and not where.endswith(": Python"):
        raise DataError(f"{where}: check_syntax=True; only Python can be checked, name it under languages: Python")

"""Which languages the code side of a corpus consists of, and with which shares: a YAML file, checked when it is read.

The journey: a file of `language_manifests/` by name, or the user's own by path -> `load_manifest` -> while a corpus is
built, `source_of(language)` names the source that a document goes to, None for a language that is not admitted -> when
a run is set up, `shares_of(sources)` gives the shares among the sources that the corpus has, as `data.shares` takes
them.

    name: mine
    shares: {Python: 40, C++: 20}    # % of the code tokens
    others_share: 40                 # % of the code tokens, for all of `others` together, divided by their size
    others: [Rust, Go]
    counted_as: {Cuda: C++}          # optional: dialects that go to another language's source
    max_repeats: {Rust: 2}           # optional: epochs over one language at most, where data.max_repeats is not meant

Text collections are no part of it: they are the other side of the mixture. Markdown is code.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from pathlib import Path

import yaml

from data_pipeline import languages
from data_pipeline.errors import DataError, nearest_hint

DEFAULT_MANIFEST = "loopcoder-103"
_FOLDER = "language_manifests"
_FIELDS = ("name", "shares", "others_share", "others", "counted_as", "max_repeats")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceShares:
    """Shares of the sources of a code side: `sum(shares.values()) + others == 1`, exactly.

    shares: source -> fraction of the code tokens, of the sources that have one of their own; `data.shares`, and
    `quotas_for(shares=...)`, divide `others` among the remaining sources by size. notes: every change of what the
    manifest says, a line each.
    """

    shares: dict[str, Fraction]
    others: Fraction
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageManifest:
    """languages: all of them, those with a share first. shares, others_share: % of the code tokens, as written.

    counted_as: dialect -> the language that it is counted as. max_repeats: language -> epochs at most.
    """

    name: str
    languages: tuple[str, ...]
    shares: Mapping[str, Fraction]
    others_share: Fraction
    counted_as: Mapping[str, str]
    max_repeats: Mapping[str, float]

    def admits(self, language: str) -> bool:
        """Whether documents of this language belong to the code side."""
        return self.counted_as.get(language, language) in self.languages

    def source_of(self, language: str) -> str | None:
        """The name of the source that a language's documents go to, None if it is not admitted."""
        return languages.slug(self.counted_as.get(language, language)) if self.admits(language) else None

    def shares_of(self, sources: Iterable[str]) -> SourceShares:
        """The shares among the code sources that a corpus has (`python`, `cpp`, `code-other`, ...).

        A source without a share of its own is one of the others. What absent languages would have had goes to all that
        are present, in proportion, and a note says so. Raises DataError if `sources` is empty.
        """
        present = set(sources)
        if not present:
            raise DataError(f"languages={self.name}: the corpus has no code source; add one to the build")
        own = {languages.slug(language): (language, share) for language, share in self.shares.items()}
        given = {source: share for source, (_, share) in own.items() if source in present}
        has_others = len(present) > len(given)
        others = self.others_share if has_others else Fraction(0)
        total = sum(given.values(), others)
        if not total:
            raise DataError(
                f"languages={self.name}: others_share=0, but {', '.join(sorted(present)[:5])} have no share of their "
                "own; give them one, or an others_share"
            )
        notes = [
            f"{language}: {float(share):g}% of the code tokens, but no source {source!r} in the corpus; its share goes "
            "to those present"
            for source, (language, share) in own.items()
            if source not in present
        ]
        if self.others_share and not has_others:
            notes.append(f"no other language in the corpus; their {float(self.others_share):g}% go to those present")
        if total != 100:
            notes.append(f"code: shares add up to {float(total):g}%, renormalised to 100%")
        shares = {source: share / total for source, share in given.items()}
        return SourceShares(shares=shares, others=others / total, notes=tuple(notes))

    def repeats_of(self, sources: Iterable[str]) -> dict[str, float]:
        """Source -> epochs at most, of those sources that the manifest gives a cap of their own."""
        present = set(sources)
        caps = {languages.slug(language): cap for language, cap in self.max_repeats.items()}
        return {source: cap for source, cap in caps.items() if source in present}


def load_manifest(name_or_path: str = DEFAULT_MANIFEST) -> LanguageManifest:
    """The manifest of a name (a file of `language_manifests/`) or of a path that ends in .yaml or .yml.

    Raises DataError for a file that does not exist or is no YAML, an unknown or repeated language, a language of the
    text side, a share or cap that is not positive, an unknown field.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        folder = resources.files("data_pipeline").joinpath(_FOLDER)
        known = [entry.name.removesuffix(".yaml") for entry in folder.iterdir()]
        if name_or_path not in known:
            raise DataError(
                f"languages={name_or_path}: no such manifest{nearest_hint(name_or_path, known)}; for a file of yours, "
                "give its path, ending in .yaml"
            )
        return _parse(folder.joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8"), name_or_path)
    if not path.is_file():
        raise DataError(f"languages={name_or_path}: no such file; correct the path")
    return _parse(path.read_text(encoding="utf-8"), name_or_path)


def _parse(text: str, where: str) -> LanguageManifest:
    option = f"languages={where}"
    fields = _fields(text, option)
    shares = {
        languages.require_language(str(language), f"{option}: shares"): _positive(value, f"{option}: shares.{language}")
        for language, value in fields["shares"].items()
    }
    others = [languages.require_language(str(language), f"{option}: others") for language in fields["others"]]
    listed = [*shares, *others]
    if len(shares) != len(fields["shares"]) or len(set(listed)) != len(listed):
        twice = next((language for language in listed if listed.count(language) > 1), "an alias of a listed language")
        raise DataError(f"{option}: {twice} is there twice; name each language once")
    if not listed:
        raise DataError(f"{option}: no languages; list some under shares or others")
    for language in listed:
        if languages.side_of(language) == "text":
            raise DataError(f"{option}: {language} is prose, which is on the text side; remove it")
    others_share = fields["others_share"]
    if others or others_share:
        others_share = _positive(others_share, f"{option}: others_share")
    if others_share and not others:
        raise DataError(
            f"{option}: others_share={float(others_share):g}, but others lists no language; list some, or 0"
        )
    return LanguageManifest(
        name=str(fields["name"]),
        languages=tuple(listed),
        shares=shares,
        others_share=Fraction(others_share),
        counted_as=_counted_as(fields["counted_as"], set(listed), option),
        max_repeats=_max_repeats(fields["max_repeats"], set(listed), option),
    )


def _fields(text: str, option: str) -> dict:
    try:
        content = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise DataError(f"{option}: not valid YAML ({' '.join(str(error).split())}); correct the file") from error
    if not isinstance(content, dict):
        raise DataError(f"{option}: must be a mapping with the fields {', '.join(_FIELDS)}")
    for field in content:
        if field not in _FIELDS:
            raise DataError(f"{option}: unknown field {field!r}{nearest_hint(str(field), _FIELDS)}")
    fields = {"shares": {}, "others_share": 0, "others": [], "counted_as": {}, "max_repeats": {}, **content}
    if "name" not in content:
        raise DataError(f"{option}: no name; give it one")
    for field, kind in (("shares", dict), ("others", list), ("counted_as", dict), ("max_repeats", dict)):
        if not isinstance(fields[field], kind):
            raise DataError(f"{option}: {field} must be a {'mapping' if kind is dict else 'list'}")
    return fields


class _UniqueKeys(yaml.SafeLoader):
    """YAML, in which a key that is written twice is an error: PyYAML keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(problem="a key is there twice", problem_mark=node.start_mark)
        return mapping


def _positive(value: object, option: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DataError(f"{option}={value}: must be a finite number > 0")
    # 10.3 means 103/10, not the nearest binary fraction.
    return Fraction(str(value))


def _counted_as(written: dict, listed: set[str], option: str) -> dict[str, str]:
    counted = {}
    for dialect, language in written.items():
        dialect = languages.require_language(str(dialect), f"{option}: counted_as")
        language = languages.require_language(str(language), f"{option}: counted_as.{dialect}")
        if dialect in listed or language not in listed:
            raise DataError(
                f"{option}: counted_as.{dialect}={language}: must lead from an unlisted language to a listed one"
            )
        if languages.side_of(dialect) == "text":
            raise DataError(f"{option}: counted_as.{dialect} is prose, which is on the text side; remove it")
        counted[dialect] = language
    return counted


def _max_repeats(written: dict, listed: set[str], option: str) -> dict[str, float]:
    caps = {}
    for name, value in written.items():
        language = languages.require_language(str(name), f"{option}: max_repeats")
        if language not in listed:
            raise DataError(f"{option}: max_repeats.{language}: not one of the manifest's languages; remove it")
        caps[language] = float(_positive(value, f"{option}: max_repeats.{language}"))
    return caps

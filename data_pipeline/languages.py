"""Which languages claim a file, by its name, else by its first line.

The journey of a file name: exact file name (`Makefile`) -> longest extension of the table (`.d.ts` before `.ts`) ->
the languages that claim it (`claim_of`); for a file without an extension, the interpreter of its `#!` line. Where
several languages claim it, `prepare.identify` looks at the content. By name alone (`language_of`) the choice is fixed:
`PREFERRED` first, else a programming language before markup, prose and data, else by name.

The table, `languages.json`, is GitHub linguist's. Markdown counts as code, like in the training recipe that this
project follows; all other prose is text, everything else is code.
"""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from data_pipeline.errors import DataError, nearest_hint

# Extensions that several languages claim -> the one that is meant far more often than the others.
PREFERRED = {
    ".as": "ActionScript", ".asc": "AsciiDoc", ".asm": "Assembly", ".b": "Brainfuck", ".bas": "BASIC",
    ".cake": "C#", ".cfg": "INI", ".cgi": "Perl", ".cl": "Common Lisp", ".cls": "TeX", ".cp": "C++", ".cs": "C#",
    ".d": "D", ".dsp": "Faust", ".e": "Eiffel", ".ecl": "ECL", ".es": "Erlang", ".ex": "Elixir", ".f": "Fortran",
    ".fcgi": "Perl", ".for": "Fortran", ".fr": "Frege", ".frag": "GLSL", ".frm": "VBA", ".fs": "F#",
    ".ftl": "FreeMarker", ".g": "GAP", ".gd": "GDScript", ".gml": "Game Maker Language", ".gs": "Gosu",
    ".h": "C", ".hh": "C++", ".html": "HTML", ".i": "SWIG", ".inc": "PHP", ".json": "JSON", ".l": "Lex",
    ".lean": "Lean", ".lisp": "Common Lisp", ".ls": "LiveScript", ".lsp": "Common Lisp", ".m": "Objective-C",
    ".m4": "M4", ".md": "Markdown", ".ml": "OCaml", ".mm": "Objective-C++", ".mod": "Modula-2", ".mojo": "Mojo",
    ".ms": "Roff", ".n": "Nemerle", ".nb": "Wolfram Language", ".nl": "NewLisp", ".nu": "Nushell", ".p": "Gnuplot",
    ".php": "PHP", ".pkl": "Pkl", ".pl": "Perl", ".plist": "XML Property List", ".pm": "Perl", ".pp": "Pascal",
    ".pro": "Prolog", ".properties": "Java Properties", ".q": "q", ".qs": "Q#", ".r": "R", ".re": "Reason",
    ".rs": "Rust", ".s": "Assembly", ".sc": "Scala", ".scm": "Scheme", ".shader": "ShaderLab", ".sls": "Scheme",
    ".sol": "Solidity", ".spec": "RPM Spec", ".sql": "SQL", ".st": "Smalltalk", ".star": "Starlark",
    ".t": "Perl", ".tcc": "C++", ".tpl": "Smarty", ".ts": "TypeScript", ".tsx": "TSX", ".txt": "Text",
    ".typ": "Typst", ".v": "Verilog", ".vba": "VBA", ".vcf": "vCard", ".w": "CWeb", ".workflow": "XML",
    ".x": "Linker Script", ".yaml": "YAML", ".yml": "YAML", ".yy": "Yacc",
}  # fmt: skip
_TYPE_ORDER = ("programming", "markup", "prose", "data")
_PROSE_THAT_IS_CODE = {"Markdown"}
_SHEBANG = re.compile(r"^#![ \t]*(?:\S*/)?env(?:[ \t]+-\S+|[ \t]+\w+=\S*)*[ \t]+(?:\S*/)?(\S+)|^#![ \t]*(?:\S*/)?(\S+)")
_SHELLS = {"sh", "bash", "dash", "ksh", "zsh"}
_EXEC = re.compile(r"^\s*exec[ \t]+(?:\S*/env[ \t]+)?(?:\S*/)?([\w.+-]+)[^\n]*\$\{?0\b", re.MULTILINE)
_VERSION_SUFFIX = re.compile(r"[\d.]+$")


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    """language -> kind (programming | markup | prose | data), extensions, filenames, interpreters, aliases."""
    return json.loads(resources.files("data_pipeline").joinpath("languages.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Claim:
    """languages that claim a file, by name: none, one or several; key: the file name or extension that they share."""

    languages: tuple[str, ...]
    key: str
    by_filename: bool


_NO_CLAIM = Claim((), "", False)


def claim_of(path: str) -> Claim:
    """The languages that claim a path: by its exact file name, else by the longest extension that the table has."""
    name = PurePosixPath(path).name
    if name in _by_filename():
        return _by_filename()[name]
    suffixes = _suffixes(name)
    for start in range(len(suffixes)):
        claim = _by_extension().get("." + ".".join(suffixes[start:]))
        if claim is not None:
            return claim
    return _NO_CLAIM


def has_extension(path: str) -> bool:
    """Whether the file name has an extension, known or not; `.bashrc` has none."""
    return bool(_suffixes(PurePosixPath(path).name))


def preferred(claim: Claim) -> str:
    """The claimant that is meant most often: a choice by name alone. `claim` has at least one."""
    if claim.key in PREFERRED:
        return PREFERRED[claim.key]
    return min(claim.languages, key=lambda name: (_TYPE_ORDER.index(type_of(name)), name))


def language_of(path: str, first_line: bytes = b"") -> str | None:
    """The language of a file by name alone, None if the table does not know it. `first_line` matters only without an
    extension."""
    claim = claim_of(path)
    if claim.languages:
        return preferred(claim)
    return None if has_extension(path) else language_of_shebang(first_line.decode("utf-8", "replace"))


def language_of_shebang(head: str) -> str | None:
    """The language of the interpreter in the `#!` line at the beginning of `head`, None without one or if unknown.

    A shell that only starts another interpreter on the file (`exec tclsh "$0"`) counts as that interpreter.
    """
    match = _SHEBANG.match(head)
    if match is None:
        return None
    interpreter = match[1] or match[2]
    if interpreter in _SHELLS and (handed_on := _EXEC.search(head)) is not None:
        interpreter = handed_on[1]
    interpreter = interpreter.lower()
    return _by_interpreter().get(interpreter) or _by_interpreter().get(_VERSION_SUFFIX.sub("", interpreter))


def side_of(language: str) -> str:
    """`text` or `code`: the side of the mixture that a language counts on."""
    prose = table()[language]["kind"] == "prose" and language not in _PROSE_THAT_IS_CODE
    return "text" if prose else "code"


def type_of(language: str) -> str:
    """programming, markup, prose or data."""
    return table()[language]["kind"]


def find_language(name: str) -> str | None:
    """The table's spelling of a language name or alias in any case (`python`, `c-sharp`, `cpp`), None if unknown."""
    return _by_alias().get(name.strip().lower())


def require_language(name: str, option: str) -> str:
    """`find_language`, or a DataError that names `option` and the nearest language."""
    language = find_language(name)
    if language is None:
        raise DataError(f"{option}={name!r}: not a known language{nearest_hint(name, table())}")
    return language


def slug(language: str) -> str:
    """The name of a language's source: lower case, `C++` -> `cpp`, `C#` -> `csharp`, others joined by `-`."""
    spelled = language.lower().replace("++", "pp").replace("#", "sharp").replace("*", "star")
    return re.sub(r"[^a-z0-9]+", "-", spelled).strip("-")


def _suffixes(name: str) -> list[str]:
    return name.lower().lstrip(".").split(".")[1:]


@functools.cache
def _by_filename() -> dict[str, Claim]:
    return _claims("filenames", str)


@functools.cache
def _by_extension() -> dict[str, Claim]:
    return _claims("extensions", str.lower)


def _claims(field: str, spell: Callable[[str], str]) -> dict[str, Claim]:
    found: dict[str, list[str]] = {}
    for name, entry in table().items():
        for key in map(spell, entry.get(field, ())):
            found.setdefault(key, []).append(name)
    return {key: Claim(tuple(names), key, field == "filenames") for key, names in found.items()}


@functools.cache
def _by_interpreter() -> dict[str, str]:
    names: dict[str, str] = {}
    # Several languages claim `python`, `perl`, `node`, `sh`: the one of that very name or alias wins.
    for name, entry in table().items():
        for interpreter in entry.get("interpreters", ()):
            own = interpreter in (name.lower(), *entry.get("aliases", ()))
            if own or interpreter not in names:
                names[interpreter] = name
    return names


@functools.cache
def _by_alias() -> dict[str, str]:
    aliases: dict[str, str] = {}
    for name, entry in table().items():
        for alias in (slug(name), *entry.get("aliases", ())):
            aliases.setdefault(alias.lower(), name)
    # A language's own name is never another's alias.
    return {**aliases, **{name.lower(): name for name in table()}}

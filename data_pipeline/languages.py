"""Which language a file is in, by its name, else by its first line.

The journey of a file name: exact file name (`Makefile`) -> longest extension of the table (`.d.ts` before `.ts`) ->
for a file without an extension, the interpreter of its `#!` line. Where several languages share an extension, the
choice is fixed: `PREFERRED` first, else a programming language before markup, prose and data, else by name. It is a
choice by name alone; content would do better for `.h`, `.m`, `.pl`, `.v`.

The table, `languages.json`, is GitHub linguist's. Markdown counts as code, like in the training recipe that this
project follows; all other prose is text, everything else is code.
"""

import functools
import json
import re
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
_SHEBANG = re.compile(rb"^#!\s*(?:\S*/)?env(?:\s+-\S+|\s+\w+=\S*)*\s+(?:\S*/)?(\S+)|^#!\s*(?:\S*/)?(\S+)")
_VERSION_SUFFIX = re.compile(r"[\d.]+$")


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    """language -> kind (programming | markup | prose | data), extensions, filenames, interpreters, aliases."""
    return json.loads(resources.files("data_pipeline").joinpath("languages.json").read_text(encoding="utf-8"))


def language_of(path: str, first_line: bytes = b"") -> str | None:
    """The language of a file, None if the table does not know it. `first_line` matters only without an extension."""
    name = PurePosixPath(path).name
    if name in _by_filename():
        return _by_filename()[name]
    suffixes = name.lower().lstrip(".").split(".")[1:]
    for start in range(len(suffixes)):
        language = _by_extension().get("." + ".".join(suffixes[start:]))
        if language is not None:
            return language
    return None if suffixes else _by_shebang(first_line)


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


@functools.cache
def _by_filename() -> dict[str, str]:
    return {file: name for name, entry in table().items() for file in entry.get("filenames", ())}


@functools.cache
def _by_extension() -> dict[str, str]:
    claims: dict[str, list[str]] = {}
    for name, entry in table().items():
        for extension in entry["extensions"]:
            claims.setdefault(extension.lower(), []).append(name)
    chosen = {
        extension: min(names, key=lambda name: (_TYPE_ORDER.index(table()[name]["kind"]), name))
        for extension, names in claims.items()
    }
    return {**chosen, **PREFERRED}


def _by_shebang(first_line: bytes) -> str | None:
    match = _SHEBANG.match(first_line)
    if match is None:
        return None
    interpreter = (match[1] or match[2]).decode("ascii", "replace").lower()
    return _by_interpreter().get(interpreter) or _by_interpreter().get(_VERSION_SUFFIX.sub("", interpreter))


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

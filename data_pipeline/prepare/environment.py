"""The default corpus: the Python environment that runs this, which every machine has.

`code`: source files of the standard library and the installed packages, every programming and markup language, with
YAML, TOML and Markdown (other data formats say little and would drown the rest). `text`: docstrings, package
descriptions and documentation (.rst, .txt).

The journey of the code: all files are listed, then ordered so that **every prefix** has each language in proportion
to the square root of its size, until it is used up; inside a language the order is a hash of the name. So a build that
stops at its cap has Python and C, but JavaScript and CUDA as well. Text interleaves its three collections alike.
"""

import ast
import email.parser
import inspect
import math
import re
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data_pipeline import languages
from data_pipeline.prepare.documents import Part, RawText
from data_pipeline.prepare.files import (
    TOO_LARGE,
    FileEntry,
    Skip,
    encode_checked,
    list_files,
    once,
    part_of_files,
    read_text,
)

_USEFUL_DATA = {"YAML", "TOML"}
_OTHER_LANGUAGE, _NOT_SOURCE = "language not used from the environment", "not a source file"
_PACKAGES = frozenset({"site-packages", "dist-packages"})

DOCSTRINGS, DESCRIPTIONS, DOCUMENTATION = "docstrings", "package-descriptions", "documentation"
_WEIGHTS = {DOCSTRINGS: 6, DESCRIPTIONS: 1, DOCUMENTATION: 2}
MIN_DOCSTRING_CHARACTERS = 200
# Parsing costs most of the time. A file where long strings are less than this share gives little for it.
_MIN_DOCSTRING_SHARE = 0.1
_NOT_PROSE = "not prose"
_MIN_LETTERS_IN_PROSE = 0.6
# The same few texts in every package: near copies that would sit on both sides of the held-out split.
_LICENCE = re.compile(r"licen[cs]e|copying|notice|third.?party", re.IGNORECASE)
_NOT_DOCUMENTATION = {
    *("top_level.txt", "entry_points.txt", "SOURCES.txt", "dependency_links.txt", "requires.txt"),
    *("requirements.txt", "native_libs.txt", "namespace_packages.txt", "eager_resources.txt", "CMakeLists.txt"),
}


def environment_files(skip: Skip) -> list[FileEntry]:
    """Every file of the environment, named `stdlib/...` or `site-packages/...`."""
    paths = sysconfig.get_paths()
    roots = {"stdlib": paths["stdlib"], "site-packages": paths["purelib"], "site-packages-native": paths["platlib"]}
    entries, seen = [], set()
    for label, folder in roots.items():
        root = Path(folder)
        if root in seen or not root.is_dir():
            continue
        seen.add(root)
        for entry in list_files(root, skip, excluded_folders=_PACKAGES):
            entry.name = f"{label}/{entry.name}"
            entries.append(entry)
    return entries


def code(max_document_bytes: int, skip: Skip, part: Part) -> Iterator[RawText]:
    """Source files of a part, in an order of which every prefix is a sample of all languages."""
    by_language: dict[str, list[FileEntry]] = defaultdict(list)
    for entry in part_of_files(environment_files(once(skip, part)), part):
        language = languages.language_of(entry.name)
        if language is None:
            skip(_NOT_SOURCE, entry.size)
        elif not _is_used(language):
            skip(_OTHER_LANGUAGE, entry.size)
        elif entry.size > max_document_bytes:  # must not count as bytes of its language
            skip(TOO_LARGE, entry.size)
        else:
            by_language[language].append(entry)
    for language, entry in spread(by_language):
        text = read_text(entry, max_document_bytes, skip)
        if text is not None:
            yield RawText(text=text, name=entry.name, language=language, num_bytes=len(text.encode()))


def _is_used(language: str) -> bool:
    if languages.side_of(language) == "text":
        return False
    return languages.type_of(language) != "data" or language in _USEFUL_DATA


def spread(by_language: dict[str, list[FileEntry]]) -> list[tuple[str, FileEntry]]:
    """All (language, file), ordered so that a prefix has bytes of each language ~ sqrt of its total, while it lasts."""
    keyed = []
    for language, entries in by_language.items():
        scale = math.sqrt(sum(entry.size for entry in entries) or 1)
        before = 0
        for entry in entries:
            keyed.append((before / scale, language, entry.name, entry))
            before += entry.size
    return [(language, entry) for _, language, _, entry in sorted(keyed, key=lambda item: item[:3])]


def text(max_document_bytes: int, skip: Skip, part: Part) -> Iterator[RawText]:
    """Docstrings, package descriptions and documentation of a part, interleaved 6 : 1 : 2 by bytes while they last."""
    entries = part_of_files(environment_files(once(skip, part)), part)
    collections = {
        DOCSTRINGS: _docstrings(entries, max_document_bytes, skip),
        DESCRIPTIONS: _descriptions(entries, max_document_bytes, skip),
        DOCUMENTATION: _documentation(entries, max_document_bytes, skip),
    }
    taken = dict.fromkeys(collections, 0)
    while collections:
        group = min(collections, key=lambda name: taken[name] / _WEIGHTS[name])
        raw = next(collections[group], None)
        if raw is None:
            del collections[group]
            continue
        taken[group] += raw.num_bytes
        yield raw


def _raw(text: str, name: str, language: str, group: str) -> RawText:
    return RawText(text=text, name=name, language=language, num_bytes=len(text.encode()), group=group)


def _docstrings(entries: list[FileEntry], limit: int, skip: Skip) -> Iterator[RawText]:
    for entry in entries:
        if not entry.name.endswith(".py"):
            continue
        source = read_text(entry, limit, skip)
        if source is None:
            continue
        if _long_strings(source) < _MIN_DOCSTRING_SHARE * len(source):
            skip("few docstrings", entry.size)
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other people's invalid escapes are not the user's concern
                tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            skip("not parseable as Python", entry.size)
            continue
        for name, docstring in docstrings_of(tree):
            # An escape in the source can spell what no file may hold: a NUL or half of a surrogate pair.
            if encode_checked(docstring, limit, skip) is not None:
                yield _raw(docstring, f"{entry.name}::{name}", "Text", DOCSTRINGS)


def _long_strings(source: str) -> int:
    """Characters inside triple double quotes, roughly."""
    parts = source.split('"""')[1::2]
    return sum(len(part) for part in parts if len(part) >= MIN_DOCSTRING_CHARACTERS)


def docstrings_of(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, docstring) of the module, classes and functions with at least 200 characters, in order."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring is None or len(docstring) < MIN_DOCSTRING_CHARACTERS:
                continue
            docstring = inspect.cleandoc(docstring)
            if len(docstring) >= MIN_DOCSTRING_CHARACTERS:
                yield getattr(node, "name", "<module>"), docstring


def _descriptions(entries: list[FileEntry], limit: int, skip: Skip) -> Iterator[RawText]:
    for entry in entries:
        if not entry.name.endswith(".dist-info/METADATA"):
            continue
        content = read_text(entry, limit, skip)
        if content is None:
            continue
        message = email.parser.Parser().parsestr(content)
        body = message.get_payload() or message.get("Description", "")
        if isinstance(body, str) and len(body.strip()) >= MIN_DOCSTRING_CHARACTERS:
            yield _raw(body.strip() + "\n", entry.name, "Text", DESCRIPTIONS)
        else:
            skip("no description", entry.size)


def _documentation(entries: list[FileEntry], limit: int, skip: Skip) -> Iterator[RawText]:
    for entry in entries:
        language = languages.language_of(entry.name)
        if language not in ("Text", "reStructuredText") or entry.path.name in _NOT_DOCUMENTATION:
            continue
        if _LICENCE.search(entry.name):
            skip("licence text", entry.size)
            continue
        text = read_text(entry, limit, skip)
        if text is None:
            continue
        letters = sum(map(str.isalpha, text))
        if letters < _MIN_LETTERS_IN_PROSE * len(text):
            skip(_NOT_PROSE, entry.size)
            continue
        yield _raw(text, entry.name, language, DOCUMENTATION)

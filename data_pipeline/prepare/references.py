"""Which files of a repository a file refers to: its imports and includes, as far as they lead to other files there.

The journey of a file: the patterns of its language find what it names -> the language's rule turns a name into paths
-> those that are in the repository are its references. This orders files for training, it is no compiler: build files
and search paths are not read, a name in a comment counts, and what cannot be found is somebody else's library.
"""

import functools
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class RepositoryFile:
    """One file: path relative to the root of its repository, with `/`; its text; its language's name in the table."""

    path: str
    text: str
    language: str


class RepositoryIndex:
    """Answers which file of a repository a name means."""

    def __init__(self, files: Sequence[RepositoryFile]) -> None:
        self._paths = {file.path for file in files}
        self._by_tail: dict[str, list[str]] = {}
        self._by_folder: dict[str, list[str]] = {}
        self._by_namespace: dict[str, set[str]] = {}
        for path in sorted(self._paths):
            parts = path.split("/")
            for start in range(len(parts)):
                self._by_tail.setdefault("/".join(parts[start:]), []).append(path)
            self._by_folder.setdefault(posixpath.dirname(path), []).append(path)
        for file in files:
            if file.language == "C#":
                for name in _CSHARP_NAMESPACE.findall(file.text):
                    self._by_namespace.setdefault(name, set()).add(file.path)

    def relative(self, folder: str, name: str, endings: Iterable[str] = ("",)) -> list[str]:
        """The file `name` seen from `folder`, with the first ending that exists; never above the root."""
        target = posixpath.normpath(posixpath.join(folder, name.lstrip("/")))
        for ending in endings:
            path = target + ending
            if path in self._paths:
                return [path]
        return []

    def ending_with(self, near: str, name: str) -> list[str]:
        """The file whose path ends with `name`: of several the one that shares most folders with `near`."""
        candidates = self._by_tail.get(name)
        if candidates is None:
            return []
        folders = near.split("/")[:-1]
        return [min(candidates, key=lambda path: (-_shared(folders, path.split("/")), path.count("/"), path))]

    def only_one_ending_with(self, name: str) -> list[str]:
        """The file whose path ends with `name`, if there is exactly one."""
        candidates = self._by_tail.get(name, [])
        return candidates if len(candidates) == 1 else []

    def in_folder_ending(self, name: str, extension: str) -> list[str]:
        """The files with this extension in the folder that is the longest tail of `name` (a Go package)."""
        parts = name.split("/")
        for start in range(len(parts)):
            inside = self._by_folder.get("/".join(parts[start:]), [])
            found = [path for path in inside if path.endswith(extension)]
            if found:
                return found
        return []

    def in_namespace(self, name: str) -> list[str]:
        """The C# files that declare this namespace."""
        return sorted(self._by_namespace.get(name, ()))


def _shared(first: Sequence[str], second: Sequence[str]) -> int:
    """How many leading parts two paths have in common."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def references(file: RepositoryFile, index: RepositoryIndex) -> list[str]:
    """Paths of the files that `file` refers to, sorted, each once, without itself."""
    rule = _RULES.get(file.language)
    if rule is None:
        return []
    return sorted(set(rule(file, index)) - {file.path})


Rule = Callable[[RepositoryFile, RepositoryIndex], Iterator[str]]

# Every pattern is bounded where it could run on: a hostile file must not cost more than its length.
_QUOTED = r"""["']([^"'\n]{1,300})["']"""
_PYTHON_IMPORT = re.compile(r"^[ \t]*import[ \t]+([^\n#;]{1,1000})", re.MULTILINE)
_PYTHON_FROM = re.compile(
    r"^[ \t]*from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]+(?:\(([^()]{0,4000})\)|([^\n#;(]{1,1000}))", re.MULTILINE
)
_JAVASCRIPT = re.compile(r"\b(?:from|import|require)\s{0,20}\(?\s{0,20}" + _QUOTED)
_C = re.compile(r"""^[ \t]*#[ \t]*(?:include|import)[ \t]*[<"]([^>"\n]{1,300})[>"]""", re.MULTILINE)
_JAVA = re.compile(r"^[ \t]*import[ \t]+(?:static[ \t]+)?([\w.]+)", re.MULTILINE)
_GO_ONE = re.compile(r'^[ \t]*import[ \t]+(?:[\w.]+[ \t]+)?"([^"\n]{1,300})"', re.MULTILINE)
_GO_BLOCK = re.compile(r"^[ \t]*import[ \t]*\(([^()]{0,20000})\)", re.MULTILINE)
_RUST_MOD = re.compile(r"^[ \t]*(?:pub(?:\([^)\n]{0,100}\))?[ \t]+)?mod[ \t]+(\w+)[ \t]*;", re.MULTILINE)
_RUST_USE = re.compile(
    r"^[ \t]*(?:pub(?:\([^)\n]{0,100}\))?[ \t]+)?use[ \t]+((?:crate|self|super)[\w:]*)", re.MULTILINE
)
_RUBY = re.compile(r"^[ \t]*require(_relative)?[ \t(]+" + _QUOTED, re.MULTILINE)
_PHP_INCLUDE = re.compile(r"\b(?:require|include)(?:_once)?[ \t(]{1,20}(?:__DIR__[ \t]{0,20}\.[ \t]{0,20})?" + _QUOTED)
_PHP_USE = re.compile(r"^[ \t]*use[ \t]+(?:function[ \t]+|const[ \t]+)?\\?([\w\\]+)", re.MULTILINE)
_CSHARP_NAMESPACE = re.compile(r"^[ \t]*namespace[ \t]+([\w.]+)", re.MULTILINE)
_CSHARP_USING = re.compile(r"^[ \t]*(?:global[ \t]+)?using[ \t]+(?:static[ \t]+)?([\w.]+)[ \t]*;", re.MULTILINE)

_JAVASCRIPT_ENDINGS = ("", ".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mjs", ".cjs", ".vue", ".svelte", ".json", ".coffee")
_JAVASCRIPT_INDEX = tuple(f"/index{ending}" for ending in _JAVASCRIPT_ENDINGS if ending)
_JVM_ENDINGS = (".java", ".kt", ".scala", ".groovy")


def _folder(file: RepositoryFile) -> str:
    return posixpath.dirname(file.path)


def _python(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
    for names in _PYTHON_IMPORT.findall(file.text):
        for name in names.split(","):
            yield from _python_module(file, index, 0, name.split(" as ")[0].strip())
    for dots, module, in_brackets, in_line in _PYTHON_FROM.findall(file.text):
        yield from _python_module(file, index, len(dots), module)
        for name in (in_brackets or in_line).split(","):
            words = name.split()
            if words:
                yield from _python_module(file, index, len(dots), f"{module}.{words[0]}" if module else words[0])


def _python_module(file: RepositoryFile, index: RepositoryIndex, dots: int, module: str) -> list[str]:
    name = module.replace(".", "/")
    endings = (".py", "/__init__.py", ".pyx", ".pyi")
    if dots:
        up = "/".join([".", *[".."] * (dots - 1)])
        return index.relative(_folder(file), f"{up}/{name}" if name else up, endings)
    for ending in endings if name else ():
        found = index.ending_with(file.path, name + ending)
        if found:
            return found
    return []


def _javascript(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
    for name in _JAVASCRIPT.findall(file.text):
        if name.startswith("."):
            # In TypeScript's modules `./x.js` means the x.ts from which it is made.
            stem = name.removesuffix(".js")
            yield from (
                index.relative(_folder(file), name, _JAVASCRIPT_ENDINGS + _JAVASCRIPT_INDEX)
                or index.relative(_folder(file), stem, (".ts", ".tsx"))
            )


def _c(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
    for name in _C.findall(file.text):
        found = index.relative(_folder(file), name)
        yield from found or index.ending_with(file.path, posixpath.normpath(name).removeprefix("../"))


def _java(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
    for name in _JAVA.findall(file.text):
        parts = name.rstrip(".").split(".")
        # The class, or the class of a member that is imported.
        for length in (len(parts), len(parts) - 1):
            stem = "/".join(parts[:length])
            found = [path for ending in _JVM_ENDINGS if stem for path in index.ending_with(file.path, stem + ending)]
            if found:
                yield found[0]
                break


def _go(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
    names = _GO_ONE.findall(file.text)
    for block in _GO_BLOCK.findall(file.text):
        names += re.findall(r'"([^"\n]{1,300})"', block)
    for name in names:
        yield from (path for path in index.in_folder_ending(name, ".go") if not path.endswith("_test.go"))


def _rust(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
    folder, name = posixpath.split(file.path)
    here = folder if name in ("mod.rs", "lib.rs", "main.rs") else posixpath.join(folder, name.removesuffix(".rs"))
    for module in _RUST_MOD.findall(file.text):
        yield from index.relative(here, module, (".rs", "/mod.rs"))
    before, source, _ = f"/{file.path}".rpartition("/src/")
    roots = {"crate": (before + source).strip("/"), "self": here, "super": posixpath.dirname(here)}
    for name in _RUST_USE.findall(file.text):
        first, *parts = [part for part in name.split("::") if part]
        # What is used is a module, or an item of one.
        for length in range(len(parts), 0, -1):
            found = index.relative(roots[first], "/".join(parts[:length]), (".rs", "/mod.rs"))
            if found:
                yield from found
                break


def _ruby(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
    for is_relative, name in _RUBY.findall(file.text):
        if is_relative:
            yield from index.relative(_folder(file), name, (".rb", ""))
        else:
            yield from index.ending_with(file.path, name.removesuffix(".rb") + ".rb")


def _php(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
    for name in _PHP_INCLUDE.findall(file.text):
        yield from index.relative(_folder(file), name) or index.ending_with(file.path, name.lstrip("./"))
    for name in _PHP_USE.findall(file.text):
        # Which leading namespaces are a folder's (PSR-4) stands in composer.json: the longest tail that exists is it.
        parts = [part for part in name.split("\\") if part]
        for start in range(len(parts)):
            path = "/".join(parts[start:]) + ".php"
            found = index.ending_with(file.path, path) if start < len(parts) - 1 else index.only_one_ending_with(path)
            if found:
                yield from found
                break


def _csharp(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
    own = set(_CSHARP_NAMESPACE.findall(file.text))
    for name in set(_CSHARP_USING.findall(file.text)) - own:
        yield from index.in_namespace(name)


def _by_path(pattern: str, *endings: str) -> Rule:
    """For languages that name files: seen from the file itself, else any that ends so."""
    compiled = re.compile(pattern, re.MULTILINE)

    def rule(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
        for name in compiled.findall(file.text):
            found = index.relative(_folder(file), name, ("", *endings))
            for ending in ("", *endings):
                found = found or index.ending_with(file.path, name.removeprefix("./") + ending)
            yield from found

    return rule


def _by_module(pattern: str, separator: str, *endings: str) -> Rule:
    """For languages that name modules with dots or colons, one file each."""
    compiled = re.compile(pattern, re.MULTILINE)

    def rule(file: RepositoryFile, index: RepositoryIndex) -> Iterator[str]:
        for name in compiled.findall(file.text):
            path = name.replace(separator, "/")
            for ending in endings:
                found = index.ending_with(file.path, path + ending)
                if found:
                    yield from found
                    break

    return rule


def _rules() -> Iterator[tuple[str, Rule]]:
    families: list[tuple[Rule, str]] = [
        (_python, "Python, Cython, Starlark"),
        (_javascript, "JavaScript, TypeScript, TSX, Vue, Svelte, CoffeeScript"),
        (_c, "C, C++, Objective-C, Objective-C++, Cuda, GLSL, HLSL, OpenCL, SWIG"),
        (_java, "Java, Kotlin, Scala, Groovy"),
        (_go, "Go"),
        (_rust, "Rust"),
        (_ruby, "Ruby"),
        (_php, "PHP"),
        (_csharp, "C#"),
        (_by_path(r"^[ \t]*(?:import|export|part)[ \t]+(?:['\"]|['\"]package:\w+/)([\w./-]{1,300})['\"]"), "Dart"),
        (_by_path(r"^[ \t]*import[ \t]+(?:public[ \t]+)?" + _QUOTED), "Protocol Buffer, Thrift"),
        (_by_path(r"^[ \t]*import\b[^\"'\n]{0,300}" + _QUOTED), "Solidity"),
        (_by_path(r"^[ \t]*(?:source|\.)[ \t]+[\"']?([\w./-]{1,300})"), "Shell"),
        (
            _by_path(r"@(?:import|use|forward)[ \t]+" + _QUOTED, ".scss", ".sass", ".less", ".css"),
            "CSS, SCSS, Sass, Less",
        ),
        (_by_path(r"\\(?:input|include)\{([^}\n]{1,300})\}", ".tex"), "TeX"),
        (_by_path(r"\binclude\([ \t]*" + _QUOTED), "Julia"),
        (_by_path(r"\bsource\([ \t]*" + _QUOTED), "R"),
        (_by_path(r"@import\([ \t]*" + _QUOTED), "Zig"),
        (_by_path(r"^[ \t]*`include[ \t]+" + _QUOTED), "Verilog, SystemVerilog"),
        (_by_module(r"\brequire[ \t(]{1,20}[\"']([\w./]{1,300})[\"']", ".", ".lua", "/init.lua"), "Lua"),
        (_by_module(r"^[ \t]*(?:use|require)[ \t]+([A-Z][\w:]{0,300})", "::", ".pm"), "Perl"),
        (_by_module(r"^import[ \t]+(?:qualified[ \t]+)?([A-Z][\w.]{0,300})", ".", ".hs"), "Haskell"),
        (_by_module(r"^import[ \t]+([A-Z][\w.]{0,300})", ".", ".elm"), "Elm"),
    ]
    for rule, names in families:
        for name in names.split(", "):
            yield name, rule


_RULES: dict[str, Rule] = dict(_rules())


@functools.cache
def known_languages() -> frozenset[str]:
    """Languages whose references are found."""
    return frozenset(_RULES)

"""Files on disk -> text, or the reason why not. Shared by the sources that read files.

Nothing here decides what a document is worth: it lists files in an order that does not depend on the machine, and
turns bytes into text only when they are text.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from data_pipeline.prepare.documents import Part

BINARY, NOT_UTF8, EMPTY = "binary (NUL byte)", "not UTF-8", "empty"
TOO_LARGE = "larger than max_document_bytes"
UNREADABLE = "cannot be read"
LINK, OWN_FOLDER = "symbolic link", "folder of a corpus or a run"
_NEVER_ENTERED = {".git", ".hg", ".svn", ".venv", ".tox", "__pycache__", "node_modules"}

Skip = Callable[[str, int], None]
"""Called with (reason, bytes) for everything that is passed over."""


@dataclass(kw_only=True, slots=True)
class FileEntry:
    """A file: path relative to its root (with /), where it is, bytes."""

    name: str
    path: Path
    size: int


def list_files(root: Path, skip: Skip, excluded_folders: frozenset[str] = frozenset()) -> Iterator[FileEntry]:
    """Regular files below `root`; no link is followed, and no corpus or run of this project is entered."""
    stack = [root]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    skip(LINK, 0)
                elif entry.is_dir(follow_symlinks=False):
                    reason = _not_entered(entry, excluded_folders)
                    if reason is None:
                        stack.append(Path(entry.path))
                    else:
                        skip(reason, 0)
                elif entry.is_file(follow_symlinks=False):
                    path = Path(entry.path)
                    yield FileEntry(name=path.relative_to(root).as_posix(), path=path, size=entry.stat().st_size)


def _not_entered(entry: os.DirEntry[str], excluded: frozenset[str]) -> str | None:
    if entry.name in _NEVER_ENTERED or entry.name in excluded:
        return f"folder {entry.name}"
    path = Path(entry.path)
    is_corpus = (path / "shards").is_dir() and (path / "tokenizer.json").is_file()
    return OWN_FOLDER if is_corpus or (path / "run.yaml").is_file() else None


def spread_key(name: str) -> int:
    """A hash of a name to sort by: neighbours in a folder come far apart, so that stopping early stays diverse."""
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogateescape"))


def part_of_files(entries: Iterable[FileEntry], part: Part) -> list[FileEntry]:
    """The files of a part, in an order that is spread over the folders."""
    ordered = sorted(entries, key=lambda entry: (spread_key(entry.name), entry.name))
    return [entry for index, entry in enumerate(ordered) if part.has(index)]


def once(skip: Skip, part: Part) -> Skip:
    """`skip` for what every part comes upon: told by the first part only."""
    return skip if part.number == 0 else lambda reason, size: None


def read_text(entry: FileEntry, max_document_bytes: int, skip: Skip) -> str | None:
    """The text of a file, or None after `skip` was told why not. The text is not changed in any way."""
    if entry.size > max_document_bytes:
        skip(TOO_LARGE, entry.size)
        return None
    try:
        content = entry.path.read_bytes()
    except OSError:
        skip(UNREADABLE, entry.size)
        return None
    return decode(content, max_document_bytes, skip)


def decode(content: bytes, max_document_bytes: int, skip: Skip) -> str | None:
    """Bytes -> text, or None after `skip` was told why not."""
    reason = None
    text = ""
    if len(content) > max_document_bytes:
        reason = TOO_LARGE
    elif b"\0" in content:
        reason = BINARY
    else:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            reason = NOT_UTF8
        else:
            reason = EMPTY if not text.strip() else None
    if reason is not None:
        skip(reason, len(content))
        return None
    return text


def encode_checked(text: str, max_document_bytes: int, skip: Skip) -> bytes | None:
    """The UTF-8 bytes of a row's text, or None after `skip` was told why not (a lone surrogate is no UTF-8)."""
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError:
        skip(NOT_UTF8, len(text))
        return None
    return None if decode(content, max_document_bytes, skip) is None else content

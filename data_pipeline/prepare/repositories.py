"""Files of one repository -> packed documents for the long-context stage.

The journey of a repository: its files are put in an order in which a file comes after those that it refers to
(`references.py`) -> each is encoded, alone -> they are put together until the next one would exceed the bound:

    <|repo_name|> name <|file_sep|> path \\n content <|file_sep|> path \\n content ...

A file is never cut: one that is larger than the bound is a packed document of its own, and is counted. Every packed
document begins with the repository's name. The end-of-document token is the writer's to add, like everywhere.

Fill-in-the-middle is applied to the content of single files, with the cut that the same file would have had alone. So
the sentinels come inside a file, after its path, and a model learns to fill in with other files in sight.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.prepare.references import RepositoryFile, RepositoryIndex, references
from data_pipeline.tokenizer import REPOSITORY_TOKENS, Tokenizer


@dataclass(kw_only=True, slots=True)
class RepositoryConfig:
    """max_tokens: of a packed document, its sentinels included; about the length of the stage's sequences."""

    max_tokens: int = 32_768

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise DataError(f"repositories.max_tokens={self.max_tokens}: must be >= 1")


@dataclass(kw_only=True, slots=True)
class PackedDocument:
    """ids: uint32 [tokens], without end-of-document token. files: which ones, as indices into the input."""

    ids: np.ndarray
    files: list[int]


@dataclass(kw_only=True, slots=True)
class PackedRepository:
    """documents: in order. oversized: indices of the files that alone are larger than the bound."""

    documents: list[PackedDocument] = field(default_factory=list)
    oversized: list[int] = field(default_factory=list)


def order_files(files: Sequence[RepositoryFile]) -> list[int]:
    """The order of files, as indices: the README of the root, then by path, but references first.

    Files are visited by path, and before a file come those that it refers to, and before those theirs. So neighbours
    in a folder stay near each other, and without cycles no file comes before one that it refers to. A reference that
    would close a cycle is passed over: of a cycle, the file that is visited first comes last. The result does not
    depend on the order of the input.
    """
    index = RepositoryIndex(files)
    by_path = sorted(range(len(files)), key=lambda number: (files[number].path, files[number].text))
    number_of = {files[number].path: number for number in reversed(by_path)}
    order: list[int] = []
    met: set[int] = set()

    def waiting(number: int) -> list[int]:
        # Taken from the end.
        return [number_of[path] for path in reversed(references(files[number], index))]

    for start in sorted(by_path, key=lambda number: not _is_readme(files[number].path)):
        if start in met:
            continue
        met.add(start)
        path = [(start, waiting(start))]
        while path:
            number, rest = path[-1]
            while rest and rest[-1] in met:
                rest.pop()
            if rest:
                following = rest.pop()
                met.add(following)
                path.append((following, waiting(following)))
            else:
                order.append(number)
                path.pop()
    return order


def _is_readme(path: str) -> bool:
    return "/" not in path and path.lower().split(".")[0] == "readme"


def pack_repository(
    name: str,
    files: Sequence[RepositoryFile],
    contents: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    config: RepositoryConfig,
) -> PackedRepository:
    """Put the encoded files of one repository together, in the order of `order_files`.

    contents: the ids of each file's text, uint32 [tokens], transformed by `Fim` or not. Raises DataError if the
    tokenizer lacks the sentinels.
    """
    repository_name, file_separator = tokenizer.sentinel_ids(REPOSITORY_TOKENS, "repository packing")
    head = np.array([repository_name, *tokenizer.encode(name)], dtype=np.uint32)
    packed = PackedRepository()
    parts, members, size = [head], [], head.size

    def finish() -> None:
        nonlocal parts, members, size
        if members:
            packed.documents.append(PackedDocument(ids=np.concatenate(parts), files=members))
        parts, members, size = [head], [], head.size

    for number in order_files(files):
        # Path and content are encoded apart: a file has the same ids here and alone.
        path = np.array([file_separator, *tokenizer.encode(f"{files[number].path}\n")], dtype=np.uint32)
        needed = path.size + contents[number].size
        if size + needed > config.max_tokens:
            finish()
        parts += [path, contents[number]]
        members.append(number)
        size += needed
        if size > config.max_tokens:
            packed.oversized.append(number)
            finish()
    finish()
    return packed

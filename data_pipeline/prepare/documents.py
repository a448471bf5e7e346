"""What is read and from where: the configuration of a source, and the texts that come out of it."""

import enum
from dataclasses import dataclass

from data_pipeline import languages
from data_pipeline.errors import DataError


@dataclass(frozen=True, slots=True)
class Part:
    """Part `number` of `parts` of a source: what one task reads. Together they are the source, each document once."""

    number: int
    parts: int

    def has(self, index: int) -> bool:
        """Whether the file or row with this index, from 0, belongs to the part."""
        return index % self.parts == self.number


WHOLE = Part(0, 1)


class SourceKind(enum.Enum):
    """What a source is made of."""

    folder = "folder"
    archive = "archive"
    git = "git"
    jsonl = "jsonl"
    parquet = "parquet"
    huggingface = "huggingface"
    environment_code = "environment_code"
    environment_text = "environment_text"


_NEEDS_PATH = (
    SourceKind.folder,
    SourceKind.archive,
    SourceKind.git,
    SourceKind.jsonl,
    SourceKind.parquet,
    SourceKind.huggingface,
)


class Packing(enum.Enum):
    """What becomes one document of the corpus."""

    file = "file"
    repository = "repository"  # the files of a repository, one after the other, for long sequences


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One source of a build.

    name: for the ledger, and the name of its text in the mixture. path: a folder; for archive, jsonl and parquet a file
    or a folder of them (.zip, .tar[.gz|.zst], .tgz, .jsonl[.gz|.zst], .parquet); for git a folder of checkouts and bare
    repositories; for huggingface `owner/name`, `owner/name:subset` or the folder of `save_to_disk`. text_field,
    language_field, name_field: columns of a row (name_field holds its file name; empty: none). split: of a Hugging Face
    dataset. language: of everything in the source (empty: by field, or by name and content; rows without either are
    plain text). packing: repository puts the files of a repository together: of git, of a folder with a folder for each
    repository, or of rows that follow each other and have the same repository_field. max_bytes: stop after so many
    bytes of text (None: read all).
    """

    name: str
    kind: SourceKind
    path: str = ""
    text_field: str = "text"
    split: str = "train"
    language: str = ""
    language_field: str = ""
    name_field: str = ""
    packing: Packing = Packing.file
    repository_field: str = ""
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        option = f"source {self.name!r}"
        if not self.name or languages.slug(self.name) != self.name:
            raise DataError(f"{option}: name must be lower-case letters and digits, joined by '-'")
        if self.kind in _NEEDS_PATH and not self.path:
            raise DataError(f"{option}: kind {self.kind.name} needs a path")
        if self.packing is Packing.repository:
            self._check_repositories(option)
        if self.language:
            self.language = languages.require_language(self.language, f"{option}: language")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise DataError(f"{option}: max_bytes={self.max_bytes}; must be >= 1, or null for no limit")

    def _check_repositories(self, option: str) -> None:
        if self.kind in (SourceKind.git, SourceKind.folder):
            return
        rows = self.kind in (SourceKind.jsonl, SourceKind.parquet, SourceKind.huggingface)
        if not rows or not self.repository_field or not self.name_field:
            raise DataError(
                f"{option}: packing=repository needs kind git or folder, or rows with repository_field and name_field"
            )


@dataclass(kw_only=True, slots=True)
class Document:
    """One text with where it is from. group: the source of the manifest that it goes to, unless that is too small.

    repository: whose files are packed together; empty for a document that stands alone.
    """

    text: str
    source: str
    name: str
    language: str
    kind: str
    group: str
    num_bytes: int
    repository: str = ""


@dataclass(kw_only=True, slots=True)
class RawText:
    """What a reader of rows or files yields: text, its name, its language (already known to the table) and bytes."""

    text: str
    name: str
    language: str
    num_bytes: int
    group: str = ""
    repository: str = ""

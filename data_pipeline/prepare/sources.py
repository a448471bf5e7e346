"""Where documents come from. A source of any kind becomes a sequence of `Document`s; what does not is counted.

The journey: `read_documents` picks the reader of `SourceConfig.kind`; readers yield text with the name of its file or
row, and tell the ledger (stage `skipped`, with a reason) about everything else: binary, not UTF-8, empty, too large,
unknown language. A language comes from `language`, else from the row's `language_field`, else from the name and, where
that leaves a choice, the content (identify.py). The order is fixed, and spread: files are ordered by a hash of their
names, so a source that is cut is a sample.
"""

from collections.abc import Iterator
from pathlib import Path

from data_pipeline import languages
from data_pipeline.errors import DataError
from data_pipeline.language_manifest import LanguageManifest
from data_pipeline.ledger import Ledger
from data_pipeline.prepare.documents import WHOLE, Document, Packing, Part, RawText, SourceConfig, SourceKind
from data_pipeline.prepare.files import FileEntry, Skip, encode_checked, list_files, once, read_text, spread_key
from data_pipeline.prepare.identify import identify

UNKNOWN_LANGUAGE = "unknown language"
PLAIN_TEXT = "Text"


def sides(config: SourceConfig) -> set[str]:
    """The sides (text, code) that a source can add to, as far as its configuration says."""
    if config.packing is Packing.repository:
        return {"code"}
    if config.language:
        return {languages.side_of(config.language)}
    known = {SourceKind.environment_code: {"code"}, SourceKind.environment_text: {"text"}}
    return known.get(config.kind, {"text", "code"})


def read_documents(
    config: SourceConfig,
    ledger: Ledger,
    max_document_bytes: int,
    part: Part = WHOLE,
    manifest: LanguageManifest | None = None,
) -> Iterator[Document]:
    """The documents of one part of a source, in a fixed order; adds stages `read` and `skipped` to the ledger.

    `max_bytes` of the source is divided among the parts. `manifest` may count a language as another one. Raises
    DataError for a path that does not exist, a damaged file or a missing column. That nothing comes out is an error of
    the whole source, not of a part: `nothing_kept`.
    """

    def skip(reason: str, num_bytes: int) -> None:
        ledger.add("skipped", source=config.name, reason=reason, num_bytes=num_bytes)

    taken = 0
    for raw in _raw_texts(config, max_document_bytes, skip, part):
        taken += raw.num_bytes
        ledger.add("read", source=config.name, language=raw.language, num_bytes=raw.num_bytes)
        yield _document(config, raw, manifest)
        if config.max_bytes is not None and taken * part.parts >= config.max_bytes:
            ledger.note(f"{config.name}: stopped at max_bytes={config.max_bytes:,}; the rest was not read")
            return


def _document(config: SourceConfig, raw: RawText, manifest: LanguageManifest | None) -> Document:
    kind = languages.side_of(raw.language)
    if config.packing is Packing.repository:
        kind, group = "code", config.name
    elif kind == "code":
        counted_as = None if manifest is None else manifest.source_of(raw.language)
        group = counted_as or languages.slug(raw.language)
    else:
        group = raw.group or config.name
    return Document(
        text=raw.text, source=config.name, name=raw.name, num_bytes=raw.num_bytes,
        language=raw.language, kind=kind, group=group, repository=raw.repository,
    )  # fmt: skip


def nothing_kept(config: SourceConfig, ledger: Ledger) -> DataError:
    """The error for a source of which no document is left; the ledger has what all its parts skipped and dropped."""
    reasons = ledger.reasons("skipped", config.name) | ledger.reasons("filtered", config.name)
    why = ", ".join(f"{row.documents} {reason}" for reason, row in list(reasons.items())[:4]) or "nothing there"
    where = f" ({config.path})" if config.path else ""
    return DataError(
        f"source {config.name!r}{where}: no documents ({why}); correct its path, relax the filters, or remove it"
    )


def _raw_texts(config: SourceConfig, limit: int, skip: Skip, part: Part) -> Iterator[RawText]:
    # Readers of formats that need large libraries are imported by the builds that use them.
    match config.kind:
        case SourceKind.folder:
            return _folder(config, limit, skip, part)
        case SourceKind.git:
            return _git(config, limit, skip, part)
        case SourceKind.archive:
            from data_pipeline.prepare import archives

            return _identified(config, skip, archives.read(config, limit, skip, part))
        case SourceKind.environment_code:
            from data_pipeline.prepare import environment

            return environment.code(limit, skip, part)
        case SourceKind.environment_text:
            from data_pipeline.prepare import environment

            return environment.text(limit, skip, part)
        case _:
            from data_pipeline.prepare import rows

            return _rows(config, limit, skip, rows.read(config, limit, skip, part))


def _folder(config: SourceConfig, limit: int, skip: Skip, part: Part) -> Iterator[RawText]:
    root = Path(config.path)
    if not root.is_dir():
        raise DataError(f"source {config.name!r}: folder {config.path} does not exist; correct its path")
    for entry in _files_of(config, list_files(root, once(skip, part)), part):
        # A file with an extension that nobody claims is data of some kind: it is not read.
        if not config.language and languages.has_extension(entry.name) and not languages.claim_of(entry.name).languages:
            skip(UNKNOWN_LANGUAGE, entry.size)
            continue
        text = read_text(entry, limit, skip)
        if text is not None:
            yield from _identified(config, skip, [(entry.name, text)], _repository_of(config, entry.name))


def _files_of(config: SourceConfig, entries: Iterator[FileEntry], part: Part) -> Iterator[FileEntry]:
    """The files of a part, spread over the folders; those of one repository in one part, one after the other."""
    units: dict[str, list[FileEntry]] = {}
    for entry in entries:
        units.setdefault(_repository_of(config, entry.name) or entry.name, []).append(entry)
    ordered = sorted(units, key=lambda name: (spread_key(name), name))
    for index, name in enumerate(ordered):
        if part.has(index):
            yield from sorted(units[name], key=lambda entry: entry.name)


def _repository_of(config: SourceConfig, name: str) -> str:
    """The first folder of a file, where folders are repositories."""
    return name.split("/")[0] if config.packing is Packing.repository else ""


def _git(config: SourceConfig, limit: int, skip: Skip, part: Part) -> Iterator[RawText]:
    from data_pipeline.prepare.git_repositories import list_repositories, read_repository, repository_name

    root = Path(config.path)
    named = {repository_name(root, path): path for path in list_repositories(root)}
    if not named:
        raise DataError(f"source {config.name!r}: no git repository in {config.path}; correct its path")
    ordered = sorted(named, key=lambda name: (spread_key(name), name))
    for index, name in enumerate(ordered):
        if part.has(index):
            texts = ((f"{name}/{path}", text) for path, text in read_repository(named[name], limit, skip))
            yield from _identified(config, skip, texts, name if config.packing is Packing.repository else "")


def _identified(
    config: SourceConfig, skip: Skip, texts: Iterator[tuple[str, str]] | list[tuple[str, str]], repository: str = ""
) -> Iterator[RawText]:
    """(name, text) whose language the source, the name or the content tells."""
    for name, text in texts:
        num_bytes = len(text.encode())
        language = config.language or identify(name, text).language
        if language is None:
            skip(UNKNOWN_LANGUAGE, num_bytes)
        else:
            yield RawText(text=text, name=name, language=language, num_bytes=num_bytes, repository=repository)


def _rows(config: SourceConfig, limit: int, skip: Skip, rows: Iterator) -> Iterator[RawText]:
    for name, row in rows:
        text = row.get(config.text_field)
        if not isinstance(text, str):
            skip(f"no text in field {config.text_field!r}", 0)
            continue
        content = encode_checked(text, limit, skip)
        if content is None:
            continue
        file_name = row.get(config.name_field) if config.name_field else None
        language = config.language or _row_language(config, row, file_name, text)
        if language is None:
            skip(UNKNOWN_LANGUAGE, len(content))
            continue
        repository = str(row.get(config.repository_field)) if config.packing is Packing.repository else ""
        own_name = f"{repository}/{file_name}" if repository else str(file_name or name)
        yield RawText(text=text, name=own_name, language=language, num_bytes=len(content), repository=repository)


def _row_language(config: SourceConfig, row: dict, file_name: object, text: str) -> str | None:
    if config.language_field:
        return languages.find_language(str(row.get(config.language_field)))
    if config.name_field:
        return identify(file_name, text).language if isinstance(file_name, str) else None
    return PLAIN_TEXT

"""Where documents come from. A source of any kind becomes a sequence of `Document`s; what does not is counted.

The journey: `read_documents` picks the reader of `SourceConfig.kind`; readers yield text with the name of its file or
row, and tell the ledger (stage `skipped`, with a reason) about everything else: binary, not UTF-8, empty, too large,
unknown language. A language comes from `language`, else from the row's `language_field`, else from the file name. The
order is fixed, and spread: files are ordered by a hash of their names, so a source that is cut is a sample.
"""

from collections.abc import Iterator
from pathlib import Path

from data_pipeline import languages
from data_pipeline.errors import DataError
from data_pipeline.ledger import Ledger
from data_pipeline.prepare.documents import WHOLE, Document, Part, RawText, SourceConfig, SourceKind
from data_pipeline.prepare.files import Skip, encode_checked, list_files, once, part_of_files, read_text

UNKNOWN_LANGUAGE = "unknown language"
PLAIN_TEXT = "Text"


def sides(config: SourceConfig) -> set[str]:
    """The sides (text, code) that a source can add to, as far as its configuration says."""
    if config.language:
        return {languages.side_of(config.language)}
    known = {SourceKind.environment_code: {"code"}, SourceKind.environment_text: {"text"}}
    return known.get(config.kind, {"text", "code"})


def read_documents(
    config: SourceConfig, ledger: Ledger, max_document_bytes: int, part: Part = WHOLE
) -> Iterator[Document]:
    """The documents of one part of a source, in a fixed order; adds stages `read` and `skipped` to the ledger.

    `max_bytes` of the source is divided among the parts. Raises DataError for a path that does not exist, a damaged
    file or a missing column. That nothing comes out is an error of the whole source, not of a part: `nothing_kept`.
    """

    def skip(reason: str, num_bytes: int) -> None:
        ledger.add("skipped", source=config.name, reason=reason, num_bytes=num_bytes)

    taken = 0
    for raw in _raw_texts(config, max_document_bytes, skip, part):
        kind = languages.side_of(raw.language)
        group = raw.group or (languages.slug(raw.language) if kind == "code" else config.name)
        taken += raw.num_bytes
        ledger.add("read", source=config.name, language=raw.language, num_bytes=raw.num_bytes)
        yield Document(
            text=raw.text, source=config.name, name=raw.name, num_bytes=raw.num_bytes,
            language=raw.language, kind=kind, group=group, repository=raw.repository,
        )  # fmt: skip
        if config.max_bytes is not None and taken * part.parts >= config.max_bytes:
            ledger.note(f"{config.name}: stopped at max_bytes={config.max_bytes:,}; the rest was not read")
            return


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
        case SourceKind.archive:
            from data_pipeline.prepare import archives

            return _named(config, skip, archives.read(config, limit, skip, part))
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
    for entry in part_of_files(list_files(root, once(skip, part)), part):
        language = config.language or languages.language_of(entry.name)
        # Only a file without an extension can be told by its first line: do not read the others in vain.
        if language is None and "." in entry.path.name.lstrip("."):
            skip(UNKNOWN_LANGUAGE, entry.size)
            continue
        text = read_text(entry, limit, skip)
        if text is None:
            continue
        num_bytes = len(text.encode())
        language = language or languages.language_of(entry.name, text[:256].encode())
        if language is None:
            skip(UNKNOWN_LANGUAGE, num_bytes)
            continue
        yield RawText(text=text, name=entry.name, language=language, num_bytes=num_bytes)


def _named(config: SourceConfig, skip: Skip, texts: Iterator[tuple[str, str]]) -> Iterator[RawText]:
    """Texts whose language the name tells, or their content."""
    for name, text in texts:
        num_bytes = len(text.encode())
        language = config.language or languages.language_of(name, text[:256].encode())
        if language is None:
            skip(UNKNOWN_LANGUAGE, num_bytes)
        else:
            yield RawText(text=text, name=name, language=language, num_bytes=num_bytes)


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
        language = config.language or _row_language(config, row, file_name)
        if language is None:
            skip(UNKNOWN_LANGUAGE, len(content))
            continue
        yield RawText(text=text, name=str(file_name or name), language=language, num_bytes=len(content))


def _row_language(config: SourceConfig, row: dict, file_name: object) -> str | None:
    if config.language_field:
        return languages.find_language(str(row.get(config.language_field)))
    if config.name_field:
        return languages.language_of(file_name) if isinstance(file_name, str) else None
    return PLAIN_TEXT

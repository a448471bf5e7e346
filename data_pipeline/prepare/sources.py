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
from data_pipeline.prepare.documents import Document, RawText, SourceConfig, SourceKind
from data_pipeline.prepare.files import Skip, encode_checked, list_files, read_text, spread_key

UNKNOWN_LANGUAGE = "unknown language"
PLAIN_TEXT = "Text"


def sides(config: SourceConfig) -> set[str]:
    """The sides (text, code) that a source can add to, as far as its configuration says."""
    if config.language:
        return {languages.side_of(config.language)}
    known = {SourceKind.environment_code: {"code"}, SourceKind.environment_text: {"text"}}
    return known.get(config.kind, {"text", "code"})


def read_documents(config: SourceConfig, ledger: Ledger, max_document_bytes: int) -> Iterator[Document]:
    """The documents of one source, in a fixed order; adds stage `read` and `skipped` to the ledger.

    Raises DataError for a path that does not exist, a damaged file, a missing column, or if nothing comes out.
    """

    def skip(reason: str, num_bytes: int) -> None:
        ledger.add("skipped", source=config.name, reason=reason, num_bytes=num_bytes)

    taken = documents = 0
    for raw in _raw_texts(config, max_document_bytes, skip):
        kind = languages.side_of(raw.language)
        group = raw.group or (languages.slug(raw.language) if kind == "code" else config.name)
        documents += 1
        taken += raw.num_bytes
        ledger.add("read", source=config.name, language=raw.language, num_bytes=raw.num_bytes)
        yield Document(
            text=raw.text, source=config.name, name=raw.name, num_bytes=raw.num_bytes,
            language=raw.language, kind=kind, group=group,
        )  # fmt: skip
        if config.max_bytes is not None and taken >= config.max_bytes:
            ledger.note(f"{config.name}: stopped at max_bytes={config.max_bytes:,}; the rest was not read")
            return
    if not documents:
        raise _nothing(config, ledger)


def _nothing(config: SourceConfig, ledger: Ledger) -> DataError:
    reasons = ledger.reasons("skipped", config.name)
    why = ", ".join(f"{row.documents} {reason}" for reason, row in list(reasons.items())[:4]) or "nothing there"
    where = f" ({config.path})" if config.path else ""
    return DataError(f"source {config.name!r}{where}: no documents ({why}); correct the path or remove the source")


def _raw_texts(config: SourceConfig, limit: int, skip: Skip) -> Iterator[RawText]:
    # Readers of formats that need large libraries are imported by the builds that use them.
    match config.kind:
        case SourceKind.folder:
            return _folder(config, limit, skip)
        case SourceKind.environment_code:
            from data_pipeline.prepare import environment

            return environment.code(limit, skip)
        case SourceKind.environment_text:
            from data_pipeline.prepare import environment

            return environment.text(limit, skip)
        case _:
            from data_pipeline.prepare import rows

            return _rows(config, limit, skip, rows.read(config, limit, skip))


def _folder(config: SourceConfig, limit: int, skip: Skip) -> Iterator[RawText]:
    root = Path(config.path)
    if not root.is_dir():
        raise DataError(f"source {config.name!r}: folder {config.path} does not exist; correct its path")
    entries = sorted(list_files(root, skip), key=lambda entry: (spread_key(entry.name), entry.name))
    for entry in entries:
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

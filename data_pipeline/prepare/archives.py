"""Source files inside zip and tar archives, read where they are: nothing is ever unpacked to disk.

A member is a file with a name and bytes. Names that would leave the archive (absolute, with `..`, a drive or a
backslash), links and devices are passed over and counted; a member that holds more than it says, or more than a
document may, is never read further than that. Archives inside archives are not opened.
"""

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from data_pipeline.errors import DataError
from data_pipeline.prepare.documents import Part, SourceConfig
from data_pipeline.prepare.files import LINK, TOO_LARGE, Skip, decode
from data_pipeline.prepare.rows import dealt_files, open_decompressed

UNSAFE_NAME, NOT_A_FILE, ENCRYPTED = "unsafe name in an archive", "device or pipe in an archive", "encrypted"
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst")
_ZIP_ENCRYPTED = 0x1


@dataclass(slots=True)
class _Member:
    """A file of an archive, or the reason why it is none that can be read. size: bytes, as the archive says."""

    name: str
    size: int
    objection: str | None
    open: Callable[[], IO[bytes]]


def read(config: SourceConfig, limit: int, skip: Skip, part: Part) -> Iterator[tuple[str, str]]:
    """(`archive/member`, text) of a part of the archives of a source, each at most `limit` bytes.

    Raises DataError for a damaged archive: nobody can say what it lost.
    """
    import zstandard

    archives, members = dealt_files(config, ENDINGS, part)
    for name, path in archives:
        try:
            for index, member in enumerate(_zip(path) if path.suffix == ".zip" else _tar(path)):
                text = _text(member, limit, skip) if members.has(index) else None
                if text is not None:
                    yield f"{name}/{member.name}", text
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, zstandard.ZstdError, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: damaged archive ({reason}); restore it or remove it") from error


def _text(member: _Member, limit: int, skip: Skip) -> str | None:
    objection = member.objection or (UNSAFE_NAME if _is_unsafe(member.name) else None)
    if objection is None and member.size > limit:
        objection = TOO_LARGE
    if objection is not None:
        skip(objection, member.size)
        return None
    with member.open() as file:
        content = file.read(limit + 1)  # the archive may lie about the size
    return decode(content, limit, skip)


def _is_unsafe(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or any(sign in name for sign in "\\:\0\n")


def _zip(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            objection = ENCRYPTED if info.flag_bits & _ZIP_ENCRYPTED else None
            if (info.external_attr >> 16) & 0o170000 == 0o120000:
                objection = LINK
            yield _Member(info.filename, info.file_size, objection, lambda info=info: archive.open(info))


def _tar(path: Path) -> Iterator[_Member]:
    # Read as a stream: a member is read when it comes by, and the decompressor never goes back.
    with open_decompressed(path) as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for info in archive:
            if info.isdir():
                continue
            objection = None
            if not info.isfile():
                objection = LINK if info.issym() or info.islnk() else NOT_A_FILE
            yield _Member(info.name, info.size, objection, lambda info=info: archive.extractfile(info))  # type: ignore[arg-type,return-value]

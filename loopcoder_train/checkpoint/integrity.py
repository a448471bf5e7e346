"""The chain of trust of a checkpoint folder: COMMIT -> manifest.json -> every other file.

COMMIT holds the SHA-256 of manifest.json; the manifest holds the size and SHA-256 of every other file. Nothing is read
before its place in the chain was checked: JSON files are hashed each time they are read, tensor files by a full
verification (they are large). Files are opened without following links, and never larger than declared.
"""

import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from loopcoder_train.checkpoint.errors import CheckpointError
from loopcoder_train.checkpoint.layout import COMMIT, FORMAT_VERSION, MANIFEST, is_plain_file_name
from loopcoder_train.runtime.heartbeat import beat

MAX_JSON_BYTES = 256 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_OTHER_CHECKPOINT = "use another checkpoint, or restore the folder from a copy"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and hash of one file of a checkpoint."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a checkpoint by name, and the step (optimizer steps done) that it holds."""

    step: int
    files: dict[str, FileRecord]


def damaged(path: Path, what: str) -> CheckpointError:
    """The error for a file or folder of a checkpoint that cannot be trusted.

    `what` may quote the file: whatever would not print as one line is masked, and its length is limited.
    """
    printable = "".join(letter if letter.isprintable() else "?" for letter in what[:500])
    return CheckpointError(f"{path}: {printable}; {_OTHER_CHECKPOINT}")


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of manifest.json."""
    files = [asdict(record) for record in manifest.files.values()]
    return json.dumps({"format_version": FORMAT_VERSION, "step": manifest.step, "files": files}, indent=1).encode()


def commit_bytes(manifest_sha256: str) -> bytes:
    """The content of COMMIT."""
    return manifest_sha256.encode() + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """Check COMMIT and manifest.json of `folder` and return the manifest.

    Raises CheckpointError where the folder is a link, COMMIT is missing or does not match, or an entry is not a plain
    file name with a size and a hash.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise damaged(folder, "is not a folder")
    if not (folder / COMMIT).exists():
        raise damaged(folder, "has no COMMIT: the save was interrupted")
    commit = _read_limited(folder / COMMIT, 200)
    content = _read_limited(folder / MANIFEST, MAX_JSON_BYTES)
    if commit != commit_bytes(hashlib.sha256(content).hexdigest()):
        raise damaged(folder / MANIFEST, "does not have the SHA-256 that COMMIT holds")
    fields = parse_object(folder / MANIFEST, content, {"format_version": int, "step": int, "files": list})
    if fields["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / MANIFEST}: format_version={fields['format_version']}, this program reads {FORMAT_VERSION}; "
            "read it with the program that wrote it"
        )
    records = [_file_record(folder / MANIFEST, entry) for entry in fields["files"]]
    if len({record.name for record in records}) != len(records):
        raise damaged(folder / MANIFEST, "names a file twice")
    return Manifest(fields["step"], {record.name: record for record in records})


def _file_record(path: Path, entry: Any) -> FileRecord:
    fields = check_fields(path, entry, {"name": str, "size_bytes": int, "sha256": str})
    record = FileRecord(**fields)
    if not is_plain_file_name(record.name) or record.name in (COMMIT, MANIFEST):
        raise damaged(path, f"file {record.name!r} is not a plain name inside the folder")
    if record.size_bytes < 0 or _SHA256.fullmatch(record.sha256) is None:
        raise damaged(path, f"size or hash of {record.name!r} is malformed")
    return record


def check_presence(folder: Path, manifest: Manifest) -> None:
    """Check that every file is there with its declared size, and that nothing in the folder is a link."""
    try:
        entries = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
    except OSError as error:
        raise damaged(folder, f"cannot be listed ({error.strerror})") from None
    for name, status in entries.items():
        if stat.S_ISLNK(status.st_mode):
            raise damaged(folder / name, "is a link, which a checkpoint never holds")
    for record in manifest.files.values():
        status = entries.get(record.name)
        if status is None:
            raise damaged(folder / record.name, "is missing")
        if not stat.S_ISREG(status.st_mode) or status.st_size != record.size_bytes:
            raise damaged(folder / record.name, f"has {status.st_size} bytes, not {record.size_bytes}")


def check_hash(folder: Path, record: FileRecord) -> None:
    """Read the whole file and compare its SHA-256; raises CheckpointError. Costs about 0.5 s per GB and core."""
    path = folder / record.name
    beat()
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from None
    if found != record.sha256:
        raise damaged(path, "does not have the SHA-256 of the manifest")


def read_json(folder: Path, record: FileRecord, fields: dict[str, type]) -> dict[str, Any]:
    """The JSON object of a file of the manifest, after its hash: exactly `fields`, each of its type."""
    path = folder / record.name
    content = _read_limited(path, min(record.size_bytes, MAX_JSON_BYTES))
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise damaged(path, "does not have the SHA-256 of the manifest")
    return parse_object(path, content, fields)


def parse_object(path: Path, content: bytes, fields: dict[str, type]) -> dict[str, Any]:
    """Parse `content` as a JSON object of exactly `fields`."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not valid JSON ({type(error).__name__})") from None
    return check_fields(path, value, fields)


def check_fields(path: Path, value: Any, fields: dict[str, type]) -> dict[str, Any]:
    """`value` if it is a dict of exactly `fields`, each of exactly its type (a bool is not an int)."""
    if type(value) is not dict or value.keys() != fields.keys():
        raise damaged(path, f"holds an entry without exactly the fields {', '.join(fields)}")
    for name, wanted in fields.items():
        if type(value[name]) is not wanted:
            raise damaged(path, f"{name} is not of type {wanted.__name__}")
    return value


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; OSError for links, pipes, devices (and as usual)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(0, "not a regular file", str(path))
    return file


def _read_limited(path: Path, limit_bytes: int) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, limit_bytes) + 1)
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from None
    if len(content) > limit_bytes:
        raise damaged(path, f"is larger than {limit_bytes} bytes")
    return content

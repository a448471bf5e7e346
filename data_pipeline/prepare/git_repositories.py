"""Git repositories on disk -> the files of their last commit, read without trusting them.

The journey of a folder: checkouts (`.git`) and bare repositories are found, no link is followed and none is entered
-> `git ls-tree` lists the files of HEAD -> `git cat-file --batch` gives their bytes, by object id, so that no path
ever reaches a command line or the disk -> `files.decode` says what is text.

Only what is committed is read, from the object database: no checkout, hence no filters and no hooks. Configuration of
the repository cannot make git run or fetch anything: transports are off, lazy fetching is off, objects that lie in
another repository (alternates) are refused. What is passed over is counted.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.prepare.files import LINK, TOO_LARGE, UNREADABLE, Skip, decode

SUBMODULE, LFS_POINTER = "git submodule", "Git LFS pointer"
BAD_PATH = "path that is not UTF-8, has control characters, or leads out of the repository"
NO_COMMIT, NOT_OWN = "repository without a commit that git can read", "repository whose objects lie elsewhere"
DAMAGED = "repository that git cannot read"
_LFS = b"version https://git-lfs.github.com/spec/v1\n"
_LFS_MAX_BYTES = 1024
_CONTROL = re.compile("[\0-\x1f\x7f]")
_LINK_MODE, _SUBMODULE_MODE = b"120000", b"160000"
# Nothing of the user's environment or configuration, and nothing that a repository's own could switch on.
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_ATTR_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_ALLOW_PROTOCOL": "none",
    "GIT_PROTOCOL_FROM_USER": "0", "LC_ALL": "C", "HOME": os.devnull,
}  # fmt: skip
_OPTIONS = (
    *("-c", f"core.hooksPath={os.devnull}"), *("-c", "core.fsmonitor=false"), *("-c", "protocol.allow=never"),
    *("-c", "safe.directory=*"), *("-c", "core.pager=cat"), *("-c", "extensions.worktreeConfig=false"),
)  # fmt: skip


@dataclass(kw_only=True, slots=True)
class _Entry:
    path: str
    object_id: bytes
    size: int


def list_repositories(root: Path) -> list[Path]:
    """Checkouts and bare repositories at or below `root`, by path. None is looked for inside another one."""
    if not root.is_dir():
        raise DataError(f"{root}: folder does not exist; correct the path of the source")
    found = []
    folders = [root]
    while folders:
        folder = folders.pop()
        if _git_dir(folder) is not None:
            found.append(folder)
            continue
        with os.scandir(folder) as entries:
            folders += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(found)


def repository_name(root: Path, path: Path) -> str:
    """The name of a repository: its path below `root` (the folder's own name if it is `root`), without `.git`."""
    name = path.relative_to(root).as_posix() if path != root else path.name
    return name.removesuffix(".git")


def _git_dir(folder: Path) -> Path | None:
    """The database of a repository. A `.git` that is a file or a link points elsewhere and is none."""
    for candidate in (folder / ".git", folder):
        inside = [candidate / name for name in ("objects", "refs", "HEAD")]
        if candidate.is_symlink() or any(path.is_symlink() for path in inside):
            continue
        if inside[0].is_dir() and inside[1].is_dir() and inside[2].is_file():
            return candidate
    return None


def read_repository(path: Path, max_document_bytes: int, skip: Skip) -> Iterator[tuple[str, str]]:
    """(path, text) of the text files of HEAD, by path; `skip` is told about everything else.

    A repository that cannot be read is skipped with its reason. Raises DataError if git is not installed.
    """
    git_dir = _git_dir(path)
    if git_dir is None:
        skip(DAMAGED, 0)
        return
    if any((git_dir / "objects" / "info" / name).exists() for name in ("alternates", "http-alternates")):
        skip(NOT_OWN, 0)
        return
    if _run(git_dir, "rev-parse", "--verify", "--quiet", "HEAD^{commit}") is None:
        skip(NO_COMMIT, 0)
        return
    listing = _run(git_dir, "ls-tree", "-r", "-z", "--long", "--full-tree", "HEAD")
    if listing is None:
        skip(DAMAGED, 0)
        return
    entries = sorted(_entries(listing, max_document_bytes, skip), key=lambda entry: entry.path)
    with closing(_ObjectReader(git_dir)) as reader:
        for entry in entries:
            content = reader.read(entry.object_id)
            if content is None:
                skip(UNREADABLE, entry.size)
            elif len(content) <= _LFS_MAX_BYTES and content.startswith(_LFS):
                skip(LFS_POINTER, len(content))
            else:
                text = decode(content, max_document_bytes, skip)
                if text is not None:
                    yield entry.path, text


def _entries(listing: bytes, max_document_bytes: int, skip: Skip) -> Iterator[_Entry]:
    """Lines `<mode> <type> <object> <size>\\t<path>` of ls-tree, ended by NUL -> files that are worth reading."""
    for line in listing.split(b"\0")[:-1]:
        described, _, name = line.partition(b"\t")
        mode, _, object_id, size = described.split()
        path = _safe_path(name)
        if mode == _LINK_MODE:
            skip(LINK, 0)
        elif mode == _SUBMODULE_MODE:
            skip(SUBMODULE, 0)
        elif not size.isdigit():  # `BAD`: the object is missing or damaged
            skip(UNREADABLE, 0)
        elif path is None:
            skip(BAD_PATH, int(size))
        elif int(size) > max_document_bytes:
            skip(TOO_LARGE, int(size))
        else:
            yield _Entry(path=path, object_id=object_id, size=int(size))


def _safe_path(name: bytes) -> str | None:
    """A path of one line that stays below its root, decoded; None for others."""
    try:
        path = name.decode("utf-8")
    except UnicodeDecodeError:
        return None
    parts = path.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts) or _CONTROL.search(path):
        return None
    return path


def _command(git_dir: Path, *arguments: str) -> list[str]:
    return ["git", "--no-pager", *_OPTIONS, f"--git-dir={git_dir.absolute()}", *arguments]


def _environment() -> dict[str, str]:
    return {**_ENVIRONMENT, "PATH": os.environ.get("PATH", os.defpath)}


def _run(git_dir: Path, *arguments: str) -> bytes | None:
    """What a git command prints, or None if it fails."""
    try:
        done = subprocess.run(
            _command(git_dir, *arguments), env=_environment(), cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
            check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise DataError("git: not found, and a source of git repositories needs it; install git") from error
    return done.stdout if done.returncode == 0 else None


class _ObjectReader:
    """Object ids -> bytes, through one `git cat-file --batch` for all of them; another if git gives up."""

    def __init__(self, git_dir: Path) -> None:
        self._command = _command(git_dir, "cat-file", "--batch")
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, object_id: bytes) -> bytes | None:
        """The content of a blob, None if it is missing or damaged."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, env=_environment(), cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        answers = self._process.stdout
        try:
            os.write(self._process.stdin.fileno(), object_id + b"\n")
        except BrokenPipeError:
            self.close()
            return None
        # `<object> blob <size>\n<content>\n`, or `<object> missing\n`. It ends at an object that it cannot read.
        header = answers.readline().split()
        if len(header) == 3 and header[1] == b"blob":
            size = int(header[2])
            content = answers.read(size + 1)
            if len(content) == size + 1:
                return content[:-1]
        if header[1:] != [b"missing"]:
            self.close()
        return None

    def close(self) -> None:
        """End the process, whether or not it has more to say."""
        if self._process is not None:
            self._process.stdout.close()
            self._process.stdin.close()
            self._process.wait()
            self._process = None

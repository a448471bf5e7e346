"""Reading committed files of real repositories, honest and hostile, with the git that is installed."""

import os
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.prepare import git_repositories as repositories
from data_pipeline.prepare.files import BINARY, EMPTY, LINK, NOT_UTF8, TOO_LARGE, UNREADABLE
from data_pipeline.prepare.git_repositories import list_repositories, read_repository, repository_name

IDENTITY = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"],
}  # fmt: skip


def git(folder: Path, *arguments: str, content: bytes = b"") -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, env=IDENTITY, input=content, capture_output=True, check=True)
    return done.stdout.decode().strip()


def make(folder: Path, files: dict[str, bytes]) -> Path:
    """A checkout with one commit."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    return folder


def read(path: Path, limit: int = 10_000) -> tuple[dict[str, str], Counter]:
    skipped: Counter = Counter()
    found = list(read_repository(path, limit, lambda reason, _: skipped.update([reason])))
    assert len({name for name, _ in found}) == len(found)
    return dict(found), skipped


FILES = {
    "README.md": b"# x\n",
    "src/a.py": b"import b\r\n",
    "src/\xc3\xa4 b.py".encode("latin-1").decode(): "é漢\n".encode(),
}


@pytest.fixture
def checkout(tmp_path) -> Path:
    return make(tmp_path / "all" / "me" / "thing", FILES)


def test_committed_files_of_checkouts_and_bare_repositories(checkout, tmp_path):
    (checkout / "src/a.py").write_text("changed, not committed")
    (checkout / "new.py").write_text("not committed")
    bare = tmp_path / "all" / "you" / "other.git"
    git(tmp_path, "clone", "-q", "--bare", "--no-hardlinks", str(checkout), str(bare))
    (tmp_path / "all" / "empty").mkdir()
    (tmp_path / "all" / "link").symlink_to(checkout)
    root = tmp_path / "all"
    assert list_repositories(root) == [checkout, bare]
    assert [repository_name(root, path) for path in (checkout, bare)] == ["me/thing", "you/other"]
    assert list_repositories(checkout) == [checkout] and repository_name(checkout, checkout) == "thing"
    expected = {name: content.decode() for name, content in FILES.items()}
    for path in (checkout, bare):
        texts, skipped = read(path)
        assert texts == expected and not skipped
        assert list(texts) == sorted(texts)
    git(bare, "gc", "-q")  # packed objects read like loose ones
    assert read(bare)[0] == expected


def test_what_is_skipped_is_counted(tmp_path):
    path = make(
        tmp_path / "r",
        {
            "binary": b"a\0b", "latin.txt": b"\xe9", "empty": b" \n", "large": b"x" * 101, "fits": b"x" * 100,
            "model.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        },
    )  # fmt: skip
    (path / "link").symlink_to("/etc/passwd")
    git(path, "add", "link")
    git(path, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module")
    git(path, "commit", "-q", "-m", "two")
    texts, skipped = read(path, limit=100)
    assert list(texts) == ["fits"]
    assert skipped == Counter(
        [BINARY, NOT_UTF8, EMPTY, TOO_LARGE, LINK, repositories.LFS_POINTER, repositories.SUBMODULE]
    )


def test_a_file_that_is_too_large_is_not_even_read(tmp_path):
    path = make(tmp_path / "r", {"large": os.urandom(100_000)})
    blob = git(path, "rev-parse", "HEAD:large")
    loose = path / ".git" / "objects" / blob[:2] / blob[2:]
    loose.chmod(0o644)
    loose.write_bytes(loose.read_bytes()[:50_000])
    assert read(path, limit=99_999) == ({}, Counter([TOO_LARGE]))
    assert read(path, limit=100_000) == ({}, Counter([UNREADABLE]))


def hostile_tree(folder: Path, names: list[bytes]) -> Path:
    """A repository whose HEAD has these entries, all of one blob; written as raw objects, like an attacker would."""
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    blob = git(folder, "hash-object", "-w", "--stdin", content=b"text\n")
    raw = b"".join(b"100644 " + name + b"\0" + bytes.fromhex(blob) for name in names)
    tree = git(folder, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", content=raw)
    commit = git(folder, "commit-tree", tree, "-m", "x")
    git(folder, "update-ref", "refs/heads/main", commit)
    return folder


def test_hostile_names(tmp_path):
    bad = [
        b"..",
        b".",
        b".git",
        b".GIT",
        b"/etc/passwd",
        b"../../x",
        b"a//b",
        b"new\nline",
        b"tab\there",
        b"\xff.py",
        b"d\x7f",
    ]
    good = [b"a b", b"-rf", b"--help", b"\xc3\xa4", b"HEAD:x", b"a\\b", b"*"]
    texts, skipped = read(hostile_tree(tmp_path / "r", sorted(bad + good)))
    assert list(texts) == sorted(name.decode() for name in good)
    assert set(texts.values()) == {"text\n"}
    assert skipped == Counter({repositories.BAD_PATH: len(bad)})


def test_a_repository_cannot_make_git_run_anything(checkout, tmp_path):
    """Hooks, monitors, filters, a pager, and a promisor remote that is a shell command, for a blob that is missing."""
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(trap.stat().st_mode | stat.S_IXUSR)
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        (checkout / ".git" / "hooks" / hook).symlink_to(trap)
    (checkout / ".gitattributes").write_text("* filter=trap diff=trap\n")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "--no-verify", "-m", "two")
    (tmp_path / "sprung").unlink(missing_ok=True)
    for key, value in {
        "core.fsmonitor": trap, "core.pager": trap, "pager.ls-tree": trap, "core.sshCommand": trap,
        "filter.trap.smudge": trap, "filter.trap.process": trap, "diff.trap.textconv": trap, "core.editor": trap,
        "remote.origin.url": f"ext::sh -c {trap}", "remote.origin.promisor": "true", "protocol.ext.allow": "always",
        "core.repositoryformatversion": "1", "extensions.partialClone": "origin", "alias.ls-tree": f"!{trap}",
    }.items():  # fmt: skip
        git(checkout, "config", key, str(value))
    assert read(checkout)[0].keys() == {*FILES, ".gitattributes"}
    blob = git(checkout, "rev-parse", "HEAD:src/a.py")
    (checkout / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    assert read(checkout)[1] == Counter([UNREADABLE])
    assert not (tmp_path / "sprung").exists()
    # The trap is live: git itself falls into it.
    subprocess.run(
        ["git", "cat-file", "-p", blob], cwd=checkout, env={**IDENTITY, "GIT_PROTOCOL_FROM_USER": "1"}, check=False
    )
    assert (tmp_path / "sprung").exists()


def test_objects_of_another_repository_are_not_read(checkout, tmp_path):
    borrowed = tmp_path / "borrowed"
    git(tmp_path, "clone", "-q", "--shared", str(checkout), str(borrowed))
    assert read(borrowed) == ({}, Counter([repositories.NOT_OWN]))
    # A worktree's `.git` is a file, a stolen one a link: neither is a repository.
    git(checkout, "worktree", "add", "-q", str(tmp_path / "tree"), "-b", "other")
    (tmp_path / "stolen").mkdir()
    (tmp_path / "stolen" / ".git").symlink_to(checkout / ".git")
    (tmp_path / "inside" / ".git").mkdir(parents=True)
    for name in ("refs", "HEAD"):
        (tmp_path / "inside" / ".git" / name).symlink_to(checkout / ".git" / name)
    (tmp_path / "inside" / ".git" / "objects").symlink_to(checkout / ".git" / "objects")
    assert list_repositories(tmp_path) == [checkout, borrowed]


def test_repositories_that_cannot_be_read_are_counted(checkout, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    assert read(empty) == ({}, Counter([repositories.NO_COMMIT]))
    assert read(tmp_path / "nothing") == ({}, Counter([repositories.DAMAGED]))
    blob, tree = (git(checkout, "rev-parse", name) for name in ("HEAD:README.md", "HEAD:src"))
    path = checkout / ".git" / "objects" / blob[:2] / blob[2:]
    path.chmod(0o644)
    content = path.read_bytes()
    for damaged in (content[:-4], content[:-4] + b"xxxx", b"", b"no object"):
        path.write_bytes(damaged)
        texts, skipped = read(checkout)
        # git gives up at the object; the files after it are read nevertheless.
        assert texts.keys() == FILES.keys() - {"README.md"} and skipped == Counter([UNREADABLE])
    (checkout / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    assert read(checkout) == ({}, Counter([repositories.DAMAGED]))


def test_the_environment_of_the_user_is_not_used(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("GIT_ALTERNATE_OBJECT_DIRECTORIES", str(tmp_path))
    assert len(read(checkout)[0]) == len(FILES)


def test_stopping_early_ends_git(checkout):
    reader = read_repository(checkout, 10_000, lambda *_: None)
    next(reader)
    reader.close()  # waits for the process: a hang here is the failure


def test_errors(tmp_path, monkeypatch, checkout):
    with pytest.raises(DataError, match="folder does not exist"):
        list_repositories(tmp_path / "no")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="git: not found"):
        read(checkout)

"""Archives are read where they are; what would leave them, or is no file, is counted."""

import io
import stat
import tarfile
import zipfile

import pytest
import zstandard

from data_pipeline.errors import DataError
from data_pipeline.ledger import Ledger
from data_pipeline.prepare.archives import ENCRYPTED, NOT_A_FILE, UNSAFE_NAME
from data_pipeline.prepare.documents import WHOLE, Part, SourceConfig, SourceKind
from data_pipeline.prepare.files import LINK, NOT_UTF8, TOO_LARGE
from data_pipeline.prepare.sources import read_documents

LIMIT = 1000
GOOD = {f"repo/src/m{number}.py": f"print({number})\n" for number in range(9)}
HOSTILE = ("../escape.py", "/etc/absolute.py", "a/../../up.py", "c:\\windows.py", "back\\slash.py")


def read(path, part=WHOLE):
    ledger = Ledger()
    config = SourceConfig(name="mine", kind=SourceKind.archive, path=str(path))
    documents = list(read_documents(config, ledger, LIMIT, part))
    texts = {document.name: document.text for document in documents}
    return texts, {reason: row.documents for reason, row in ledger.reasons("skipped").items()}


def make_tar(path, compress=bytes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name, content=b"", **attributes):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))

        add("repo/src", type=tarfile.DIRTYPE)
        for name, text in GOOD.items():
            add(name, text.encode())
        for name in HOSTILE:
            add(name, b"x = 1\n")
        add("link.py", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.py", type=tarfile.LNKTYPE, linkname="repo/src/m1.py")
        add("pipe.py", type=tarfile.FIFOTYPE)
        add("big.py", b"#" * (LIMIT + 1))
        add("bad.py", b"\xff\xfe")
    path.write_bytes(compress(buffer.getvalue()))
    return path


def make_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("repo/src/", "")
        for name, text in GOOD.items():
            archive.writestr(name, text)
        for name in HOSTILE:
            archive.writestr(name, "x = 1\n")
        link = zipfile.ZipInfo("link.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("big.py", "#" * 10**6)
        archive.writestr("bad.py", b"\xff\xfe")
    return path


@pytest.mark.parametrize(
    ("ending", "compress"),
    [(".tar", bytes), (".tar.zst", zstandard.compress), (".tgz", __import__("gzip").compress)],
)
def test_tar(tmp_path, ending, compress):
    texts, skipped = read(make_tar(tmp_path / f"a{ending}", compress))
    assert texts == {f"a{ending}/{name}": text for name, text in GOOD.items()}
    assert skipped == {UNSAFE_NAME: 5, LINK: 2, NOT_A_FILE: 1, TOO_LARGE: 1, NOT_UTF8: 1}


def test_zip(tmp_path):
    texts, skipped = read(make_zip(tmp_path / "a.zip"))
    assert texts == {f"a.zip/{name}": text for name, text in GOOD.items()}
    assert skipped == {UNSAFE_NAME: 5, LINK: 1, TOO_LARGE: 1, NOT_UTF8: 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_an_encrypted_member_is_counted(tmp_path):
    path = make_zip(tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02repo/src/m8.py"[:4], 0, content.index(b"repo/src/m8.py", len(content) // 2))
    content[at + 8] |= 1
    path.write_bytes(content)
    texts, skipped = read(path)
    assert skipped[ENCRYPTED] == 1 and len(texts) == 8


def test_a_zip_bomb_that_lies_about_its_size_is_cut(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.py", "#" * 50_000_000)
        archive.writestr("m.py", "x = 1\n")
    content = path.read_bytes()
    true, lie = (50_000_000).to_bytes(4, "little"), (999).to_bytes(4, "little")
    path.write_bytes(content.replace(true, lie))
    with pytest.raises(DataError, match="damaged archive"):
        read(path)


def test_parts_share_an_archive(tmp_path):
    path = make_tar(tmp_path / "a.tar")
    parts = [read(path, Part(number, 3))[0] for number in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(f"a.tar/{name}" for name in GOOD)
    assert min(map(len, parts)) >= 2


@pytest.mark.parametrize("ending", [".tar", ".tar.zst", ".zip"])
def test_a_truncated_archive_is_an_error(tmp_path, ending):
    whole = (
        make_zip(tmp_path / "w.zip")
        if ending == ".zip"
        else make_tar(tmp_path / "w", zstandard.compress if ending == ".tar.zst" else bytes)
    )
    cut = tmp_path / f"cut{ending}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(DataError, match=rf"cut{ending}: damaged archive"):
        read(cut)

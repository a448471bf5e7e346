"""Every kind of source, and everything that is passed over with a reason."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_pipeline.errors import DataError
from data_pipeline.languages import language_of, side_of, slug, table
from data_pipeline.ledger import Ledger
from data_pipeline.prepare import environment, files
from data_pipeline.prepare.documents import Part, SourceConfig, SourceKind
from data_pipeline.prepare.rows import NOT_AN_OBJECT
from data_pipeline.prepare.sources import UNKNOWN_LANGUAGE, read_documents

LIMIT = 1000


def read(kind, path="", limit=LIMIT, **options):
    """(documents, {reason: count}) of one source."""
    ledger = Ledger()
    config = SourceConfig(name="mine", kind=SourceKind[kind], path=str(path), **options)
    documents = list(read_documents(config, ledger, limit))
    assert ledger.total("read").documents == len(documents)
    return documents, {reason: row.documents for reason, row in ledger.reasons("skipped").items()}


def write(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_folder_reads_what_is_text_and_counts_the_rest(tmp_path):
    write(
        tmp_path,
        {
            "a.py": "print(1)\n", "deep/er/b.c": "int x;\n", "notes.txt": "some prose\n", "README.md": "# hi\n",
            "tool": "#!/usr/bin/env python3\npass\n", "plain": "no first line\n", "what.xyzzy": "unknown",
            "binary.py": b"a\0b", "latin.py": b"# caf\xe9\n", "empty.py": b"", "blank.py": b" \n\n",
            "big.py": "x" * (LIMIT + 1), ".git/config.py": "never", "run/run.yaml": "a: 1", "run/z.py": "never",
            "built/tokenizer.json": "{}", "built/shards/x.py": "never",
        },
    )  # fmt: skip
    outside = tmp_path.with_name("outside")
    outside.mkdir()
    write(outside, {"secret.py": "never"})
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "link.py").symlink_to(outside / "secret.py")
    documents, skipped = read("folder", tmp_path)
    found = {document.name: (document.language, document.kind, document.group) for document in documents}
    assert found == {
        "a.py": ("Python", "code", "python"),
        "deep/er/b.c": ("C", "code", "c"),
        "notes.txt": ("Text", "text", "mine"),
        "README.md": ("Markdown", "code", "markdown"),
        "tool": ("Python", "code", "python"),
    }
    assert skipped == {
        files.BINARY: 1, files.NOT_UTF8: 1, files.EMPTY: 2, files.TOO_LARGE: 1, files.LINK: 2, UNKNOWN_LANGUAGE: 2,
        files.OWN_FOLDER: 2, "folder .git": 1,
    }  # fmt: skip


def test_text_is_not_changed(tmp_path):
    content = "\ufeffa\r\n\tb \n\n\né"
    write(tmp_path, {"a.py": content})
    documents, _ = read("folder", tmp_path)
    assert documents[0].text == content
    assert documents[0].num_bytes == len(content.encode())


def test_a_forced_language_takes_every_file(tmp_path):
    write(tmp_path, {"a.xyzzy": "x", "b.py": "y"})
    documents, _ = read("folder", tmp_path, language="c++")
    assert {document.language for document in documents} == {"C++"}
    assert {document.group for document in documents} == {"cpp"}


def test_the_order_is_spread_and_does_not_depend_on_the_disk(tmp_path):
    names = [f"{folder}/{number}.py" for folder in "abcd" for number in range(20)]
    for root in ("one", "two"):
        write(tmp_path / root, dict.fromkeys(names if root == "one" else reversed(names), "pass"))
    orders = [[document.name for document in read("folder", tmp_path / root)[0]] for root in ("one", "two")]
    assert orders[0] == orders[1]
    assert {name[0] for name in orders[0][:15]} == set("abcd")


def test_max_bytes_stops_and_says_so(tmp_path):
    write(tmp_path, {f"{number}.py": "x" * 100 + str(number) for number in range(10)})
    ledger = Ledger()
    config = SourceConfig(name="mine", kind=SourceKind.folder, path=str(tmp_path), max_bytes=250)
    assert len(list(read_documents(config, ledger, LIMIT))) == 3
    assert ledger.notes == ["mine: stopped at max_bytes=250; the rest was not read"]


def jsonl(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_jsonl(tmp_path, ending):
    content = jsonl([{"text": "one", "lang": "python"}, {"text": "two", "lang": "C++"}, {"text": "three", "lang": "?"}])
    content += b'not json\n[1]\n\n{"lang": "c"}\n{"text": 5}\n{"text": "a\\u0000b", "lang": "c"}\n'
    content += b'{"text": "half \\ud800", "lang": "c"}\n{"text": " ", "lang": "c"}\n'
    packed = {".jsonl": content, ".jsonl.gz": gzip.compress(content), ".jsonl.zst": zstandard.compress(content)}[ending]
    write(tmp_path, {f"a{ending}": packed, "ignored.csv": "x"})
    documents, skipped = read("jsonl", tmp_path, language_field="lang")
    assert [(document.text, document.group, document.name) for document in documents] == [
        ("one", "python", f"a{ending}:1"), ("two", "cpp", f"a{ending}:2"),
    ]  # fmt: skip
    assert skipped == {
        UNKNOWN_LANGUAGE: 1, NOT_AN_OBJECT: 2, "no text in field 'text'": 2, files.BINARY: 1, files.NOT_UTF8: 1,
        files.EMPTY: 1,
    }  # fmt: skip


def test_rows_without_a_language_are_text_and_may_be_named_by_a_field(tmp_path):
    write(tmp_path, {"a.jsonl": jsonl([{"body": "hello", "file": "x/y.rs"}, {"body": "two", "file": None}])})
    documents, skipped = read("jsonl", tmp_path / "a.jsonl", text_field="body")
    assert [(document.language, document.kind, document.group) for document in documents] == [
        ("Text", "text", "mine")
    ] * 2
    assert skipped == {}
    documents, skipped = read("jsonl", tmp_path / "a.jsonl", text_field="body", name_field="file")
    assert [(document.language, document.name) for document in documents] == [("Rust", "x/y.rs")]
    assert skipped == {UNKNOWN_LANGUAGE: 1}


def test_a_line_longer_than_any_document_is_skipped_without_being_held(tmp_path):
    long = b'{"text": "' + b"x" * 200_000 + b'"}\n'
    write(tmp_path, {"a.jsonl": long + b'{"text": "next"}\n' + long.rstrip()})
    documents, skipped = read("jsonl", tmp_path / "a.jsonl")
    assert [document.text for document in documents] == ["next"]
    assert documents[0].name == "a.jsonl:2"
    assert skipped == {files.TOO_LARGE: 2}


def test_zstd_frames_one_after_the_other(tmp_path):
    first, second = jsonl([{"text": "one"}] * 5), jsonl([{"text": "two" * 300}] * 5)
    write(tmp_path, {"a.jsonl.zst": zstandard.compress(first) + zstandard.compress(second)})
    documents, _ = read("jsonl", tmp_path)
    assert [document.text[:3] for document in documents] == ["one"] * 5 + ["two"] * 5


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_a_damaged_compressed_file_is_an_error_with_its_name(tmp_path, ending):
    content = jsonl([{"text": str(number)} for number in range(3000)])
    packed = gzip.compress(content) if ending.endswith("gz") else zstandard.compress(content)
    write(tmp_path, {f"a{ending}": packed[: len(packed) // 2]})
    with pytest.raises(DataError, match=rf"a{ending}: damaged compressed file"):
        read("jsonl", tmp_path)


def test_parquet(tmp_path):

    pq.write_table(pa.table({"text": ["one", None, "three"], "lang": ["Go", "Go", "Java"]}), tmp_path / "a.parquet")
    documents, skipped = read("parquet", tmp_path, language_field="lang")
    assert [(document.text, document.group) for document in documents] == [("one", "go"), ("three", "java")]
    assert skipped == {"no text in field 'text'": 1}
    with pytest.raises(DataError, match="no column 'txt'; nearest: 'text'"):
        read("parquet", tmp_path, text_field="txt")
    write(tmp_path, {"b.parquet": "not parquet"})
    with pytest.raises(DataError, match=r"b\.parquet: not a readable parquet file"):
        read("parquet", tmp_path)


def test_hugging_face_dataset_from_disk(tmp_path):

    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "lang": ["c", "sql"]})
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "saved"))
    documents, _ = read("huggingface", tmp_path / "saved", language_field="lang")
    assert [(document.text, document.group) for document in documents] == [("one", "c"), ("two", "sql")]
    assert len(read("huggingface", tmp_path / "saved", split="test")[0]) == 1
    with pytest.raises(DataError, match="no split 'tran'; nearest: 'train'"):
        read("huggingface", tmp_path / "saved", split="tran")
    with pytest.raises(DataError, match="no column 'txt'"):
        read("huggingface", tmp_path / "saved", text_field="txt")


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet"])
def test_a_path_that_does_not_exist(tmp_path, kind):
    with pytest.raises(DataError, match="does not exist; correct its path"):
        read(kind, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "My Source", "kind": SourceKind.environment_code}, "lower-case"),
        ({"name": "a", "kind": SourceKind.folder}, "kind folder needs a path"),
        ({"name": "a", "kind": SourceKind.folder, "path": "x", "language": "pyton"}, "nearest: 'Python'"),
        ({"name": "a", "kind": SourceKind.folder, "path": "x", "max_bytes": 0}, "max_bytes=0"),
    ],
)
def test_source_options(options, message):
    with pytest.raises(DataError, match=message):
        SourceConfig(**options)


@pytest.mark.parametrize(
    ("name", "first_line", "language"),
    [
        ("a.py", b"", "Python"), ("A.PY", b"", "Python"), ("x/Makefile", b"", "Makefile"),
        ("CMakeLists.txt", b"", "CMake"),
        ("a.d.ts", b"", "TypeScript"), ("a.h", b"", "C"), ("a.m", b"", "Objective-C"), (".bashrc", b"", "Shell"),
        ("run", b"#!/usr/bin/env -S python3.11 -u\n", "Python"), ("run", b"#! /bin/bash -e\n", "Shell"),
        ("run", b"#!/usr/bin/env\n", None), ("run", b"text", None),
        ("a.unknown", b"#!/bin/sh", None), ("a.tar.gz", b"", None),
    ],
)  # fmt: skip
def test_language_by_name_and_first_line(name, first_line, language):
    assert language_of(name, first_line) == language


def test_the_table_of_languages_is_consistent():
    slugs = [slug(name) for name in table()]
    assert len(set(slugs)) == len(slugs) > 700
    assert slug("C++") == "cpp"
    assert slug("C#") == "csharp"
    assert (side_of("Markdown"), side_of("Text"), side_of("reStructuredText"), side_of("HTML")) == (
        "code", "text", "text", "code",
    )  # fmt: skip


@pytest.fixture
def environment_folder(tmp_path, monkeypatch):
    """A Python environment of a few files instead of the real one."""
    paths = {"stdlib": tmp_path / "stdlib", "purelib": tmp_path / "stdlib" / "site-packages"}
    paths["platlib"] = paths["purelib"]
    long = "A long sentence about what this function is for. " * 6
    module = f'"""Module. {long}"""\n\n\ndef f():\n    """Does. {long}\n    """\n\n\ndef g():\n    """Short."""\n'
    write(paths["stdlib"], {"json/decoder.py": module, "bad.py": f'"""{long}"""\ndef (:\n', "x.pyc": b"\0"})
    write(
        paths["purelib"],
        {
            "pkg/a.h": "int x;\n", "pkg/b.js": "let x;\n", "pkg/data.json": "{}", "pkg/c.yaml": "a: 1\n",
            "pkg/README.md": "# Title\n", "pkg/guide.rst": long, "pkg/numbers.txt": "1 2 3 4 5 6\n" * 30,
            "pkg-1.dist-info/METADATA": f"Name: pkg\nSummary: x\n\n{long}", "pkg-1.dist-info/top_level.txt": "pkg\n",
            "other-1.dist-info/METADATA": "Name: other\n", "pkg/LICENSE.txt": long, "pkg/nul.py": f'"""{long}\\0"""\n',
        },
    )  # fmt: skip
    monkeypatch.setattr(environment.sysconfig, "get_paths", lambda: {key: str(path) for key, path in paths.items()})


@pytest.mark.usefixtures("environment_folder")
def test_environment_code():
    documents, skipped = read("environment_code", limit=100_000)
    assert {document.name: document.language for document in documents} == {
        "stdlib/json/decoder.py": "Python", "stdlib/bad.py": "Python", "site-packages/pkg/a.h": "C",
        "site-packages/pkg/b.js": "JavaScript", "site-packages/pkg/c.yaml": "YAML",
        "site-packages/pkg/README.md": "Markdown", "site-packages/pkg/nul.py": "Python",
    }  # fmt: skip
    assert skipped["folder site-packages"] == 1
    assert skipped["language not used from the environment"] == 5  # JSON, .rst and three .txt


@pytest.mark.usefixtures("environment_folder")
def test_environment_text():
    documents, skipped = read("environment_text", limit=100_000)
    assert sorted((document.group, document.name) for document in documents) == [
        ("docstrings", "stdlib/json/decoder.py::<module>"),
        ("docstrings", "stdlib/json/decoder.py::f"),
        ("documentation", "site-packages/pkg/guide.rst"),
        ("package-descriptions", "site-packages/pkg-1.dist-info/METADATA"),
    ]
    assert all(document.kind == "text" for document in documents)
    docstring = next(document.text for document in documents if document.name.endswith("::f"))
    assert docstring.startswith("Does. A long sentence")
    assert skipped["not parseable as Python"] == 1
    assert skipped["not prose"] == 1
    assert skipped["licence text"] == 1
    assert skipped["no description"] == 1
    assert skipped[files.BINARY] == 1  # a docstring with an escaped NUL


def test_every_prefix_of_the_environment_has_all_languages(tmp_path):
    entries = {
        language: [files.FileEntry(name=f"{language}{i}", path=tmp_path, size=size) for i in range(count)]
        for language, count, size in (("big", 400, 100), ("small", 16, 100))
    }
    order = [language for language, _ in environment.spread(entries)]
    # sqrt(40000) : sqrt(1600) = 5 : 1, until the small one is used up.
    assert order[:60].count("small") in (9, 10, 11)
    assert order.count("small") == 16


@pytest.mark.parametrize("kind", ["folder", "jsonl", "one jsonl", "parquet", "huggingface"])
def test_parts_are_the_source_each_document_once(tmp_path, kind):
    """Whether files or rows are dealt to the parts."""
    path, rows = tmp_path / "data", [{"text": f"document number {number}"} for number in range(23)]
    path.mkdir()
    if kind == "folder":
        write(path, {f"{number}.txt": row["text"] for number, row in enumerate(rows)})
    elif kind == "jsonl":
        for start in range(0, 23, 3):
            lines = "".join(json.dumps(row) + "\n" for row in rows[start : start + 3])
            (path / f"{start}.jsonl").write_text(lines)
    elif kind == "one jsonl":
        (path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path / "a.parquet")
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    source = SourceConfig(name="mine", kind=SourceKind[kind.split()[-1]], path=str(path))
    whole = list(read_documents(source, Ledger(), LIMIT))
    parts = [list(read_documents(source, Ledger(), LIMIT, Part(number, 4))) for number in range(4)]
    assert min(map(len, parts)) >= 2
    together = [document for part in parts for document in part]
    assert sorted(document.text for document in together) == sorted(row["text"] for row in rows)
    assert {document.name for document in together} == {document.name for document in whole}

# ruff: noqa: E501 (a file of a case is one line)
"""Order of files by their references, and packing: nothing cut, nothing lost, the same whatever the order of input."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import languages
from data_pipeline.errors import DataError
from data_pipeline.prepare.fim import Fim, FimConfig
from data_pipeline.prepare.references import RepositoryFile, RepositoryIndex, known_languages, references
from data_pipeline.prepare.repositories import RepositoryConfig, order_files, pack_repository
from data_pipeline.tokenizer import REPOSITORY_TOKENS, SPECIAL_TOKENS, Tokenizer, train_tokenizer
from tests.unit.data_pipeline.tokenizers_like import byte_level

NAME, SEPARATOR = (SPECIAL_TOKENS.index(token) for token in REPOSITORY_TOKENS)

# language -> {path: text}, the file whose references are asked for comes first; and what they are.
CASES = [
    ("Python", {
        "pkg/sub/a.py": "import os, pkg.b as q, pkg.sub.a\nfrom . import c\nfrom ..d import (e,\n f as g)\nfrom pkg.sub import h\nfrom ...x import y\n",
        "pkg/b.py": "", "pkg/sub/c.py": "", "pkg/d/__init__.py": "", "pkg/d/e.py": "", "pkg/d/f.py": "", "pkg/sub/h.py": "",
        "pkg/os/b.py": "", "x.py": "",
    }, ["pkg/b.py", "pkg/d/__init__.py", "pkg/d/e.py", "pkg/d/f.py", "pkg/sub/c.py", "pkg/sub/h.py", "x.py"]),
    ("Python", {"src/one/a.py": "import one.util\n", "src/one/util.py": "", "old/one/util.py": ""}, ["src/one/util.py"]),
    ("TypeScript", {
        "src/a.ts": "import { x } from './b';\nimport './c.js'\nexport * from \"../lib\"\nconst q = require('./d.json')\nimport React from 'react'\n",
        "src/b.tsx": "", "src/c.ts": "", "lib/index.ts": "", "src/d.json": "", "react/index.ts": "",
    }, ["lib/index.ts", "src/b.tsx", "src/c.ts", "src/d.json"]),
    ("C", {
        "src/a.c": '#include "a.h"\n# include <lib/x.h>\n#include <stdio.h>\n#include "../common/y.h"\n',
        "src/a.h": "", "include/lib/x.h": "", "common/y.h": "", "other/a.h": "",
    }, ["common/y.h", "include/lib/x.h", "src/a.h"]),
    ("Java", {
        "app/src/org/a/Main.java": "package org.a;\nimport org.b.Tool;\nimport static org.c.Math.max;\nimport java.util.List;\n",
        "app/src/org/b/Tool.java": "", "lib/org/c/Math.kt": "", "org/a/Tool.java": "",
    }, ["app/src/org/b/Tool.java", "lib/org/c/Math.kt"]),
    ("Go", {
        "cmd/main.go": 'package main\nimport (\n\t"fmt"\n\tx "github.com/me/thing/internal/util"\n)\nimport "github.com/me/thing/api"\n',
        "internal/util/a.go": "", "internal/util/b.go": "", "internal/util/a_test.go": "", "api/api.go": "", "util/z.go": "",
    }, ["api/api.go", "internal/util/a.go", "internal/util/b.go"]),
    ("Rust", {
        "src/lib.rs": "pub mod a;\nmod b;\nuse crate::c::d::Thing;\nuse self::e::*;\nuse std::io;\n",
        "src/a.rs": "", "src/b/mod.rs": "", "src/c/d.rs": "", "src/e.rs": "",
    }, ["src/a.rs", "src/b/mod.rs", "src/c/d.rs", "src/e.rs"]),
    ("Rust", {"src/b/x.rs": "mod y;\nuse super::z;\n", "src/b/x/y.rs": "", "src/b/z.rs": "", "src/y.rs": ""},
     ["src/b/x/y.rs", "src/b/z.rs"]),
    ("Ruby", {"lib/a.rb": "require 'json'\nrequire 'thing/b'\nrequire_relative '../c'\n", "lib/thing/b.rb": "", "c.rb": ""},
     ["c.rb", "lib/thing/b.rb"]),
    ("PHP", {
        "src/A.php": "<?php\nuse App\\Models\\User;\nuse Other\\Thing;\nrequire_once __DIR__ . '/../boot.php';\n",
        "src/Models/User.php": "", "boot.php": "", "x/Thing.php": "", "y/Thing.php": "",
    }, ["boot.php", "src/Models/User.php"]),
    ("C#", {
        "a/A.cs": "using System;\nusing My.Data;\nnamespace My.App { }\n", "b/B.cs": "namespace My.Data;\n",
        "b/C.cs": "namespace My.Data\n{\n}\n", "a/D.cs": "namespace My.App { }\n",
    }, ["b/B.cs", "b/C.cs"]),
    ("Shell", {"bin/a.sh": "source ./b.sh\n. ../lib/c.sh\n", "bin/b.sh": "", "lib/c.sh": ""}, ["bin/b.sh", "lib/c.sh"]),
    ("Lua", {"a.lua": "local x = require('my.thing')\n", "src/my/thing.lua": ""}, ["src/my/thing.lua"]),
    ("Protocol Buffer", {"a.proto": 'import "api/b.proto";\n', "proto/api/b.proto": ""}, ["proto/api/b.proto"]),
    ("SCSS", {"a.scss": "@use 'b';\n@import \"c.css\";\n", "b.scss": "", "c.css": ""}, ["b.scss", "c.css"]),
    ("Haskell", {"Main.hs": "import qualified Data.My as M\n", "src/Data/My.hs": ""}, ["src/Data/My.hs"]),
    ("Markdown", {"a.md": "import b\n", "b.py": ""}, []),
]  # fmt: skip


@pytest.mark.parametrize(("language", "texts", "expected"), CASES)
def test_references_of_each_language(language, texts, expected):
    files = [RepositoryFile(path=path, text=text, language=language) for path, text in texts.items()]
    assert references(files[0], RepositoryIndex(files)) == expected


def test_languages_are_those_of_the_table():
    assert known_languages() <= set(languages.table())


def python(imports: dict[str, list[str]]) -> list[RepositoryFile]:
    """Modules of one folder with what they import."""
    return [
        RepositoryFile(path=f"{name}.py", text="".join(f"import {other}\n" for other in others), language="Python")
        for name, others in imports.items()
    ]


def ordered(files: list[RepositoryFile]) -> list[str]:
    return [files[number].path for number in order_files(files)]


@given(st.integers(1, 12), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_without_cycles_a_file_comes_after_all_that_it_refers_to(count, generator):
    names = [f"m{number:02d}" for number in range(count)]
    generator.shuffle(names)
    edges = {name: [other for other in names[:k] if generator.random() < 0.4] for k, name in enumerate(names)}
    order = ordered(python(edges))
    assert sorted(order) == sorted(f"{name}.py" for name in names)
    for name, others in edges.items():
        assert all(order.index(f"{other}.py") < order.index(f"{name}.py") for other in others)


@given(st.integers(1, 9), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_any_graph_gives_each_file_once_whatever_the_order_of_input(count, generator):
    names = [f"m{number}" for number in range(count)]
    files = python({name: [other for other in names if generator.random() < 0.3] for name in names})
    order = order_files(files)
    assert sorted(order) == list(range(count))
    shuffled = generator.sample(files, count)
    assert ordered(shuffled) == [files[number].path for number in order]


def test_a_cycle_is_broken_at_the_file_that_is_visited_first():
    assert ordered(python({"a": ["b"], "b": ["c"], "c": ["a"]})) == ["c.py", "b.py", "a.py"]
    assert ordered(python({"x": ["x"], "c": ["a"], "b": ["c"], "a": ["b"]})) == ["c.py", "b.py", "a.py", "x.py"]


def test_readme_first_then_neighbours_stay_together():
    files = python({"z": ["lib"], "lib": [], "a": ["lib"], "b": []})
    files.append(RepositoryFile(path="README.md", text="import a", language="Markdown"))
    files.append(RepositoryFile(path="docs/README.md", text="", language="Markdown"))
    assert ordered(files) == ["README.md", "lib.py", "a.py", "b.py", "docs/README.md", "z.py"]


def test_what_one_file_refers_to_comes_by_path():
    assert ordered(python({"a": ["z", "x", "y"], "x": [], "y": [], "z": []})) == ["x.py", "y.py", "z.py", "a.py"]


def test_two_files_of_one_path_are_both_kept():
    files = [RepositoryFile(path="a.py", text=text, language="Python") for text in ("2", "1", "1")]
    assert [files[number].text for number in order_files(files)] == ["1", "1", "2"]


def test_a_long_chain_and_a_file_of_only_imports_cost_what_they_are_long():
    """No recursion, no pattern that runs away: ten thousand links, and a megabyte of unfinished imports."""
    chain = {f"m{number}": [f"m{number + 1}"] for number in range(10_000)}
    order = ordered(python(chain))
    assert order[0] == "m9999.py" and order[-1] == "m0.py"
    for language in sorted(known_languages()):
        for unit in (
            "from a import (b,\n",
            "import (\n",
            "require ( ",
            "#include <",
            "use pub(",
            "import \t",
            "import '",
        ):
            text = unit * (100_000 // len(unit))
            references(RepositoryFile(path="x", text=text, language=language), RepositoryIndex([]))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(["import alpha beta\n" * 50]), 320)


def pack(files, tokenizer, max_tokens, name="me/thing", contents=None):
    contents = contents or tokenizer.encode_batch(file.text for file in files)
    return pack_repository(name, files, contents, tokenizer, RepositoryConfig(max_tokens=max_tokens))


def unpacked(ids: np.ndarray, tokenizer: Tokenizer) -> tuple[str, list[tuple[str, str]]]:
    """Read back by the sentinels: name, [(path, text)]."""
    head, *files = [list(part) for end, part in itertools.groupby(ids.tolist(), lambda x: x == SEPARATOR) if not end]
    assert head[0] == NAME
    return tokenizer.decode(head[1:]), [tuple(tokenizer.decode(part).split("\n", 1)) for part in files]


@pytest.mark.parametrize("max_tokens", [1, 40, 100, 200, 10_000])
def test_packed_documents_hold_every_file_whole(tokenizer, max_tokens):
    generator = random.Random(0)
    files = [
        RepositoryFile(
            path=f"d{number % 3}/f{number}.py", text="alpha beta\n" * generator.randint(1, 30), language="Python"
        )
        for number in range(20)
    ]
    packed = pack(files, tokenizer, max_tokens)
    order = order_files(files)
    read = []
    for document in packed.documents:
        assert document.ids.dtype == np.uint32
        name, inside = unpacked(document.ids, tokenizer)
        assert name == "me/thing"
        assert inside == [(files[number].path, files[number].text) for number in document.files]
        read += document.files
        if document.ids.size > max_tokens:
            assert len(document.files) == 1 and document.files[0] in packed.oversized
    assert read == order
    too_large = [document.files for document in packed.documents if document.ids.size > max_tokens]
    assert [[number] for number in packed.oversized] == too_large


def test_the_next_file_goes_in_exactly_until_the_bound(tokenizer):
    files = [RepositoryFile(path=f"{name}.py", text="alpha", language="Python") for name in "abc"]
    whole = pack(files, tokenizer, 10_000).documents[0].ids.size
    assert [len(document.files) for document in pack(files, tokenizer, whole).documents] == [3]
    assert [len(document.files) for document in pack(files, tokenizer, whole - 1).documents] == [2, 1]
    assert pack([], tokenizer, 10).documents == []


def test_files_filled_in_the_middle_keep_their_cut(tokenizer):
    files = [RepositoryFile(path=f"{name}.py", text="alpha beta\n" * 20, language="Python") for name in "abcdef"]
    fim = Fim(FimConfig(), tokenizer)
    encoded = fim.encode_batch([f"s:me/thing/{file.path}" for file in files], [file.text for file in files], 0)
    assert {document.layout for document in encoded} > {""}
    ids = pack(files, tokenizer, 100_000, contents=[document.ids for document in encoded]).documents[0].ids
    for file, document in zip(files, encoded, strict=True):
        whole = [SEPARATOR, *tokenizer.encode(f"{file.path}\n"), *document.ids.tolist()]
        assert any(ids[at : at + len(whole)].tolist() == whole for at in range(ids.size))


def test_sentinels_spelled_in_names_and_files_are_text(tokenizer):
    files = [RepositoryFile(path="<|file_sep|>.py", text="<|repo_name|><|file_sep|>x", language="Python")]
    ids = pack(files, tokenizer, 1000, name="<|repo_name|>").documents[0].ids.tolist()
    assert (ids.count(NAME), ids.count(SEPARATOR)) == (1, 1)


def test_bad_options(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"repositories\.max_tokens=0: must be >= 1"):
        RepositoryConfig(max_tokens=0)
    path = tmp_path / "tokenizer.json"
    path.write_text(byte_level(["alpha beta"]).to_str(), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"has no sentinel <\|repo_name\|>, <\|file_sep\|>, which repository packing needs"
    ):
        pack([], Tokenizer.load(path), 10)

"""Which languages claim a name, what a first line says, and that the table is sound."""

import pytest

from data_pipeline import languages
from data_pipeline.languages import claim_of, find_language, has_extension, language_of, language_of_shebang


@pytest.mark.parametrize(
    ("path", "claimed", "by_filename"),
    [
        ("a/b.py", ("Python",), False),
        ("B.PY", ("Python",), False),
        ("x.h", ("C", "C++", "Objective-C"), False),
        ("x.nim.cfg", ("Nim",), False),
        ("x.other.cfg", ("HAProxy", "INI"), False),
        ("deep/CMakeLists.txt", ("CMake",), True),
        ("hosts", ("Hosts File", "INI"), True),
        (".bashrc", ("Shell",), True),
        (".py", (), False),
        ("x.xyzzy", (), False),
        ("script", (), False),
        ("", (), False),
    ],
)
def test_claims(path, claimed, by_filename):
    claim = claim_of(path)
    assert set(claim.languages) == set(claimed)
    assert claim.by_filename == by_filename
    if claimed:
        assert language_of(path) == languages.preferred(claim)
        assert language_of(path) in claimed


def test_a_name_alone_is_a_fixed_choice():
    assert [language_of(name) for name in ("x.h", "x.m", "x.v", "x.pl", "x.md")] == [
        "C", "Objective-C", "Verilog", "Perl", "Markdown",
    ]  # fmt: skip
    assert language_of("run", b"#!/usr/bin/env python3\n") == "Python"
    assert language_of("run.unknown", b"#!/usr/bin/env python3\n") is None


def test_extensions():
    assert [has_extension(name) for name in ("a/b.c", "b", "a.b/c", ".bashrc", ".x.y", "")] == [
        True, False, False, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "language"),
    [
        ("#!/bin/sh\n", "Shell"),
        ("#!/usr/bin/env python3.11\n", "Python"),
        ("#!/usr/bin/env -S A=1 deno run\n", "JavaScript"),
        ("#!  /usr/local/bin/perl -w\n", "Perl"),
        ("#!/usr/bin/node", "JavaScript"),
        ('#!/bin/bash\nexec /usr/bin/env scala "$0" "$@"\n!#\n', "Scala"),
        ('#!/bin/sh\nexec guile -s "$0" "$@"\n!#\n', "Scheme"),
        ('#!/bin/sh\nexec 3>&1\necho "$0"\n', "Shell"),
        ('#!/usr/bin/env python3\nexec tclsh "$0"\n', "Python"),  # only a shell's exec
        ("#!/usr/bin/nothing-known\n", None),
        ("#!", None),
        ("#!\n/bin/sh\n", None),
        ("# !/bin/sh\n", None),
        ("\n#!/bin/sh\n", None),
        ("", None),
    ],
)
def test_first_lines(head, language):
    assert language_of_shebang(head) == language


def test_every_language_is_found_by_its_name_and_no_two_share_a_source():
    names = list(languages.table())
    assert [find_language(name.upper()) for name in names] == names
    slugs = {}
    for name in names:
        slugs.setdefault(languages.slug(name), []).append(name)
    assert {slug: shared for slug, shared in slugs.items() if len(shared) > 1} == {}
    assert all(set(claims) <= set(names) for claims in [languages.PREFERRED.values()])


def test_every_preferred_language_claims_its_extension():
    for extension, language in languages.PREFERRED.items():
        assert language in claim_of(f"x{extension}").languages, extension

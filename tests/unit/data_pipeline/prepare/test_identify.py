"""Languages by name and by content: tiny files written for this test, the project's own files, and what must hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import languages
from data_pipeline.prepare import identify as module
from data_pipeline.prepare import ties
from data_pipeline.prepare.identify import HEAD_CHARACTERS, How, Identified, identify, needs_text

ROOT = Path(__file__).parents[4]
SHARED = {
    key: claim
    for table in (languages._by_extension(), languages._by_filename())
    for key, claim in table.items()
    if len(claim.languages) > 1
}
NAMES = st.sampled_from(
    [f"src/x{key}" if key.startswith(".") else key for key in SHARED] + ["plain", "x.unknown", "x.py"]
)

PYTHON = (
    "import os\n\n\ndef size(path):\n    return os.stat(path).st_size\n\n\nif __name__ == '__main__':\n    size('.')\n"
)
FILES = [
    # The name decides, whatever the text says.
    ("a/b.py", "", "Python", How.extension),
    ("b.PY", "#!/bin/sh\n", "Python", How.extension),
    ("deep/Makefile", "int main;\n", "Makefile", How.filename),
    ("types.d.ts.map.py", "x", "Python", How.extension),
    ("x.tar.yacc", "\0\0", "Yacc", How.extension),
    # First line.
    ("run", "#!/usr/bin/env python3\nx", "Python", How.shebang),
    ("run", "#! /usr/bin/env -S ruby -w\n", "Ruby", How.shebang),
    ("run", "\ufeff#!/bin/bash\n", "Shell", How.shebang),
    ("run", '#!/bin/sh\n# \\\nexec tclsh "$0" "$@"\nputs 1\n', "Tcl", How.shebang),
    ("run", "#!/bin/sh\nexec ls\n", "Shell", How.shebang),
    ("run.1.unknown", "#!/usr/bin/perl5.36\n", "Perl", How.shebang),
    ("page.cgi", "#!/usr/bin/python\n", "Python", How.shebang),
    ("x.pl", "#!/usr/bin/env swipl\nfoo.\n", "Prolog", How.shebang),
    ("x.h", "#!/usr/bin/python\nint x;\n", "C", How.content),  # no claimant of .h
    # Modelines.
    ("x.h", "/* -*- C++ -*- */\nint x;\n", "C++", How.modeline),
    ("x.h", "// -*- mode: c++; tab-width: 4 -*-\nint x;\n", "C++", How.modeline),
    ("x.t", "1;\n\n# vim: set ft=perl:\n", "Perl", How.modeline),
    ("conf", "# vim: ft=lua\n", "Lua", How.modeline),
    ("conf", "\n" * 20 + "# vim: ft=lua\n", "Lua", How.modeline),
    ("conf", "\n" * 20 + "# vim: ft=lua\n" + "\n" * 20, None, How.unknown),  # neither among the first nor the last
    ("x.h", "/* -*- python -*- */\nint x;\n", "C", How.content),
    # Shared extensions.
    ("x.h", "#ifndef X_H\n#define X_H\nint f(struct s *p); /* class: none of C++ */\n#endif\n", "C", How.content),
    ("x.h", "#pragma once\nnamespace a {\nclass B;\n}\n", "C++", How.content),
    ("x.h", "#include <vector>\nint f();\n", "C++", How.content),
    ("x.h", "#include <stdio.h>\n/* as std::sort in C++ */\n * std::sort\nint f(void);\n", "C", How.content),
    ("x.h", "#import <Foundation/Foundation.h>\n@interface A : NSObject\n@end\n", "Objective-C", How.content),
    ("x.m", "@implementation A\n- (void)run { [self stop]; }\n@end\n", "Objective-C", How.content),
    ("x.m", "function y = f(x)\n% doubles\ny = 2 * x;\nend\n", "MATLAB", How.content),
    ("x.m", ":- module hello.\n:- interface.\n", "Mercury", How.content),
    ("x.m", "(* ::Package:: *)\nf[x_] := x^2\n", "Wolfram Language", How.content),
    ("x.m", "HELLO ; says so\n W \"hello\",!\n Q\n", "M", How.content),
    ("x.pl", "use strict;\nmy $x = 1;\n", "Perl", How.content),
    ("x.pl", "parent(tom, bob).\nold(X) :- parent(X, _).\n", "Prolog", How.content),
    ("x.pl", "use v6;\nsay 1;\n", "Raku", How.content),
    ("x.v", "module adder(input a, output b);\nassign b = a;\nendmodule\n", "Verilog", How.content),
    ("x.v", "Require Import List.\nLemma a : True.\nProof. trivial. Qed.\n", "Rocq Prover", How.content),
    ("x.v", "module main\n\nfn main() {\n\tprintln('x')\n}\n", "V", How.content),
    ("x.fs", "module A\n\nlet f x = x + 1\n", "F#", How.content),
    ("x.fs", ": square ( n -- n ) dup * ;\n", "Forth", How.content),
    ("x.fs", "#version 330\nout vec4 c;\nvoid main() { c = vec4(1); }\n", "GLSL", How.content),
    ("x.rs", "fn main() {}\n", "Rust", How.content),
    ("x.ts", "let a: number = 1\n", "TypeScript", How.content),
    ("x.ts", '<?xml version="1.0"?>\n<!DOCTYPE TS>\n<TS version="2.1"></TS>\n', "XML", How.content),
    ("x.tsx", "export const A = () => <div/>\n", "TSX", How.content),
    ("x.r", "x <- c(1, 2)\n", "R", How.content),
    ("x.r", 'REBOL [Title: "x"]\nprint 1\n', "Rebol", How.content),
    ("x.cls", "\\NeedsTeXFormat{LaTeX2e}\n\\ProvidesClass{x}\n", "TeX", How.content),
    ("x.cls", "public with sharing class A {\n}\n", "Apex", How.content),
    ("x.inc", "<?php\n$x = 1;\n", "PHP", How.content),
    ("x.inc", "unit a;\ninterface\nimplementation\nend.\n", "Pascal", How.content),
    ("x.sql", "CREATE TABLE t (a int);\n", "SQL", How.content),
    ("x.sql", "SET NOCOUNT ON\nGO\n", "TSQL", How.content),
    ("x.sql", "CREATE FUNCTION f() RETURNS int AS $$ BEGIN END $$ LANGUAGE plpgsql;\n", "PLpgSQL", How.content),
    ("x.pp", "class ntp {\n  package { 'ntp': ensure => installed }\n}\n", "Puppet", How.content),
    ("x.pp", "program a;\nbegin\n  writeln(1);\nend.\n", "Pascal", How.content),
    ("x.d", "module a.b;\nimport std.stdio;\n", "D", How.content),
    ("x.d", "build/x.o: src/x.c \\\n  src/x.h\n", "Makefile", How.content),
    ("x.f", "      PROGRAM A\n      END\n", "Fortran", How.content),
    ("x.f90.f", ": a dup ;\n", "Forth", How.content),
    ("x.mod", "MODULE A;\nBEGIN\nEND A.\n", "Modula-2", How.content),
    ("x.mod", "set S;\nparam p {S};\nminimize c: 1;\n", "AMPL", How.content),
    ("x.asc", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n", "Public Key", How.content),
    ("x.asc", "= Title\n\ntext\n", "AsciiDoc", How.content),
    ("x.md", "# Title\n", "Markdown", How.content),
    ("x.md", ";; Machine.\n(define_insn \"a\")\n", "GCC Machine Description", How.content),
    ("x.php", "<?php echo 1;\n", "PHP", How.content),
    ("x.php", "<?hh // strict\nfunction f(): int { return 1; }\n", "Hack", How.content),
    ("x.ml", "let rec f x = match x with 0 -> 1 | n -> n\n", "OCaml", How.content),
    ("x.ml", "structure A = struct\nfun f x = x\nend\n", "Standard ML", How.content),
    ("x.yaml", "a:\n  - b\n", "YAML", How.content),
    ("x.yaml", "openapi: 3.0.0\n", "OASv3-yaml", How.content),
    ("x.json", '{"a": 1}\n', "JSON", How.content),
    ("x.html", "<!DOCTYPE html>\n<p>x\n", "HTML", How.content),
    ("x.lean", "import data.nat.basic\ntheorem a : 1 = 1 :=\nbegin\n  refl,\nend\n", "Lean", How.content),
    ("x.lean", "import Mathlib.Data.Nat\ntheorem a : 1 = 1 := by rfl\n", "Lean 4", How.content),
    ("x.s", "\t.globl main\nmain:\n\tret\n", "Unix Assembly", How.content),
    ("x.sc", "package a\nobject B { def c = 1 }\n", "Scala", How.content),
    ("x.scm", "(define (f x) x)\n", "Scheme", How.content),
    ("x.scm", "(identifier) @variable\n", "Tree-sitter Query", How.content),
    ("x.bas", "10 PRINT 1\n20 GOTO 10\n", "BASIC", How.content),
    ("x.st", "Object subclass: #A\n  instanceVariableNames: ''\n", "Smalltalk", How.content),
    ("x.ex", "defmodule A do\nend\n", "Elixir", How.content),
    ("hosts", "127.0.0.1 localhost\n", "Hosts File", How.content),
    (".eslintrc", "{}\n", "JSON with Comments", How.content),
    # Nothing decides: the most frequent one.
    ("x.pl", "", "Perl", How.preferred),
    ("x.cls", "\n", "TeX", How.preferred),
    ("x.cls", PYTHON, "TeX", How.preferred),  # the model says Python, which has no claim
    ("x.v", "", "Verilog", How.content),  # without the marks of the others
    # No claim, no `#!`: the model, where it is sure.
    ("script", PYTHON, "Python", How.model),
    ("plain", "just a few words\n", None, How.unknown),
    ("plain", "int main() { return 0; }\n", None, How.unknown),  # C, with a score of 0.76
    ("", "", None, How.unknown),
    ("notes.xyzzy", PYTHON, None, How.unknown),
    ("bytes", "\0\1\2\3" * 100, None, How.unknown),
    ("bytes", "\0asm\1\0\0\0" + "\0\1\2" * 300, None, How.unknown),  # the model is sure: wasm, but that is no text
    ("broken", "\ufffd" * 50, None, How.unknown),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "language", "how"), FILES, ids=[f"{row[0]}-{row[2]}" for row in FILES])
def test_identify(name, text, language, how):
    assert identify(name, text) == Identified(language, how)


def test_the_projects_own_files():
    expected = {
        ".py": "Python", ".md": "Markdown", ".yaml": "YAML", ".json": "JSON", ".toml": "TOML", "Makefile": "Makefile",
        "LICENSE": "Text",
    }  # fmt: skip
    seen = set()
    for folder in ("data_pipeline", "launch", "configs", "docs", "."):
        for path in (ROOT / folder).glob("*" if folder == "." else "**/*"):
            key = path.suffix or path.name
            if path.is_file() and key in expected:
                seen.add(key)
                assert identify(str(path.relative_to(ROOT)), path.read_text()).language == expected[key], path
    assert seen == set(expected)


@settings(deadline=None)  # the first text for the model loads it
@given(name=NAMES, text=st.text(max_size=200))
def test_an_answer_is_one_of_the_claimants(name, text):
    found = identify(name, text)
    claimed = languages.claim_of(name).languages
    if claimed:
        assert found.language in claimed
        assert needs_text(name) == (len(claimed) > 1) == (found.how not in (How.filename, How.extension))
    else:
        assert (found.language is None) == (found.how == How.unknown)
        assert needs_text(name)


@settings(deadline=None, max_examples=30)
@given(name=NAMES, text=st.text(max_size=50), rest=st.text(max_size=50))
def test_only_the_beginning_is_looked_at(name, text, rest):
    beginning = (text + "\n" * HEAD_CHARACTERS)[:HEAD_CHARACTERS]
    assert identify(name, beginning + rest) == identify(name, beginning)
    assert identify(name, "\ufeff" + beginning) == identify(name, "\ufeff" + beginning + rest)


def test_what_lies_behind_the_beginning_is_not_seen():
    assert identify("x.h", "\n" * (HEAD_CHARACTERS - 20) + "using namespace a;\n").language == "C++"
    assert identify("x.h", "\n" * HEAD_CHARACTERS + "using namespace a;\n").language == "C"


@pytest.mark.parametrize(
    ("call", "loaded"),
    [
        ("identify('x.py', 'x')", set()),
        ("identify('Makefile', 'x')", set()),
        ("needs_text('x.h')", set()),
        ("identify('x.h', 'int x;')", set()),
        (f"identify('script', {PYTHON!r})", {"magika", "onnxruntime"}),
    ],
)
def test_libraries_are_loaded_when_they_are_needed(call, loaded):
    code = f"import sys; from data_pipeline.prepare.identify import *; {call}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert {"magika", "onnxruntime"} & set(modules.split()) == loaded


def test_every_shared_name_has_rules_for_its_own_languages():
    assert set(ties.table()) - set(SHARED) == set()
    # MQL4 and MQL5 differ in their libraries, not in their syntax.
    assert set(SHARED) - set(ties.table()) == {".mqh"}
    for key, rules in ties.table().items():
        assert {language for language, _ in rules} <= set(SHARED[key].languages), key
        assert all(pattern for _, pattern in rules[:-1]), f"{key}: rules behind `else`"


def test_a_choice_by_name_alone_is_a_claimant():
    for claim in SHARED.values():
        assert len(set(claim.languages)) == len(claim.languages)
        assert languages.preferred(claim) in claim.languages


def test_the_model_speaks_of_languages_of_the_table():
    model = module._model()
    labels = set(model._target_labels_space)
    assert set(module._MODEL_NAMES) <= labels
    assert set(module._MODEL_NAMES.values()) <= set(languages.table())
    named = {label: module._MODEL_NAMES.get(label) or languages.find_language(label) for label in labels}
    known = {language for language in named.values() if language}
    assert {"Python", "C", "C++", "C#", "Java", "JavaScript", "TypeScript", "PHP", "HTML", "Markdown"} <= known
    assert len(known) > 70


FILLERS = (" ", "a", "\n", "a ", "(a", ":a")


@pytest.mark.parametrize("key", sorted(ties.table()))
@pytest.mark.timeout(20)
def test_no_text_keeps_a_pattern_busy(key):
    """Each word of a pattern, before a long run of each filler; quadratic patterns take minutes for these."""
    for _, pattern in ties.table()[key]:
        regex = re.compile(pattern, re.MULTILINE)
        words = re.findall(r"[A-Za-z_]{3,}", re.sub(r"\\[a-zA-Z]", " ", pattern))[:3]
        for filler in FILLERS:
            run = filler * (HEAD_CHARACTERS // len(filler))
            for word in ("", *words):
                regex.search(f"{word} {run}")
        for word in dict.fromkeys(re.findall(r"[A-Za-z_]{3,}", re.sub(r"\\[a-zA-Z]", " ", pattern))[:40]):
            for between in ("", " a"):
                regex.search(f"{word}{between}{' ' * HEAD_CHARACTERS}")

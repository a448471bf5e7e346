"""Redaction: a labelled list with its recall, what must stay, idempotence, and work that is linear in the length."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.prepare import redact as module
from data_pipeline.prepare.redact import EMAIL, IP_ADDRESS, KEY, PASSWORD, PHONE, redact

_MARK = re.compile(r"\{\{(!?)(<[A-Z_]+>)\|(.*?)\}\}")
_CASES = [
    line.replace("¦", "")
    for line in (Path(__file__).parent / "redaction_cases.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("# ")
]
_PRIVATE_KEY = textwrap.dedent("""\
    -----BEGIN RSA PRIVATE KEY-----
    Proc-Type: 4,ENCRYPTED

    MIIEpAIBAAKCAQEA3Tz2mr7SZiAMfQyuvBjM9OiJjRazXBZ1BjP5CE/Wm/Rr500P
    RK+Lh9x5eJPo5CAZ3/ANBE0sTK0ZsDGMak2m1g7oruI3dY3VHqIxFTz0Ta1d+NAj
    -----END RSA PRIVATE KEY-----
    """)


@pytest.mark.parametrize("line", _CASES)
def test_labelled_lines(line):
    """Found secrets are replaced, known misses and everything else stay."""
    text = _MARK.sub(lambda mark: mark[3], line)
    expected = _MARK.sub(lambda mark: mark[3] if mark[1] else mark[2], line)
    found = redact(text)
    assert found.text == expected
    labels = [mark[2] for mark in _MARK.finditer(line) if not mark[1]]
    assert found.counts == {label: labels.count(label) for label in sorted(set(labels))}


def test_recall_on_the_labelled_lines():
    """The list is long enough to say something, and names what is missed."""
    marks = [mark for line in _CASES for mark in _MARK.finditer(line)]
    assert len(_CASES) >= 80
    assert sum(not _MARK.search(line) for line in _CASES) >= 30
    assert len(marks) >= 50
    assert sum(not mark[1] for mark in marks) / len(marks) >= 0.8


def test_all_lines_together_are_redacted_like_each_alone():
    text = "\n".join(_MARK.sub(lambda mark: mark[3], line) for line in _CASES)
    assert redact(text).text == "\n".join(redact(line).text for line in text.split("\n"))


def test_private_keys():
    found = redact(f'KEY = """{_PRIVATE_KEY}"""\n{_PRIVATE_KEY}')
    block = f"-----BEGIN RSA PRIVATE KEY-----\n{KEY}\n-----END RSA PRIVATE KEY-----\n"
    assert found.text == f'KEY = """{block}"""\n{block}'
    assert found.counts == {KEY: 2}
    quoted = "key = (" + " ".join(f'"{line}\\n"' for line in _PRIVATE_KEY.splitlines()) + ")"
    assert redact(quoted).text == f'key = ("-----BEGIN RSA PRIVATE KEY-----{KEY}-----END RSA PRIVATE KEY-----\\n")'
    for text in (
        _PRIVATE_KEY.replace("RSA PRIVATE", "PUBLIC"),
        _PRIVATE_KEY.split("-----END")[0],
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----" + "x " * 20_000 + "M" * 64 + "-----END PRIVATE KEY-----",
    ):
        assert redact(text).text == text


def test_two_keys_in_a_row_and_an_unfinished_one_before_them():
    unfinished = _PRIVATE_KEY.split("Proc")[0]
    found = redact(_PRIVATE_KEY + _PRIVATE_KEY)
    assert found.counts == {KEY: 2}
    found = redact(unfinished + _PRIVATE_KEY)
    assert found.text == f"-----BEGIN RSA PRIVATE KEY-----\n{KEY}\n-----END RSA PRIVATE KEY-----\n"
    assert found.counts == {KEY: 1}


_CODE = """
import smtplib  # by Jo Doe <jo.doe@uni-muenchen.de>

password = "hunter2Tr0ub"
SERVERS = {"web": "93.184.216.34", 'db': '2a00:1450:4001:81b::200e', "phone": "+1-212-736-5000", "fax": 2127365000}
URL = f"postgres://app:s3cr3tly7@{SERVERS['db']}/main"
URL_2 = "postgres://app:s3cr3tly7@db/main"
y = x@w.T + password@key.name
api_key = r"7f3a9c1e5b8d2046af91c3e7d5b80264", b'x'
"""


def test_code_stays_parseable_and_keeps_its_shape():
    found = redact(_CODE)
    assert found.counts == {EMAIL: 1, IP_ADDRESS: 2, KEY: 1, PASSWORD: 2, PHONE: 1}
    before, after = ast.parse(_CODE), ast.parse(found.text)

    def shape(tree):
        return [type(node).__name__ for node in ast.walk(tree)]

    assert shape(before) == shape(after)
    assert found.text.count("\n") == _CODE.count("\n")


_PIECES = st.sampled_from(
    [_MARK.sub(lambda mark: mark[3], line) for line in _CASES]
    + [
        _PRIVATE_KEY,
        KEY,
        PASSWORD,
        EMAIL,
        '"',
        "'",
        "\n",
        " ",
        "=",
        ":",
        "@",
        "://",
        "password",
        "-----",
        "é",
        ".",
        "1",
    ]
)


@given(st.lists(_PIECES, max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_redacting_twice_changes_nothing_more(text):
    once = redact(text)
    again = redact(once.text)
    assert again.text == once.text
    assert again.counts == {}


@given(st.text(max_size=200))
def test_any_text_is_taken(text):
    assert redact(redact(text).text).counts == {}


def test_what_detect_secrets_finds_by_form_is_found_here():
    """Every pattern of the library's classes that are used, on strings made from the pattern itself, in its case."""
    import importlib

    checked = 0
    for path, _ in module._LIBRARY_TOKENS:
        name, detector = path.split(".")
        for pattern in getattr(importlib.import_module(f"detect_secrets.plugins.{name}"), detector).denylist:
            if "aws" in pattern.pattern:
                continue
            checked += 1

            @given(st.from_regex(re.compile(pattern.pattern, re.ASCII), fullmatch=True))
            @settings(max_examples=5, deadline=None, database=None)
            def is_found(secret):
                if len(secret) < 200 and "--" not in secret:
                    assert KEY in redact(f"x {secret} y").text

            is_found()
    assert checked >= 15


_HOSTILE = r"""
import resource
from data_pipeline.prepare.redact import redact
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
units = [
    "a", "1", "1.", "a.", "a@", "a@a.", "@a.", "eyJ", "eyJ-", "eyJaaaaaaaa.", "xoxb-", "xoxb-1-", "sk-", "password",
    "password_", "password='", "password = ", "secret_token_", "KEY_", "KEY=", "token(\"a", "://", "://a:", "://a:aaa@",
    "-----BEGIN RSA PRIVATE KEY-----", "-----END ", "2001:", "2a00::", "::", "tel ", "phone: +1", "phone: 1 ", "+1 (",
    "glpat-", "AKIA", "hooks.slack.com/services/T", "https://hooks.slack.com/services/Ta/B", "SG.", "'", "\"", "\n",
    "pypi-AgEIcHlwaS5vcmc", "AccountKey=", "export A_", "sk-aT3BlbkFJ", "gloas-", "github_pat_", "ya29.", "%", "\u0130",
]
needed = "@ PRIVATE KEY T3BlbkFJ eyJ xox sk-ant- AIza token password key phone tel: :// -----END "
for unit in ("eyJ", "a", "a@", "1.", "sk-", "://", "2001:", "password", "-----BEGIN RSA PRIVATE KEY-----"):
    redact(needed + unit * (1_000_000 // len(unit)) + needed)
for first in range(0, len(units), 4):
    runs = [unit * (250_000 // len(unit)) for unit in units[first : first + 4]]
    redact(needed.join(["", *runs, ""]))
print("done")
"""


def test_hostile_megabytes_cost_linear_work():
    """A bound on processor time, not on the clock; quadratic work on a megabyte needs minutes of it."""
    run = subprocess.run([sys.executable, "-c", _HOSTILE], capture_output=True, text=True, check=False)
    assert run.stdout == "done\n", run.stderr or f"stopped by signal {-run.returncode}"

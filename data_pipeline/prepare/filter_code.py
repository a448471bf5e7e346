"""The filters for code: lines, characters, generated and vendored files, licence, visible text of HTML, Python syntax.

They read the whole text at most a few times each and are linear in its length, but for two that look at a bounded part:
visible text at the first 50,000 characters, and syntax at texts of at most 200,000 characters.
"""

import ast
import html.parser
import re
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from data_pipeline.prepare import generated

if TYPE_CHECKING:
    from data_pipeline.prepare.filters import Rules

HTML_CHARACTERS = 50_000
SYNTAX_CHARACTERS = 200_000
NO_LICENCE = "none"
_ALPHANUMERIC = bytes(byte for byte in range(128) if chr(byte).isalnum())
_SPDX = re.compile(r"SPDX-License-Identifier:\s*(.*)", re.IGNORECASE)
_SPDX_TOKEN = re.compile(r"[()]|[A-Za-z0-9][\w.+:-]*")
_INVISIBLE = frozenset({"script", "style", "template", "noscript", "head"})
_VISIBLE_IN_HEAD = "title"


def reason(text: str, name: str, rules: "Rules") -> str | None:
    """The first objection of the rules for code, None without one."""
    if rules.drop_vendored and (found := generated.vendored_reason(name)):
        return found
    if rules.drop_generated and (found := generated.generated_reason(text, name)):
        return found
    return _line_reason(text, rules) or _content_reason(text, rules)


def _line_reason(text: str, rules: "Rules") -> str | None:
    if rules.max_line_length is None and rules.max_mean_line_length is None:
        return None
    lengths = list(map(len, text.splitlines()))
    longest, total = max(lengths, default=0), sum(lengths)
    if rules.max_line_length is not None and longest > rules.max_line_length:
        return f"longest line over {rules.max_line_length} characters"
    if rules.max_mean_line_length is not None and total > rules.max_mean_line_length * len(lengths):
        return f"mean line over {rules.max_mean_line_length} characters"
    return None


def _content_reason(text: str, rules: "Rules") -> str | None:
    least = rules.min_alphanumeric_fraction
    if least is not None and alphanumeric(text) < least * len(text):
        return f"under {least:g} alphanumeric characters"
    if rules.licences is not None and not licence_allowed(text, rules.licences):
        return "licence not in the list"
    least = rules.min_visible_text_fraction
    if least is not None and visible_fraction(text) < least:
        return f"under {least:g} visible text"
    if rules.check_syntax and not is_python(text):
        return "not the syntax of Python {}.{}".format(*sys.version_info)
    return None


def alphanumeric(text: str) -> int:
    """Letters and digits of any script in a text."""
    others = text.encode().translate(None, _ALPHANUMERIC).decode()
    return len(text) - len(others) + (0 if others.isascii() else sum(map(str.isalnum, others)))


def licence_allowed(text: str, allowed: tuple[str, ...]) -> bool:
    """Whether the SPDX expression at the head of a file can be met with the allowed licences.

    A OR B needs one of them, A AND B both. `none` among the allowed keeps files without an expression.
    """
    found = next(filter(None, map(_SPDX.search, generated.head_lines(text))), None)
    if found is None:
        return NO_LICENCE in allowed
    known = {licence.lower() for licence in allowed} - {NO_LICENCE}
    return _Expression(_SPDX_TOKEN.findall(found[1]), lambda licence: licence.lower() in known).met()


class _Expression:
    """An SPDX expression: OR binds less than AND, `WITH exception` changes nothing."""

    def __init__(self, tokens: list[str], allowed: Callable[[str], bool]) -> None:
        self._tokens, self._allowed = tokens[::-1], allowed

    def _take(self, word: str) -> bool:
        if self._tokens and self._tokens[-1].upper() == word:
            self._tokens.pop()
            return True
        return False

    def met(self) -> bool:
        result = self._all()
        while self._take("OR"):
            other = self._all()
            result = result or other
        return result

    def _all(self) -> bool:
        result = self._one()
        while self._take("AND"):
            other = self._one()
            result = result and other
        return result

    def _one(self) -> bool:
        if self._take("("):
            result = self.met()
            self._take(")")
            return result
        licence = self._tokens.pop() if self._tokens else ""
        if self._take("WITH") and self._tokens:
            self._tokens.pop()
        return self._allowed(licence)


class _VisibleText(html.parser.HTMLParser):
    """Counts the characters that a reader of a page sees; white space as one."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.characters = 0
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _INVISIBLE:
            self._hidden.append(tag)
        elif tag == "body":
            self._hidden.clear()

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.characters += len(" ".join(data.split()))


def visible_fraction(text: str) -> float:
    """Share of the characters of an HTML page that a reader sees, judged by its first 50,000 characters."""
    part = text[:HTML_CHARACTERS]
    # A tag that is cut off is nothing to see, and thousands of them take html.parser minutes.
    cut_off = part.find("<", part.rfind(">") + 1)
    parser = _VisibleText()
    try:
        parser.feed(part if cut_off < 0 else part[:cut_off])
        parser.close()
    except AssertionError:
        # html.parser's way to refuse `<![nonsense`. What came before it counts.
        pass
    return parser.characters / max(len(part), 1)


def is_python(text: str) -> bool:
    """Whether this Python can parse a text; texts over 200,000 characters are taken for valid."""
    if len(text) > SYNTAX_CHARACTERS:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes are not the user's concern
            compile(text, "<document>", "exec", flags=ast.PyCF_ONLY_AST, dont_inherit=True)
    # ValueError: a NUL. The others: nested deeper than the parser goes.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True

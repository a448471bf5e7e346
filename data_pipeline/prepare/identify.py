"""Which language a document is in: by its name, and where the name leaves a choice, by its content.

The journey of (name, text): file name, else longest known extension -> the languages that claim it. One: decided,
without a look at the text. Several: `#!` line -> editor's modeline -> rules of the extension (`ties.yaml`) -> a small
model (magika, bundled with its package, offline), each restricted to the claimants -> the claimant that is meant most
often (`languages.PREFERRED`). None: `#!` line and modeline, and for a name without an extension the model, where its
score is at least `MODEL_SCORE`. Only the first `HEAD_CHARACTERS` characters are looked at.

The answer is a pure function of (name, text) and the versions of the table, the rules and the model.
"""

import enum
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline import languages
from data_pipeline.prepare import ties

if TYPE_CHECKING:
    from magika import Magika

HEAD_CHARACTERS = 32 * 1024
# The model must choose one of its labels, also for a language that has none. Without claimants its answer counts from
# this score on: there, of linguist's samples in languages that it knows, it is right for 98%; from 0.5 on, for 89%.
MODEL_SCORE = 0.99


class How(enum.StrEnum):
    """What decided: in the order in which it is asked."""

    filename = "filename"
    extension = "extension"
    shebang = "shebang"
    modeline = "modeline"
    content = "content"
    model = "model"
    preferred = "preferred"
    unknown = "unknown"


@dataclass(frozen=True, slots=True)
class Identified:
    """language: in the spelling of `languages.table()`, None if nothing tells; how: what decided."""

    language: str | None
    how: How


_UNKNOWN = Identified(None, How.unknown)

_EMACS_MODE = re.compile(
    r"-\*-(?:[^\n]{0,200}?\bmode[ \t]*:)?[ \t]*([\w+#-]+)[ \t]*(?:;[^\n]{0,200})?-\*-", re.IGNORECASE
)
_VIM_MODE = re.compile(r"\b(?:vim?|ex):[^\n]{0,200}?\b(?:ft|filetype|syntax)=([\w+#-]+)", re.IGNORECASE)
_MODELINES = 5  # at the beginning and at the end of a file, as in Vim

# What the model calls a language where neither our name nor an alias of it is that.
_MODEL_NAMES = {
    "asm": "Assembly", "asp": "Classic ASP", "batch": "Batchfile", "bazel": "Starlark", "bib": "BibTeX", "cs": "C#",
    "csproj": "XML", "gemfile": "Ruby", "gemspec": "Ruby", "htaccess": "ApacheConf", "ignorefile": "Ignore List",
    "ipynb": "Jupyter Notebook", "latex": "TeX", "lisp": "Common Lisp", "objectivec": "Objective-C",
    "po": "Gettext Catalog", "proto": "Protocol Buffer", "rst": "reStructuredText", "srt": "SubRip Text",
    "textproto": "Protocol Buffer Text Format", "vcxproj": "XML", "vtt": "WebVTT",
    "winregistry": "Windows Registry Entries",
}  # fmt: skip
# Labels that mean "text of some kind", or a format that is not told from others by a name.
_MODEL_SAYS_NOTHING = {"txt", "randomtxt", "randombytes", "undefined", "unknown", "empty", "sum", "crt", "pem"}


def identify(name: str, text: str) -> Identified:
    """The language of a document. name: its path or file name; text: its content, of any length, already decoded.

    An empty name, an unknown extension without a `#!` line, or a text that nothing tells from others is
    `Identified(None, How.unknown)`.
    """
    claim = languages.claim_of(name)
    if len(claim.languages) == 1:
        return Identified(claim.languages[0], How.filename if claim.by_filename else How.extension)
    head = text[:HEAD_CHARACTERS].removeprefix("\ufeff")
    if claim.languages:
        return _among(claim, head)
    return _unclaimed(name, head)


def needs_text(name: str) -> bool:
    """Whether `identify` would look at the text: False when the name alone decides."""
    return len(languages.claim_of(name).languages) != 1


def _among(claim: languages.Claim, head: str) -> Identified:
    for how, language in ((How.shebang, _by_shebang(head)), (How.modeline, _by_modeline(head))):
        if language in claim.languages:
            return Identified(language, how)
    language = ties.decide(claim.key, head)
    if language is not None:
        return Identified(language, How.content)
    language = _by_model(head, 0.0)
    if language in claim.languages:
        return Identified(language, How.model)
    return Identified(languages.preferred(claim), How.preferred)


def _unclaimed(name: str, head: str) -> Identified:
    for how, language in ((How.shebang, _by_shebang(head)), (How.modeline, _by_modeline(head))):
        if language is not None:
            return Identified(language, how)
    # A name with an extension that no language claims is data of some kind: the model does not know most kinds.
    if languages.has_extension(name) or (language := _by_model(head, MODEL_SCORE)) is None:
        return _UNKNOWN
    return Identified(language, How.model)


def _by_shebang(head: str) -> str | None:
    if not head.startswith("#!"):
        return None
    return languages.language_of_shebang(head[:1024])


def _by_modeline(head: str) -> str | None:
    lines = head.split("\n")
    first, last = lines[:_MODELINES], lines[_MODELINES:][-_MODELINES:]
    # Emacs reads the first line, and the second after a `#!` line; Vim the first and last five.
    match = _EMACS_MODE.search("\n".join(first[:2])) or _VIM_MODE.search("\n".join(first + last))
    return languages.find_language(match[1]) if match else None


def _by_model(head: str, least_score: float) -> str | None:
    prediction = _model().identify_bytes(head.encode("utf-8", "replace")).prediction
    # `output` is the model's answer if that reaches the model's own threshold for the label, else "some text".
    label = str(prediction.output.label)
    if label in _MODEL_SAYS_NOTHING or not prediction.output.is_text or prediction.score < least_score:
        return None
    return _MODEL_NAMES.get(label) or languages.find_language(label)


@functools.cache
def _model() -> "Magika":
    # Half a second and a model in memory: for the first text that nothing else decides.
    from magika import Magika

    return Magika()

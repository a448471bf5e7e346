"""Secrets and personal data in a text are replaced by what they are: <KEY>, <PASSWORD>, <EMAIL>, <IP_ADDRESS>, <PHONE>.

The journey of a text, in this order: private keys (the lines between BEGIN and END) -> tokens with a form of their own
(detect-secrets' patterns for AWS, GitHub, GitLab, Slack, Stripe, ...; JWT, Google, Anthropic and npm by ours) ->
passwords in URLs -> quoted values given to names like password, secret, api_key -> e-mail addresses -> public IP
addresses -> phone numbers that are labelled as such. A replacement is never a secret itself, so redacting twice changes
nothing more.

What stays: addresses at example.com and the other reserved domains, git@host, private, loopback and documentation
networks, public name servers, four numbers that are all below 32 (versions, sections, object identifiers) or that are
labelled as a version, placeholders ("your-api-key", "changeme"), values with little entropy, values that are code.

Work is linear in the length: every pattern begins with a literal or only at the beginning of a run of its characters,
and every repetition that could be tried again is bounded. Before a pattern runs, a plain search asks for the few
characters that it needs, which most texts lack. This finds what is written as such things are written; it is no proof
that a text has none.
"""

import functools
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

KEY, PASSWORD, EMAIL, IP_ADDRESS, PHONE = "<KEY>", "<PASSWORD>", "<EMAIL>", "<IP_ADDRESS>", "<PHONE>"


@dataclass(slots=True)
class Redacted:
    """A text without its secrets, and how many of each kind there were: {"<EMAIL>": 2}."""

    text: str
    counts: dict[str, int]


# A rule: replaces in a text, counts what it replaced.
_Rule = Callable[[str, Counter[str]], str]


def redact(text: str) -> Redacted:
    """Replace secrets and personal data. Idempotent; linear in the length of the text."""
    counts: Counter[str] = Counter()
    for rule in _rules():
        text = rule(text, counts)
    return Redacted(text, dict(sorted(counts.items())))


@functools.cache
def _rules() -> tuple[_Rule, ...]:
    return (_private_keys, *_token_rules(), _url_passwords, _assigned_secrets, _emails, _addresses, _phones)


def _replace(pattern: re.Pattern[str], text: str, replace: Callable[[re.Match[str]], str | None], kind: str,
             counts: Counter[str]) -> str:  # fmt: skip
    """`text` with every match replaced by what `replace` says; None leaves a match as it is."""

    def one(match: re.Match[str]) -> str:
        replacement = replace(match)
        if replacement is None:
            return match[0]
        counts[kind] += 1
        return replacement

    return pattern.sub(one, text)


# Private keys

_KEY_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = "-----END "
_MAX_KEY_CHARACTERS = 20_000
_KEY_BODY = re.compile(r"[A-Za-z0-9+/=]{40}")


def _private_keys(text: str, counts: Counter[str]) -> str:
    if "PRIVATE KEY" not in text:
        return text
    parts, done = [], 0
    for begin in _KEY_BEGIN.finditer(text):
        if begin.start() < done:
            continue
        end = text.find(_KEY_END, begin.end(), begin.end() + _MAX_KEY_CHARACTERS)
        body = text[begin.end() : end] if end >= 0 else ""
        if _KEY_BODY.search(body):
            # A body over several lines stays on lines of its own; the rest of quoted lines goes with it.
            line = "\n" if body.startswith("\n") else ""
            parts += [text[done : begin.end()], line, KEY, line]
            done = end
            counts[KEY] += 1
    return "".join(parts) + text[done:]


# Tokens with a form of their own

_OWN_TOKENS = (
    ("eyJ", r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),  # JWT: two JSON objects in base64
    ("AIza", r"AIza[A-Za-z0-9_-]{35}"),  # Google API
    ("ya29.", r"ya29\.[A-Za-z0-9_-]{20,}"),  # Google OAuth
    ("github_pat_", r"github_pat_[A-Za-z0-9_]{60,}"),
    ("npm_", r"npm_[A-Za-z0-9]{36}"),
    ("hf_", r"hf_[A-Za-z0-9]{34}"),
    ("sk-ant-", r"sk-ant-[A-Za-z0-9_-]{40,}"),
    ("sk-proj-", r"sk-proj-[A-Za-z0-9_-]{40,}"),
    ("xapp-", r"xapp-\d-[A-Z0-9]{8,}-\d{8,}-[a-f0-9]{32,}"),  # Slack app
)
# detect-secrets' class -> what a text must hold before its patterns are tried. Those without such a literal (Mailchimp,
# Telegram, Discord, Twilio, Artifactory) match parts of hashes and are left out; so are high-entropy strings alone.
_LIBRARY_TOKENS = (
    ("aws.AWSKeyDetector", ("AKIA", "ASIA", "ABIA", "ACCA", "A3T")),
    ("azure_storage_key.AzureStorageKeyDetector", ("AccountKey=",)),
    ("github_token.GitHubTokenDetector", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    (
        "gitlab_token.GitLabTokenDetector",
        (
            "GR1348941",
            *(f"gl{kind}-" for kind in ("pat", "dt", "ft", "soat", "rt", "cbt", "imt", "ptt", "agent", "oas")),
        ),
    ),
    ("openai.OpenAIDetector", ("T3BlbkFJ",)),
    ("pypi_token.PypiTokenDetector", ("pypi-",)),
    ("sendgrid.SendGridDetector", ("SG.",)),
    ("slack.SlackDetector", ("xox", "XOX", "hooks.slack.com")),
    ("square_oauth.SquareOAuthDetector", ("sq0csp-",)),
    ("stripe.StripeDetector", ("k_live_",)),
)
_OPENAI = r"sk-[A-Za-z0-9_-]{20,80}T3BlbkFJ[A-Za-z0-9]{20}"


def _token_rules() -> list[_Rule]:
    import importlib

    rules = [_token_rule((needed,), re.compile(rf"(?<![A-Za-z0-9_-]){pattern}")) for needed, pattern in _OWN_TOKENS]
    for path, needed in _LIBRARY_TOKENS:
        module, name = path.split(".")
        detector = getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)
        for pattern in detector.denylist:
            if name == "OpenAIDetector":
                pattern = re.compile(_OPENAI)  # the library's is quadratic in a run of its characters
            elif "aws" in pattern.pattern:
                continue  # needs the name of the variable: `_assigned_secrets` does that
            elif name == "AzureStorageKeyDetector":
                rules.append(_token_rule(needed, re.compile(r"(?<=AccountKey=)[a-zA-Z0-9+/=]{88}")))
                continue
            guarded = re.compile(rf"(?<![A-Za-z0-9]){pattern.pattern}", pattern.flags)
            rules.append(_token_rule(needed, guarded))
    return rules


def _token_rule(needed: tuple[str, ...], pattern: re.Pattern[str]) -> _Rule:
    def rule(text: str, counts: Counter[str]) -> str:
        if not any(literal in text for literal in needed):
            return text
        return _replace(pattern, text, lambda match: KEY, KEY, counts)

    return rule


# Passwords: in URLs, and quoted values of names that say so

_URL_PASSWORD = re.compile(r"://([^\s:@/?#\[\]<>\"'`]{0,100}):([^\s:@/?#\[\]<>\"'`{}$]{3,100})(?=@[A-Za-z0-9\[])")
# Words of names; each is searched for as it stands, in these three spellings. `key` needs one of the words before it.
_PASSWORD_WORDS, _KEY_WORDS = ("passw", "passphrase", "pwd"), ("secret", "token", "credential", "key")
_SPELLED = [
    (spelled, PASSWORD if word in _PASSWORD_WORDS else KEY)
    for word in (*_PASSWORD_WORDS, *_KEY_WORDS)
    for spelled in (word, word.capitalize(), word.upper())
]
_KEY_OF = re.compile(
    r"(?:api|access|auth|private|secret|client|account|service|encryption|signing|master|shared|storage)[_-]?$",
    re.IGNORECASE,
)
# After the word: the rest of the name, what may stand between name and value, a quoted value on the same line.
_ASSIGNED = re.compile(
    r"(?:ord|d)?s?(?:[_-][a-z0-9]{1,20}){0,2}[\"'\]]{0,3}[ \t]{0,8}(?::=|=>|={1,3}|:|,|\()[ \t]{0,8}[bruf@$]{0,2}"
    r"(?P<quote>[\"'`])(?P<value>[^\"'`\s<>\\]{8,200})(?P=quote)",
    re.IGNORECASE,
)
# As in .env files: the line begins with the name, which is in capitals, and ends with the value.
_ENVIRONMENT_NAME = re.compile(r"(?:export[ \t]+)?[A-Z0-9_]{0,40}")
_ENVIRONMENT = re.compile(
    r"(?:ORD|D)?S?(?:_[A-Z0-9]{1,20})?[ \t]?=[ \t]?(?P<value>[^\s\"'`<>(){}\[\]$\\,;]{8,200})(?=[ \t]{0,20}(?:\r?\n|$))"
)
_PLACEHOLDER = re.compile(
    r"example|sample|dummy|fake|test|changeme|change[_-]me|placeholder|your[_-]|my[_-]|todo|xxx|\*\*\*|\.\.\.|1234567|"
    r"abcdef|password|secret|redacted|insert|replace|foobar|default|none|null|undefined",
    re.IGNORECASE,
)
# Paths, URLs, dotted names, calls, templates, sentences: values that are code or prose.
_CODE_VALUE = re.compile(
    r"[/\\].*[/\\]|://|^[A-Za-z_][A-Za-z_]*(?:[.:_-][A-Za-z_]+)*(?:[.:_-]\d{0,4})?$|[(){}\[\]$%]|^[\d.,:-]+$"
)


def entropy(value: str) -> float:
    """Bits per character of a string, by the frequencies of its own characters."""
    return sum(-n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def _looks_secret(value: str, kind: str) -> bool:
    """A value that a person or a generator made up: letters and digits, no placeholder, no code, entropy enough."""
    if not (any(map(str.isalpha, value)) and any(map(str.isdigit, value))):
        return False
    if _PLACEHOLDER.search(value) or _CODE_VALUE.search(value):
        return False
    if kind == PASSWORD:
        return entropy(value) >= 2.5
    return len(value) >= 16 and entropy(value) >= 3.2


def _url_passwords(text: str, counts: Counter[str]) -> str:
    if "://" not in text or "@" not in text:
        return text

    def replacement(match: re.Match[str]) -> str | None:
        return None if _PLACEHOLDER.search(match[2]) or match[2].lower() == "pass" else f"://{match[1]}:{PASSWORD}"

    return _replace(_URL_PASSWORD, text, replacement, PASSWORD, counts)


def _assigned_secrets(text: str, counts: Counter[str]) -> str:
    found: dict[tuple[int, int], str] = {}
    for word, kind in _SPELLED:
        at = text.find(word)
        while at >= 0:
            match = _assignment(text, at, at + len(word))
            if match is not None and _looks_secret(match["value"], kind):
                found.setdefault(match.span("value"), kind)
            at = text.find(word, at + len(word))
    parts, done = [], 0
    for (start, end), kind in sorted(found.items()):
        parts += [text[done:start], kind]
        done = end
        counts[kind] += 1
    return "".join(parts) + text[done:]


def _assignment(text: str, start: int, end: int) -> re.Match[str] | None:
    """The value given to the name that has a secret word at [start, end)."""
    word = text[start:end]
    if word.lower() == "key" and not _KEY_OF.search(text[max(0, start - 11) : start]):
        return None
    match = _ASSIGNED.match(text, end)
    if match is None and word.isupper():
        line = text.rfind("\n", max(0, start - 60), start) + 1
        if _ENVIRONMENT_NAME.fullmatch(text, line, start):
            return _ENVIRONMENT.match(text, end)
    return match


# Personal data

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+/=~-])([A-Za-z0-9_][A-Za-z0-9._%+-]{0,63})@"
    r"((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}([A-Za-z]{2,12}))(?![A-Za-z0-9_(\[-]|\.[A-Za-z0-9_])"
)
_RESERVED_DOMAIN = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)$")
# Of top-level domains with more than two letters, those that people have addresses at. `x@self.weight` is no address.
_TOP_LEVEL = frozenset(
    ("com", "org", "net", "edu", "gov", "mil", "info", "biz", "dev", "app", "tech", "xyz", "cloud", "email", "academy")
)


_IN_URL = re.compile(r"://[^\s/@]{0,63}:$")  # `user:password@host` of a URL is no address


def _emails(text: str, counts: Counter[str]) -> str:
    if "@" not in text:
        return text

    def replacement(match: re.Match[str]) -> str | None:
        local, domain, top = match[1], match[2].lower(), match[3]
        if _IN_URL.search(text[max(0, match.start() - 67) : match.start()]):
            return None
        real = top in (top.lower(), top.upper()) and (len(top) == 2 or top.lower() in _TOP_LEVEL)
        return EMAIL if real and local != "git" and not _RESERVED_DOMAIN.search(domain) else None

    return _replace(_EMAIL, text, replacement, EMAIL, counts)


# What stands before and after is looked at for matches only: a pattern that begins with digits is found faster.
_IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
# Global unicast begins with 2 or 3; shorter things (C++'s a::b, times) are not asked.
_IPV6 = re.compile(r"[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}")
_IN_NUMBER, _GOES_ON = re.compile(r"[\w.+-]$|[0-9A-Fa-f]:$"), re.compile(r"[\w-]|\.\d|::|:[A-Fa-f]")
_VERSION_LABEL = re.compile(
    r"(?:(?<![A-Za-z])(?:version|ver|release|rev|assembly|oid|build|section|v)|[=~<>!]=)\W{0,4}$", re.IGNORECASE
)
_LABEL_CHARACTERS = 16
_PUBLIC_SERVERS = frozenset(
    (
        "8.8.8.8",
        "8.8.4.4",
        "1.1.1.1",
        "1.0.0.1",
        "9.9.9.9",
        "208.67.222.222",
        "208.67.220.220",
        "2001:4860:4860::8888",
        "2001:4860:4860::8844",
        "2606:4700:4700::1111",
        "2606:4700:4700::1001",
    )
)


def _addresses(text: str, counts: Counter[str]) -> str:
    def replacement(match: re.Match[str]) -> str | None:
        before = match.string[max(0, match.start() - _LABEL_CHARACTERS) : match.start()]
        if _IN_NUMBER.search(before) or _GOES_ON.match(match.string, match.end()):
            return None
        return IP_ADDRESS if is_public_address(match[0]) and not _VERSION_LABEL.search(before) else None

    text = _replace(_IPV4, text, replacement, IP_ADDRESS, counts)
    return _replace(_IPV6, text, replacement, IP_ADDRESS, counts) if ":" in text else text


def is_public_address(value: str) -> bool:
    """Whether an IPv4 or IPv6 address in text is somebody's: global, no public name server, no version in disguise."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    if address.version == 4 and max(address.packed) < 32:
        return False
    return address.is_global and not address.is_multicast and value.lower() not in _PUBLIC_SERVERS


_PHONE = re.compile(
    r"(?P<head>(?<![A-Za-z])(?:phone|tel|telephone|mobile|fax)(?:[_ ](?:number|no))?\b\.?[\"']?[ \t]{0,4}"
    r"(?P<sign>[:=]?)[ \t]{0,4})(?P<quote>[\"']?)(?P<number>\+?\(?\d[\d() .-]{5,17}\d)(?![\w.])",
    re.IGNORECASE,
)
_PHONE_WORDS = tuple(
    spelled
    for word in ("phone", "mobile", "fax", "tel:", "tel.", "tel ", 'tel"', "tel'", "tel=")
    for spelled in (word, word.capitalize(), word.upper())
)
_FICTIONAL = re.compile(r"555[ .-]?01\d\d$")


def _phones(text: str, counts: Counter[str]) -> str:
    if not any(word in text for word in _PHONE_WORDS):
        return text

    def replacement(match: re.Match[str]) -> str | None:
        number = match["number"]
        digits = sum(map(str.isdigit, number))
        # Unquoted, `phone = 030 12345` is arithmetic and `"phone": 5550123` an integer of a program.
        labelled = match["sign"] == ":" or number.startswith("+")
        if not 7 <= digits <= 15 or _FICTIONAL.search(number):
            return None
        if not match["quote"] and (number.isdigit() or not labelled):
            return None
        return f"{match['head']}{match['quote']}{PHONE}"

    return _replace(_PHONE, text, replacement, PHONE, counts)

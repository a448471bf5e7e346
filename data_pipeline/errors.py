"""The one exception of the data pipeline: something the user can fix, said in one line."""

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Bad input, file or option. The message is one line: file or option, value, rule, remedy."""


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """`; nearest: 'python'` when some known name is close to `name`, else the known names (at most ten)."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; nearest: {close[0]!r}"
    return f"; known: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"

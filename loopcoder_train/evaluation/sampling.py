"""From logits to the next token, and from tokens to text that can be shown while it grows."""

import unicodedata
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_REPLACEMENT = "\ufffd"


def choose_token(
    logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    """The next token from `logits` [V]. Temperature 0 takes the most probable one, the lowest id among equals.

    `top_k` keeps the k most probable tokens, then `top_p` the fewest of them whose probabilities reach p. `generator`
    is a CPU generator: the draw is the same on every device up to the rounding of the logits.
    """
    logits = logits.double().cpu()
    if temperature == 0:
        return int(logits.argmax())
    ordered, ids = torch.sort(logits / temperature, descending=True, stable=True)
    if top_k is not None:
        ordered, ids = ordered[:top_k], ids[:top_k]
    probabilities = torch.softmax(ordered, dim=-1)
    if top_p is not None:
        before = torch.cumsum(probabilities, dim=-1) - probabilities  # what the more probable ones already reach
        probabilities = torch.where(before < top_p, probabilities, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


class TextStream:
    """Text pieces of a growing list of tokens.

    A character may be spread over several byte-level tokens, so the end of the text is held back while it is not yet
    whole UTF-8. Control characters, which could drive the reader's terminal, come out as U+FFFD.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._pending: list[int] = []  # tokens since the last point where everything was shown
        self._shown = 0  # characters of them

    def add(self, token: int) -> str:
        """Take one token, return the text that is certain now."""
        self._pending.append(token)
        text = self._decode(self._pending)
        certain = text.rstrip(_REPLACEMENT)
        piece = certain[self._shown :]
        if certain == text:
            self._pending, self._shown = [], 0
        else:
            self._shown = max(self._shown, len(certain))
        return printable(piece)

    def finish(self) -> str:
        """What is left, with U+FFFD for bytes that never became a character."""
        piece = self._decode(self._pending)[self._shown :] if self._pending else ""
        self._pending, self._shown = [], 0
        return printable(piece)


def printable(text: str) -> str:
    """`text` with control characters other than newline and tab replaced."""
    return "".join(_REPLACEMENT if _is_control(character) else character for character in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character not in "\n\t"

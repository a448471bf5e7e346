"""How text becomes token ids: one reference, one fast way that must give the same ids.

`huggingface` (tokenizers) is the definition: it trains, decodes and encodes whatever a tokenizer.json says.
`gigatoken` encodes some 50 times faster, for the split patterns that it has been written for; the pattern that
`train_tokenizer` uses is one of them. Nothing chooses between them but the user: a tokenizer that gigatoken does not
know is an error that says so, and `Tokenizer.check_parity` compares ids on the corpus itself.

Both run on the calling thread and release Python's lock: a task of the preparation graph is one process on one core.
"""

import enum
import json
import re
from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer as Backend

from data_pipeline.errors import DataError

Encode = Callable[[str], np.ndarray]
"""Text -> ids, uint32 [tokens]. No special token is added, none is recognised."""


class Encoder(enum.Enum):
    """Who encodes."""

    huggingface = "huggingface"
    gigatoken = "gigatoken"


# Letters, digits and marks that Unicode 17.0 assigned. gigatoken 0.10 knows them, tokenizers 0.23 (Unicode 16.0) takes
# them for punctuation, so the two cut differently around them: a text with one of these goes to the reference. A test
# compares all 1,112,064 code points and fails when another version of either library moves this border.
_UNICODE_17 = re.compile(
    "[\u088f\u0c5c\u0cdc\u1acf-\u1add\u1ae0-\u1aeb\ua7ce\ua7cf\ua7d2\ua7d4\ua7f1\U00010940-\U00010959"
    "\U00010ec5-\U00010ec7\U00010efa\U00010efb\U00011b60-\U00011b67\U00011db0-\U00011ddb\U00011de0-\U00011de9"
    "\U00016ea0-\U00016eb8\U00016ebb-\U00016ed3\U00016ff2-\U00016ff6\U000187f8-\U000187ff\U00018d09-\U00018d1e"
    "\U00018d80-\U00018df2\U0001e6c0-\U0001e6de\U0001e6e0-\U0001e6f5\U0001e6fe\U0001e6ff\U0002b73a-\U0002b73f"
    "\U0002cea2-\U0002cead\U000323b0-\U00033479]"
)
# gigatoken 0.10 keeps every word that it has met and never forgets one, up to 15 bytes of memory for a byte of text
# without repetitions: it is loaded anew (0.1 s) after so much text.
_RENEW_BYTES = 64 << 20


def huggingface_encode(backend: Backend) -> Encode:
    """The reference."""

    def encode(text: str) -> np.ndarray:
        # A batch of one: unlike `encode`, it computes no offsets. More than one would use every core of the node.
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.uint32)

    return encode


class GigatokenEncode:
    """The fast way. Calling it is `huggingface_encode`, id for id.

    content: of the tokenizer.json. reference: for texts on which the two libraries' versions of Unicode differ.
    Raises DataError for a tokenizer that gigatoken cannot do exactly.
    """

    def __init__(self, content: str, reference: Encode) -> None:
        self._content = _gigatoken_json(content)
        self._reference = reference
        self._load()

    def _load(self) -> None:
        import gigatoken

        try:
            self._tokenizer = gigatoken.Tokenizer.from_json(self._content)
        except RuntimeError as error:
            raise _refusal(" ".join(str(error).split("Location:")[0].split())) from error
        self._bytes_left = _RENEW_BYTES

    def __call__(self, text: str) -> np.ndarray:
        """uint32 [tokens]."""
        if not text.isascii() and _UNICODE_17.search(text):
            return self._reference(text)
        if self._bytes_left < 0:
            self._load()
        self._bytes_left -= len(text)
        return self._tokenizer.encode(text)


def _refusal(reason: str) -> DataError:
    return DataError(f"encoder=gigatoken: cannot encode with this tokenizer ({reason}); set encoder=huggingface")


def _gigatoken_json(content: str) -> str:
    """The tokenizer.json for gigatoken, or a DataError: it overlooks, without a word, what is checked here."""
    tokenizer = json.loads(content)
    model = tokenizer["model"]
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise _refusal(f"its model has {option}={model[option]!r}")
    if tokenizer["normalizer"] is not None:
        raise _refusal("it has a normalizer")
    steps = tokenizer["pre_tokenizer"]
    steps = steps.get("pretokenizers", [steps])
    kinds = [step["type"] for step in steps]
    plain = kinds == ["ByteLevel"] and steps[0]["use_regex"]
    split = kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"] and _keeps_every_match(steps[0])
    if not (plain or split):
        raise _refusal(f"its pre_tokenizer is {' + '.join(kinds)}, not ByteLevel or one Split + ByteLevel")
    # gigatoken reads added tokens from text, and cannot be told not to. Without them their spelling is just text.
    return json.dumps({**tokenizer, "added_tokens": [], "post_processor": None})


def _keeps_every_match(split: dict) -> bool:
    """Whether a Split step yields its pattern's matches: `Isolated`, or the old spelling `Removed` and inverted."""
    return (split["behavior"], split["invert"]) in (("Isolated", False), ("Removed", True))

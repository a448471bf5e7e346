"""Templates that take too long or too much end with one line; the number of processes changes nothing."""

import resource
import time

import numpy as np
import pytest

from data_pipeline.errors import DataError
from loopcoder_train.finetune import encoding
from loopcoder_train.finetune.encoding import REFUSED, Recipe, encode_all
from tests.unit.finetune.conftest import TEMPLATE, conversation


def recipe(corpus, template=TEMPLATE, **changes):
    return Recipe(
        template=template,
        path="custom.jinja",
        tokenizer_file=corpus.directory / "tokenizer.json",
        end_of_document_id=corpus.manifest.end_of_document_id,
        end_token="<|im_end|>",
        thinking=False,
        **changes,
    )


CONVERSATIONS = [conversation(("user", f"q{n}"), ("assistant", f"a{n}")) for n in range(150)]


def test_order_and_tokens_do_not_depend_on_the_processes(corpus):
    template = TEMPLATE + "{% if messages[0].content == 'q7' %}{{ raise_exception('no') }}{% endif %}"
    one, two = (list(encode_all(recipe(corpus, template), CONVERSATIONS, workers)) for workers in (1, 2))
    assert [row.name for row, _ in one] == [row.name for row in CONVERSATIONS]
    assert [result for _, result in one if isinstance(result, str)] == [REFUSED] and one[7][1] == REFUSED
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert a == b if isinstance(a, str) else np.array_equal(a.tokens, b.tokens)


def test_the_time_is_that_of_one_conversation_not_of_many(corpus, monkeypatch):
    allowed = []
    monkeypatch.setattr(encoding, "_limit", lambda what, _soft: allowed.append(what))
    monkeypatch.setattr(encoding._Process, "recipe", recipe(corpus), raising=False)
    monkeypatch.setattr(encoding._Process, "chat", None)
    assert len(encoding._encode(tuple(CONVERSATIONS[:5]))) == 5
    assert allowed == [resource.RLIMIT_CPU] * 6  # the template itself, then each conversation


HUNGRY = {
    "loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "took more than 1 s"),
    "power": ("{{ 10 ** (10 ** 8) > 1 }}", "took more than 1 s"),
    "memory": ("{{ 'x' * 10 ** 10 }}", "memory"),
    "doubling": (
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "memory",
    ),
}


@pytest.mark.parametrize("name", HUNGRY)
def test_a_hungry_template_is_ended(corpus, name):
    template, said = HUNGRY[name]
    began = time.monotonic()
    with pytest.raises(DataError) as error:
        list(encode_all(recipe(corpus, template, cpu_seconds=1, memory_bytes=1 << 28), CONVERSATIONS[:1], 1))
    assert said in str(error.value) and "custom.jinja" in str(error.value)
    assert time.monotonic() - began < 60

import pytest
import torch

from data_pipeline.tokenizer import MIN_VOCAB_SIZE, train_tokenizer
from loopcoder_train.evaluation.sampling import TextStream, choose_token, printable


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(logits, count=400, **options):
    defaults = {"temperature": 1.0, "top_k": None, "top_p": None}
    random = generator()
    chosen = [choose_token(logits, generator=random, **{**defaults, **options}) for _ in range(count)]
    return torch.bincount(torch.tensor(chosen), minlength=len(logits)) / count


LOGITS = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()


def test_greedy_takes_the_first_of_the_best():
    assert (
        choose_token(torch.tensor([1.0, 3.0, 3.0]), temperature=0, top_k=None, top_p=None, generator=generator()) == 1
    )


def test_shares():
    assert draws(LOGITS, 4000).tolist() == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.03)


def test_temperature_sharpens():
    assert draws(LOGITS, temperature=0.1)[1] > 0.99


def test_top_k_and_top_p():
    assert set(draws(LOGITS, top_k=2).nonzero().flatten().tolist()) == {1, 3}
    assert set(draws(LOGITS, top_p=0.7).nonzero().flatten().tolist()) == {1, 3}  # 0.5 + 0.25 reach 0.7
    assert set(draws(LOGITS, top_p=0.76).nonzero().flatten().tolist()) == {1, 2, 3}
    assert set(draws(LOGITS, top_p=0.01).nonzero().flatten().tolist()) == {1}
    assert set(draws(LOGITS, top_k=100, top_p=1.0).nonzero().flatten().tolist()) == {0, 1, 2, 3}


def test_text_grows_by_whole_characters():
    tokenizer = train_tokenizer(iter(["plain"]), MIN_VOCAB_SIZE)  # bytes only
    text = "aé数😀\n"
    stream = TextStream(tokenizer.decode)
    pieces = [stream.add(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.finish() == text
    assert [piece for piece in pieces if piece] == list(text)


def test_bytes_that_never_become_a_character_come_out_at_the_end():
    tokenizer = train_tokenizer(iter(["plain"]), MIN_VOCAB_SIZE)
    first_of_three = tokenizer.encode("数")[0]
    letter = tokenizer.encode("x")[0]
    stream = TextStream(tokenizer.decode)
    pieces = [stream.add(token) for token in (letter, first_of_three, letter, first_of_three)]
    assert pieces == ["x", "", "\ufffdx", ""]
    assert stream.finish() == "\ufffd"


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2J\tb\r\n\u00a0é") == "a\ufffd[2J\tb\ufffd\n\u00a0é"

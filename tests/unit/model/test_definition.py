"""The plain model against the equations written out (naive.py), and against Hugging Face's Llama for R = 1."""

import pytest
import torch
from torch.nn import functional as F

from loopcoder_train.config import GateInput, LoopKind
from loopcoder_train.model import build_model, cross_loop, gated_attention, plt
from loopcoder_train.model.documents import Documents
from loopcoder_train.model.gated_attention import SharedKV
from tests.conftest import RELEASED_PRESET, randomize, small_model
from tests.unit.model.naive import naive_logits

LENGTHS = [1, 7, 4]  # documents packed into one row: shorter and longer than the window, and a single token
DOUBLE_TOLERANCE = 1e-5  # the model's RoPE tables and angles are fp32 on purpose; everything else here is fp64


def compare(config, seed=0):
    """Worst relative error of logits and of any gradient between the model and the naive computation."""
    model = randomize(build_model(config), seed).double()
    tokens = torch.randint(0, config.vocab_size, (1, sum(LENGTHS)))
    document_ids = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None]
    targets = torch.randint(0, config.vocab_size, (sum(LENGTHS),))
    logits = model(tokens, document_ids)[0]
    F.cross_entropy(logits, targets).backward()

    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected = torch.cat([naive_logits(weights, config, part.tolist()) for part in tokens[0].split(LENGTHS)])
    F.cross_entropy(expected, targets).backward()
    errors = {"logits": relative(logits, expected)}
    errors |= {name: relative(p.grad, weights[name].grad) for name, p in model.named_parameters()}
    return errors


def relative(actual, expected):
    """max|difference| / max|reference|."""
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


CASES = {
    "r1": {"num_loops": 1},
    "r2 paper preset": {"num_loops": 2},
    "r2 released preset": {"num_loops": 2, **RELEASED_PRESET},
    "r3 query gate": {"num_loops": 3, "gate_input": GateInput.query},
    "r3 released preset, tied": {"num_loops": 3, "tie_embeddings": True, **RELEASED_PRESET},
    "r2 window of self only": {"num_loops": 2, "window_left": 0},
    "r2 sequential": {"num_loops": 2, "loop_kind": LoopKind.sequential},
    "r2 multi-head": {"num_loops": 2, "num_key_value_heads": 6},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_logits_and_gradients_equal_the_equations(changes):
    errors = compare(small_model(**changes))
    assert max(errors.values()) < DOUBLE_TOLERANCE, errors


def swap_gate(monkeypatch):
    monkeypatch.setattr(gated_attention, "blend", lambda g, a, b: (1 - g[..., None]) * a + g[..., None] * b)


def drop_shift(monkeypatch):
    monkeypatch.setattr(plt, "shift_right", lambda hidden, starts: hidden)


def shift_across_documents(monkeypatch):
    first_only = lambda starts: torch.arange(starts.shape[1]).expand(starts.shape) == 0  # noqa: E731
    monkeypatch.setattr(plt, "shift_right", lambda h, s: cross_loop.shift_right(h, first_only(s)))


def widen_window(monkeypatch):
    visible = Documents.visible
    monkeypatch.setattr(Documents, "visible", lambda self, w, *q: visible(self, None if w is None else w + 1, *q))


def detach_shared(monkeypatch):
    attend = plt.gated_attention
    monkeypatch.setattr(
        plt,
        "gated_attention",
        lambda q, own, shared, *rest: attend(q, own, SharedKV(shared.key.detach(), shared.value.detach()), *rest),
    )


def attend_across_documents(monkeypatch):
    monkeypatch.setattr(Documents, "additive_mask", lambda self, w, dtype, *q: _mask_without_documents(self, w, dtype))


def _mask_without_documents(documents, window_left, dtype):
    whole_rows = Documents(documents.batch_size, documents.sequence_length, None, documents.device)
    seen = whole_rows.visible(window_left)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf")).unsqueeze(1)


@pytest.mark.parametrize(
    "mistake",
    [swap_gate, drop_shift, shift_across_documents, widen_window, detach_shared, attend_across_documents],
    ids=lambda f: f.__name__,
)
def test_a_mistake_is_felt(monkeypatch, mistake):
    mistake(monkeypatch)
    errors = compare(small_model(num_loops=2, **RELEASED_PRESET))
    assert max(errors.values()) > 100 * DOUBLE_TOLERANCE


@pytest.mark.parametrize("tied", [False, True])
def test_one_loop_is_hugging_face_llama(tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = small_model(num_loops=1, head_dim=8, tie_embeddings=tied)
    model = randomize(build_model(config))
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=tied,
        )
    )
    missing, unexpected = llama.load_state_dict(model.state_dict(), strict=False)
    assert set(missing) <= ({"lm_head.weight"} if tied else set()) and not unexpected
    llama.tie_weights()
    tokens = torch.randint(0, config.vocab_size, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), llama(tokens).logits, rtol=1e-5, atol=1e-5)

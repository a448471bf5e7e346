"""A whole diagnosis of packed rows against the oracle; pieces, packing, one loop, a fresh model."""

import math

import numpy as np
import pytest
import torch

from loopcoder_train.config import GateInput, LoopKind
from loopcoder_train.diagnostics.measure import measure
from loopcoder_train.diagnostics.samples import Sample, SampledRow
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.lenses.attention_weights import spread_queries
from loopcoder_train.model import IGNORE_INDEX, build_model
from tests.conftest import RELEASED_PRESET, randomize, small_model
from tests.unit.diagnostics.oracle import Saved, expected

LENGTHS = [9, 3, 13]  # documents of a row, without their end tokens; the window is 5
VARIANTS = {
    "r1": {"num_loops": 1},
    "r2 paper preset": {"num_loops": 2},
    "r3 released preset": {"num_loops": 3, **RELEASED_PRESET},
    "r3 query gate": {"num_loops": 3, "gate_input": GateInput.query},
    "r2 sequential": {"num_loops": 2, "loop_kind": LoopKind.sequential},
    "r2 tied, window of self": {"num_loops": 2, "tie_embeddings": True, "window_left": 0},
}


def build(**changes):
    return randomize(build_model(small_model(**changes))).double().requires_grad_(False)


def packed_row(lengths=LENGTHS, seed=0):
    """Documents one after the other, each followed by an end token that has no label."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels, documents, samples = [], [], [], []
    for number, length in enumerate(lengths):
        tokens = torch.randint(1, 61, (length + 1,), generator=generator)
        first = sum(map(len, ids))
        samples.append(Sample(number, first, first + length))
        ids.append(tokens)
        labels.append(torch.cat([tokens[1:], torch.tensor([IGNORE_INDEX])]))
        documents.append(torch.full_like(tokens, number))
    parts = (torch.cat(part)[None] for part in (ids, labels, documents))
    return SampledRow(MicroBatch(*parts, torch.zeros(1, dtype=torch.long)), samples)


def means(found):
    """{(loop, lens, layer): {document: mean}}."""
    return {
        (key.loop, key.lens, key.layer): {index: total / count for index, (total, count) in of_samples.items()}
        for key, of_samples in found.values.items()
    }


def assert_equal(found, wanted, rel, at_zero=1e-9):
    assert set(found) == set(wanted)
    for key, of_samples in wanted.items():
        assert found[key] == pytest.approx(of_samples, rel=rel, abs=at_zero), key


@pytest.mark.parametrize("most_queries", [None, 4])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_number_equals_the_oracle(changes, most_queries):
    model, row = build(**changes), packed_row()
    saved = Saved()
    for _ in model.loops(row.batch.input_ids, row.batch.document_ids, saved):
        pass
    wanted = {}
    for sample in row.samples:
        queries = spread_queries(len(sample), most_queries, torch.device("cpu")).tolist()
        ids, labels = row.batch.input_ids[0], row.batch.labels[0]
        numbers = expected(model, ids, labels, saved, sample.first, sample.stop, queries)
        for key, value in numbers.items():
            wanted.setdefault(key, {})[sample.document] = value
    # RoPE's tables are fp32, and naive.py rotates in fp64: the fixed points alone feel it.
    assert_equal(means(measure(model, [row], most_queries=most_queries)), wanted, rel=2e-6, at_zero=5e-6)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_pieces_change_nothing(changes):
    model, rows = build(**changes), [packed_row()]
    whole = means(measure(model, rows, most_queries=None))
    assert_equal(means(measure(model, rows, most_queries=None, piece_elements=1)), whole, rel=1e-9)
    assert_equal(means(measure(model, rows, most_queries=None, piece_elements=5 * 6 * 13)), whole, rel=1e-9)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_packed_document_measures_as_alone(changes):
    model, row = build(**changes), packed_row()
    packed = means(measure(model, [row], most_queries=6))
    for sample in row.samples:
        part = slice(sample.first, sample.stop + 1)
        batch = MicroBatch(
            *(getattr(row.batch, name)[:, part] for name in ("input_ids", "labels", "document_ids")), None
        )
        batch.source_ids = row.batch.source_ids
        alone = SampledRow(batch, [Sample(sample.document, 0, len(sample))])
        wanted = {key: {sample.document: values[sample.document]} for key, values in packed.items()}
        assert_equal(means(measure(model, [alone], most_queries=6)), wanted, rel=1e-6)


def test_what_needs_a_second_loop_is_absent_for_one():
    found = measure(build(num_loops=1), [packed_row()], most_queries=None).estimates()
    assert {key.loop for key in found} == {1}
    lenses = {key.lens for key in found}
    assert lenses == {
        "step_size", "step_size_normed", "effective_rank", "effective_rank_raw", "fixed_point_gap",
        "fixed_point_gap_relative", "attention_entropy", "head_rank", "head_cosine", "loss", "output_entropy",
        "true_token_rank",
    }  # fmt: skip
    assert all(math.isfinite(value.mean) and math.isfinite(value.half_width) for value in found.values())


@pytest.mark.parametrize("gate_input", GateInput)
def test_the_gates_of_a_fresh_model_are_half_open(gate_input):
    model = build_model(small_model(num_loops=3, gate_input=gate_input)).requires_grad_(False)
    found = measure(model, [packed_row()], most_queries=None).estimates()
    gates = {(key.loop, key.layer): value for key, value in found.items() if key.lens == "gate_mean"}
    assert set(gates) == {(loop, layer) for loop in (2, 3) for layer in (None, 0, 1)}
    assert all((value.mean, value.half_width) == (0.5, 0.0) for value in gates.values())


def test_a_stack_that_does_nothing_is_a_fixed_point_and_shares_of_nothing_are_absent():
    """Layers that add zero: every sequential loop leaves E as it is."""
    model = build(num_loops=3, loop_kind=LoopKind.sequential)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    found = {(key.loop, key.lens): value for key, value in measure(
        model, [packed_row()], most_queries=None
    ).estimates().items() if key.layer is None}  # fmt: skip
    for lens in ("step_size", "fixed_point_gap", "fixed_point_gap_loop", "fixed_point_gap_relative", "output_kl"):
        assert found[2, lens].mean == 0.0
    assert (2, "attention_kl_share") not in found and (2, "output_kl_share") not in found
    assert found[2, "attention_kl"].mean == 0.0 and found[2, "angular_change"].mean == 0.0


def test_means_over_tokens_weigh_documents_by_length():
    model, row = build(num_loops=1), packed_row()
    found = measure(model, [row], most_queries=None)
    loss = {key: value for key, value in found.estimates().items() if key.lens == "loss"}
    labels = row.batch.labels[0]
    logits = model(row.batch.input_ids, row.batch.document_ids)[0]
    used = labels != IGNORE_INDEX
    expected_loss = torch.nn.functional.cross_entropy(logits[used], labels[used])
    assert [value.mean for value in loss.values()] == pytest.approx([float(expected_loss)], rel=1e-9)


def test_bf16_stays_near_fp64():
    row, model = packed_row(), build(num_loops=2, **RELEASED_PRESET)
    exact = measure(model, [row], most_queries=None).estimates()
    rounded = measure(model.bfloat16(), [row], most_queries=None).estimates()
    assert set(rounded) == set(exact)
    for key in exact:
        if "kl" not in key.lens and "gap" not in key.lens and "share" not in key.lens:
            assert rounded[key].mean == pytest.approx(exact[key].mean, rel=0.1, abs=0.05), key
    assert np.isfinite([value.mean for value in rounded.values()]).all()

"""A new run that starts from another run's weights: which tensors, which are new, and what is refused."""

from dataclasses import replace

import pytest
import torch

from loopcoder_train.checkpoint import checkpoints_of, save_checkpoint
from loopcoder_train.config import GateInput, LoopKind, Precision, RunConfig, TrainingConfig, UserError
from loopcoder_train.config.compare import result_options
from loopcoder_train.engines.plain import PlainEngine
from loopcoder_train.model.names import is_gate
from loopcoder_train.training.init_from import init_weights
from loopcoder_train.training.resume import RunSnapshot
from loopcoder_train.training.state import TrainingState
from tests.conftest import randomize, small_model

CPU = torch.device("cpu")
TOKENIZER = "abc" * 10


def engine_for(model, precision=Precision.fp32, seed=0):
    training = TrainingConfig(num_steps=9, global_batch_size=1, micro_batch_size=1, precision=precision)
    return PlainEngine(RunConfig(run_dir="unused", model=model, training=training, seed=seed), CPU)


def save(run_dir, model, step=4, seed=0, tokenizer=TOKENIZER):
    """A checkpoint of random weights, as a run would save it; returns the weights."""
    engine = engine_for(model)
    randomize(engine.model, seed=seed + step)  # in fp32 the masters are the model's weights
    state, options = TrainingState(step=step, tokens=100 * step), result_options(engine.config)
    snapshot = RunSnapshot(state, {}, {"tokenizer_hash": tokenizer}, {}, options)
    shards = engine.state_shards(loading=False)
    save_checkpoint(run_dir, step, shards, snapshot.to_json(), keep_last=9, keep_every_steps=None)
    return {name: tensor.clone() for name, tensor in engine.master.items()}


def start(source, model, precision=Precision.fp32, tokenizer=TOKENIZER):
    """An engine of another seed after `init_weights`, and where its weights came from."""
    engine = engine_for(replace(model, init_from=str(source)), precision, seed=1)
    return engine, init_weights(engine.config, engine, tokenizer)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (None, None),
        ("runs/a", ("runs/a", None)),
        ("runs/a@120", ("runs/a", 120)),
        ("runs/me@home", ("runs/me@home", None)),
        ("runs/a@5@120", ("runs/a@5", 120)),
        ("runs/a@5/", ("runs/a@5/", None)),
    ],
)
def test_a_source_is_a_folder_and_perhaps_a_step(written, meant):
    assert small_model(init_from=written).init_source == meant


def test_without_a_source_nothing_happens(tmp_path):
    engine = engine_for(small_model())
    before = {name: tensor.clone() for name, tensor in engine.master.items()}
    assert init_weights(engine.config, engine, TOKENIZER) is None
    assert all(torch.equal(engine.master[name], value) for name, value in before.items())


@pytest.mark.parametrize("precision", Precision)
def test_weights_are_the_sources_and_the_optimizer_is_fresh(tmp_path, precision):
    weights = save(tmp_path, small_model())
    engine, origin = start(tmp_path, small_model(), precision)
    live = dict(engine.model.named_parameters())
    for name, value in weights.items():
        assert torch.equal(engine.master[name], value), name
        assert torch.equal(live[name], value.to(live[name].dtype)), name
    assert engine.state_scalars() == {"optimizer_step": 0}
    moments = [shard.data for shard in engine.state_shards(loading=False) if shard.name.startswith("adam")]
    assert moments and not any(moment.any() for moment in moments)
    assert origin.step == 4 and len(origin.notes) == 1 and "400 tokens trained" in origin.notes[0]


@pytest.mark.parametrize("gate_input", GateInput)
def test_growing_from_one_loop_makes_the_gates_new(tmp_path, gate_input):
    weights = save(tmp_path, small_model(num_loops=1))
    engine, origin = start(tmp_path, small_model(num_loops=2, gate_input=gate_input))
    gates = {name for name in engine.master if is_gate(name)}
    assert weights.keys() == engine.master.keys() - gates
    assert all(torch.equal(engine.master[name], value) for name, value in weights.items())
    for name in gates:
        assert torch.equal(engine.master[name], torch.full_like(engine.master[name], name.endswith("norm.weight")))
    assert f"{len(gates)} tensors of gates are new" in origin.notes[-1]


def test_shrinking_to_one_loop_leaves_the_gates_behind(tmp_path):
    weights = save(tmp_path, small_model(num_loops=3))
    engine, origin = start(tmp_path, small_model(num_loops=1))
    assert all(torch.equal(value, weights[name]) for name, value in engine.master.items())
    assert f"{len(weights) - len(engine.master)} tensors of gates are left behind" in origin.notes[-1]


def test_two_loops_become_three_and_a_step_can_be_named(tmp_path):
    older, newest = save(tmp_path, small_model(num_loops=2)), save(tmp_path, small_model(num_loops=2), step=8)
    for source, weights in ((tmp_path, newest), (f"{tmp_path}@4", older)):
        engine, origin = start(source, small_model(num_loops=3))
        assert all(torch.equal(engine.master[name], value) for name, value in weights.items())
        assert len(origin.notes) == 1, "nothing is new or left behind"


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    older = save(tmp_path, small_model())
    save(tmp_path, small_model(), step=8)
    (checkpoints_of(tmp_path)[-1].path / "state.json").write_text("{}")
    engine, origin = start(tmp_path, small_model())
    assert all(torch.equal(engine.master[name], value) for name, value in older.items())
    assert origin.step == 4 and "WARNING" in origin.notes[0] and "step-00000008" in origin.notes[0]


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({}, {"hidden_size": 40}, r"model\.embed_tokens\.weight: shape \[61, 48\] there, shape \[61, 40\] in this"),
        ({}, {"vocab_size": 64}, r"embed_tokens\.weight: shape \[61, 48\] there, shape \[64, 48\] in this model"),
        ({}, {"num_layers": 3}, r"layers\.2\.input_layernorm\.weight: no such tensor there, shape \[48\] in this"),
        ({"num_layers": 3}, {}, r"layers\.2\.\S+: shape \[\S+\] there, no such tensor in this model"),
        ({"num_layers": 3}, {"num_loops": 1}, r"layers\.2\.\S+: shape \[\S+\] there, no such tensor in this model"),
        ({"tie_embeddings": True}, {}, r"lm_head\.weight: no such tensor there, shape \[61, 48\] in this model"),
        ({}, {"tie_embeddings": True}, r"lm_head\.weight: shape \[61, 48\] there, no such tensor in this model"),
        ({}, {"gate_input": GateInput.query}, r"has model\.gate_input=hidden, this run query"),
        ({}, {"num_attention_heads": 10, "head_dim": 6}, r"has model\.num_attention_heads=6, this run 10"),
    ],
)
def test_other_models_are_refused(tmp_path, there, here, said):
    save(tmp_path, small_model(**there))
    with pytest.raises(UserError, match=said) as refusal:
        start(tmp_path, small_model(**here))
    assert str(refusal.value).startswith(f"model.init_from={tmp_path}: ") and "\n" not in str(refusal.value)


def test_the_comparison_model_has_no_gates_either(tmp_path):
    save(tmp_path, small_model(num_loops=2, loop_kind=LoopKind.sequential))
    assert "are new" in start(tmp_path, small_model(num_loops=2))[1].notes[-1]


def test_another_tokenizer_is_refused(tmp_path):
    save(tmp_path, small_model())
    with pytest.raises(UserError, match=r"another tokenizer \(abcabcabcabc\) .*\(defdefdefdef\)"):
        start(tmp_path, small_model(), tokenizer="def" * 10)


def test_no_good_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no good checkpoint is there; "):
        start(tmp_path / "nothing", small_model())
    save(tmp_path, small_model())
    with pytest.raises(UserError, match="no good checkpoint of step 5 is there; "):
        start(f"{tmp_path}@5", small_model())
    (checkpoints_of(tmp_path)[0].path / "COMMIT").unlink()
    with pytest.raises(UserError, match=r"no good checkpoint is there \(.*no COMMIT"):
        start(tmp_path, small_model())

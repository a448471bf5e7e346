"""Runs match, or the difference is named: one fault at a time in the facts of a real run."""

import dataclasses
from pathlib import Path

import pytest

from loopcoder_train.config import DataConfig, EngineKind, FinetuneConfig, OptimizerConfig, RunConfig
from loopcoder_train.config.compare import result_options
from loopcoder_train.config.data import SegmentConfig
from loopcoder_train.config.io import to_dict
from loopcoder_train.config.keys import flatten
from loopcoder_train.engines.fingerprint import box_fingerprint
from loopcoder_train.model.init import initial_value
from loopcoder_train.model.names import parameter_shapes
from loopcoder_train.model.state import whole
from loopcoder_train.sweep.facts import RunFacts, read_facts
from loopcoder_train.sweep.matching import Status, inherited, match_runs
from loopcoder_train.training.schedule import learning_rate
from tests.unit.evaluation.trained_run import train

AXIS = "model.num_loops"
ENTRY = {"batch": 4, "step": 5, "cause": "spike", "loss": 9.0, "grad_norm": 1.0, "back_to": None}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> RunFacts:
    return _facts(train(tmp_path_factory.mktemp("r1"), num_loops=1))


@pytest.fixture(scope="module")
def looped(tmp_path_factory) -> RunFacts:
    return _facts(train(tmp_path_factory.mktemp("r2"), num_loops=2))


def _facts(run_dir: Path) -> RunFacts:
    return dataclasses.replace(read_facts(run_dir), heldout="the same")


def with_options(facts: RunFacts, **changes) -> RunFacts:
    """The facts of a run whose run.yaml says so; nothing else about it changes."""
    return dataclasses.replace(facts, options=facts.options | {k.replace("__", "."): v for k, v in changes.items()})


def with_config(facts: RunFacts, config: RunConfig, **changes) -> RunFacts:
    """The facts of a run of `config`: its options, those of its checkpoints, and the rates of its schedule."""
    snapshots = {
        step: dataclasses.replace(saved, options=result_options(config)) for step, saved in facts.snapshots.items()
    }
    steps = {
        tokens: (learning_rate(tokens, total_tokens=config.total_tokens, optimizer=config.optimizer,
                               schedule=config.schedule), labels)
        for tokens, (_, labels) in facts.steps.items()
    }  # fmt: skip
    told = {"options": flatten(to_dict(config)), "snapshots": snapshots, "steps": steps}
    return dataclasses.replace(facts, config=config, **{**told, **changes})


def with_rate(facts: RunFacts, peak_lr: float) -> RunFacts:
    optimizer = dataclasses.replace(facts.config.optimizer, peak_lr=peak_lr)
    return with_config(facts, dataclasses.replace(facts.config, optimizer=optimizer))


def with_snapshot(facts: RunFacts, change) -> RunFacts:
    snapshots = {
        step: dataclasses.replace(
            saved,
            stream=dict(saved.stream),
            history=dict(saved.history),
            options=dict(saved.options),
            training=dataclasses.replace(saved.training),
        )
        for step, saved in facts.snapshots.items()
    }
    change(snapshots)
    return dataclasses.replace(facts, snapshots=snapshots)


def refused(*runs: RunFacts, axis: str | None = AXIS) -> str:
    match = match_runs([(f"run {number}", facts) for number, facts in enumerate(runs, start=1)], axis)
    assert not match.matched
    return match.first_difference


def test_runs_that_differ_in_the_swept_option_match(plain, looped):
    match = match_runs([("R = 1", plain), ("R = 2", looped)], AXIS)
    assert match.matched and match.first_difference is None, match
    assert {check.status for check in match.checks} == {Status.same}
    names = [check.name for check in match.checks]
    assert {"options", "initial values", "token stream", "schedule", "corpus", "tokenizer"} <= set(names)
    assert plain.initial.keys() < looped.initial.keys(), "gates are new in R = 2, all else is shared"
    assert match.free == ("data.corpus_dir",), "where the corpus lies, which its hash judges"


def test_the_swept_option_must_be_named(plain, looped):
    assert AXIS in refused(plain, looped, axis=None) and AXIS in refused(plain, looped, axis="optimizer.peak_lr")


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", 1), ("optimizer.peak_lr", 1e-3), ("model.hidden_scale", 0.5), ("schedule.warmup_fraction", 0.2)],
)
def test_another_option_is_named(plain, looped, option, value):
    said = refused(plain, dataclasses.replace(looped, options=looped.options | {option: value}))
    assert said.startswith("options: run 2 against run 1: ") and option in said and str(value) in said


def initial_of(facts: RunFacts, seed: int) -> dict[str, int]:
    return {
        name: int(box_fingerprint(whole(name, initial_value(name, shape, facts.config.model, seed))))
        for name, shape in parameter_shapes(facts.config.model).items()
    }


def test_what_a_run_recorded_is_what_its_seed_gives(plain, looped):
    assert plain.initial == initial_of(plain, seed=0) and looped.initial == initial_of(looped, seed=0)


def test_another_seed_gives_other_first_values(plain, tmp_path):
    other = dataclasses.replace(plain, initial=initial_of(plain, seed=1))
    said = refused(plain, other)
    assert said.startswith("initial values:") and "model.embed_tokens.weight" in said
    norms = [name for name in plain.initial if name.endswith("norm.weight")]
    assert all(plain.initial[name] == other.initial[name] for name in norms), "ones, whatever the seed"


def test_one_changed_tensor_and_other_first_weights_are_named(plain, looped):
    name = "model.layers.1.mlp.up_proj.weight"
    assert name in refused(plain, dataclasses.replace(looped, initial=looped.initial | {name: 1}))
    assert "elsewhere" in refused(plain, dataclasses.replace(looped, first_weights="elsewhere"))
    forgotten = dataclasses.replace(plain, initial={}, first_weights=None)
    assert "has no record of the weights" in refused(forgotten, forgotten), "two unknowns are not equal"


@pytest.mark.parametrize(
    ("key", "check"),
    [("manifest_hash", "corpus"), ("tokenizer_hash", "tokenizer"), ("mixture_hash", "token stream")],
)
def test_other_data_are_named(plain, looped, key, check):
    def change(snapshots):
        for saved in snapshots.values():
            saved.stream[key] = "other"

    said = refused(plain, with_snapshot(looped, change))
    assert said.startswith(f"{check}: run 2 against run 1: ") and key in said and "other" in said


def test_a_stream_that_differs_at_one_checkpoint_is_named(plain, looped):
    assert "step 3: position is 7" in refused(
        plain, with_snapshot(looped, lambda snapshots: snapshots[3].stream.update(position=7))
    )


def test_other_consumption_and_an_audit_that_disagrees_are_named(plain, looped):
    def change(snapshots):
        snapshots[6].training.source_tokens = {"a": 1}

    assert "source_tokens" in refused(plain, with_snapshot(looped, change))
    digests = {saved.training.data_digest for saved in plain.snapshots.values()}
    assert len(digests) == len(plain.snapshots) and "" not in digests
    read_others = with_snapshot(looped, lambda snapshots: setattr(snapshots[6].training, "data_digest", "ab" * 16))
    assert "step 6: data_digest is abab" in refused(plain, read_others)
    unread = with_snapshot(plain, lambda snapshots: setattr(snapshots[6].training, "data_digest", ""))
    assert "no record of the tokens" in refused(unread, unread)
    assert "the audit says: lost" in refused(plain, dataclasses.replace(looped, audit=["lost"]))
    assert refused(dataclasses.replace(plain, audit=["lost"])).startswith("token stream: run 1: "), "the first too"


def test_other_learning_rates_and_labels_are_named(plain, looped):
    tokens = max(looped.steps)
    rate, labels = looped.steps[tokens]
    other = dataclasses.replace(with_rate(looped, 4e-3), options=looped.options)
    first = min(looped.steps)
    assert f"after {first} tokens the learning rate is 0.00386" in "".join(
        text for check in match_runs([("a", plain), ("b", other)], AXIS).checks for text in check.found
    )
    stray = dataclasses.replace(looped, steps=looped.steps | {tokens: (rate * 1.0001, labels)})
    said = refused(plain, stray)
    assert said.startswith(f"schedule: run 2 against run 1: after {tokens} tokens it recorded the rate")
    assert "it recorded the rate" in refused(stray, axis="optimizer.peak_lr"), "whatever is swept, and alone"
    other = dataclasses.replace(looped, steps=looped.steps | {tokens: (rate, labels - 1)})
    assert f"{labels - 1:,} had a label" in refused(plain, other)
    longer = dataclasses.replace(looped.config.training, num_steps=7)
    other = dataclasses.replace(looped, config=dataclasses.replace(looped.config, training=longer))
    said = refused(plain, other)
    assert said == "finished: run 2 against run 1: stands at step 6 of 7"


def test_ledgers_must_be_equal(plain, looped):
    def change(snapshots):
        snapshots[6].history = {**snapshots[6].history, "ledger": [ENTRY]}

    skipped = with_snapshot(looped, change)
    said = refused(plain, skipped)
    assert said == "skipped batches: run 2 against run 1: skipped 1 batches: 4, not none"
    assert match_runs([("a", skipped), ("b", skipped)], AXIS).matched, "the same batch, skipped by both"


def test_held_out_documents_must_be_equal(plain, looped):
    assert refused(plain, dataclasses.replace(looped, heldout="x")).startswith("held-out documents:")
    assert "loopcoder evaluate" in refused(plain, dataclasses.replace(looped, heldout=None))


def tuned(facts: RunFacts, **changes) -> RunFacts:
    """The facts of a run that was tuned from what `facts` tells of."""
    model = dataclasses.replace(facts.config.model, init_from=str(facts.run_dir))
    data = dataclasses.replace(facts.config.data, shuffle_block_tokens=DataConfig().shuffle_block_tokens)
    config = dataclasses.replace(facts.config, model=model, data=data, finetune=FinetuneConfig())
    told = {"plan_hash": "p", "initial": {}, "first_weights": f"{facts.run_dir}/checkpoints/step-00000006",
            "origin_commit": facts.commit, "pretraining_commit": facts.commit}  # fmt: skip
    return with_config(facts, config, **{**told, **changes})


def test_plans_must_be_equal(plain, looped):
    assert match_runs([("a", tuned(plain)), ("b", tuned(looped))], AXIS).matched, "each from its own pretraining"
    said = refused(tuned(plain), tuned(looped, plan_hash="q"))
    assert said == "conversations: run 2 against run 1: plan q, not p"
    assert "has no plan" in refused(tuned(plain, plan_hash=None), tuned(looped, plan_hash=None))


def test_a_tuned_run_starts_from_its_own_pretraining(plain, looped):
    said = refused(tuned(plain), tuned(looped, origin_commit=plain.commit))
    assert said.startswith("pretrained weights: run 2 against run 1: starts from ") and plain.commit[:8] in said


def test_options_that_were_changed_on_the_way_are_named(plain, looped):
    change = {"step": 3, "option": "optimizer.beta2", "before": 0.5, "after": 0.95}
    changed = with_snapshot(looped, lambda all_of: setattr(all_of[6].training, "option_changes", [change]))
    said = refused(plain, changed)
    assert said == "options: run 2 against run 1: changed on the way optimizer.beta2 to 0.95 after step 3, not nothing"
    assert match_runs([("a", changed), ("b", changed)], AXIS).matched, "both at the same step"
    edited = with_snapshot(looped, lambda all_of: all_of[6].options.update({"optimizer.beta2": 0.5}))
    assert "its last checkpoint was made with optimizer.beta2=0.5" in refused(plain, edited)


@pytest.mark.parametrize("axis", ["optimizer.peak_lr", "data.text_share", "training.num_steps", "model.init_std"])
def test_whatever_is_swept_faults_stay_faults(plain, axis):
    """No option explains an audit that disagrees, another corpus, a missing evaluation or weights from elsewhere."""

    def other_corpus(snapshots):
        for saved in snapshots.values():
            saved.stream["manifest_hash"] = "other"

    for other in (
        dataclasses.replace(plain, audit=["lost"]),
        dataclasses.replace(plain, heldout=None),
        dataclasses.replace(plain, heldout="others"),
        dataclasses.replace(plain, initial={}, first_weights="elsewhere"),
        with_snapshot(plain, other_corpus),
    ):
        assert refused(plain, other, axis=axis)


def test_what_tunings_do_not_inherit_is_the_same_in_all(plain):
    assert not inherited("optimizer.peak_lr") and not inherited("training.num_steps")
    assert inherited("model.num_loops") and inherited("data.sequence_length")


def test_an_option_with_parts_can_be_the_axis(plain):
    data = dataclasses.replace(plain.config.data, shares={"a": 0.5, "b": 0.5})
    other = with_config(plain, dataclasses.replace(plain.config, data=data))
    assert match_runs([("a", plain), ("b", other)], "data.shares").matched
    assert "data.shares" in refused(plain, other, axis="data.text_share")


def test_what_the_swept_option_changes_is_called_swept(plain):
    other = with_rate(plain, 1e-4)
    match = match_runs([("a", plain), ("b", other)], "optimizer.peak_lr")
    assert match.matched
    assert {check.name: check.status for check in match.checks}["schedule"] is Status.swept
    assert refused(plain, other, axis=AXIS), "but only if it is the swept one"


def test_runs_of_other_seeds_match_in_what_no_seed_changes(plain):
    other = dataclasses.replace(with_options(plain, seed=1), initial={"x": 1})
    other = with_snapshot(other, lambda all_of: [one.history.update(ledger=[ENTRY]) for one in all_of.values()])
    assert match_runs([("a", plain), ("b", other)], AXIS, other_seeds=True).matched
    assert not match_runs(
        [("a", plain), ("b", with_options(other, optimizer__beta1=0.5))], AXIS, other_seeds=True
    ).matched


def test_every_run_is_the_arm_that_it_is_called(plain, looped):
    runs = [("R = 1", plain), ("R = 2", looped)]
    meant = [{"seed": plain.config.seed, AXIS: loops} for loops in (1, 2)]
    check = match_runs(runs, AXIS, meant=meant).checks[1]
    assert (check.name, check.status, check.evidence) == ("swept option", Status.swept, f"{AXIS} is 1, 2")
    copied = match_runs([runs[0], ("R = 2", plain)], AXIS, meant=meant)
    assert not copied.matched and copied.first_difference == f"swept option: R = 2: {AXIS} is 1, not 2"


def test_a_seed_that_was_copied_is_no_other_seed(plain):
    meant = [{"seed": plain.config.seed + more, AXIS: 1} for more in (0, 1)]
    match = match_runs([("seed 0", plain), ("seed 1", plain)], AXIS, other_seeds=True, meant=meant)
    assert "seed 1: seed is" in match.first_difference


VALUES = {
    "word": ("optimizer.peak_lr", "1e-3", {"optimizer": OptimizerConfig(peak_lr=1e-3)}),
    "segments": (
        "data.segments",
        [{"from_batch": 5, "text_share": 0.5}],
        {"data": DataConfig(sequence_length=16, segments=[SegmentConfig(from_batch=5, text_share=0.5)])},
    ),
    "null": ("training.num_threads", None, {}),
    "enum": ("engine", "plain", {"engine": EngineKind.plain}),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_compared_as_options_and_not_as_words(plain, name):
    axis, value, changes = VALUES[name]
    facts = dataclasses.replace(plain, config=dataclasses.replace(plain.config, **changes))
    assert match_runs([("one", facts)], axis, meant=[{axis: value}]).checks[1].status is Status.same

"""Which runs a sweep has, and with which commands."""

import dataclasses
import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from loopcoder_train.config import (
    DataConfig,
    DeepSpeedConfig,
    EngineKind,
    GuardsConfig,
    OnBadStep,
    OptimizerConfig,
    ParallelConfig,
    TrainingConfig,
    UserError,
)
from loopcoder_train.config.compare import changed_keys, changes_result
from loopcoder_train.config.io import from_dict, to_dict
from loopcoder_train.config.launch import LaunchConfig, LaunchKind
from loopcoder_train.config.run import RunConfig
from loopcoder_train.config.sweep import Reference, SweepConfig, SweepOptions
from loopcoder_train.model.counts import forward_flops, pairs_of_lengths
from loopcoder_train.sweep.arms import Arm, Sweep, arm_config, plan_sweep
from loopcoder_train.sweep.matching import inherited
from loopcoder_train.sweep.stages import shared_options, stages_of
from tests.conftest import RELEASED_PRESET, small_model


def config(tmp_path: Path, **options) -> SweepConfig:
    return SweepConfig(
        run_dir=str(tmp_path / "a sweep"),
        model=small_model(**RELEASED_PRESET),
        training=TrainingConfig(num_steps=100, global_batch_size=4, micro_batch_size=2),
        data=DataConfig(sequence_length=32),
        optimizer=OptimizerConfig(peak_lr=1e-3),
        seed=7,
        sweep=SweepOptions(**options),
    )


def test_matched_arms_differ_in_the_swept_option_and_the_seed_only(tmp_path):
    swept = config(tmp_path, seeds=[0, 1])
    arms = plan_sweep(swept).arms
    assert [arm.name for arm in arms] == [f"num_loops={r},seed={s}" for s in (0, 1) for r in (1, 2, 3, 4)]
    base = from_dict(RunConfig, {key: value for key, value in to_dict(swept).items() if key != "sweep"})
    for arm in arms:
        changed = {key: new for key, _, new in changed_keys(base, arm_config(swept, arm))}
        assert changed.keys() <= {"model.num_loops", "seed"}, changed
        made = arm_config(swept, arm)
        assert (made.model.num_loops, made.seed) == (arm.value, arm.seed)


def test_one_seed_is_the_runs_own_and_any_option_can_be_swept(tmp_path):
    arms = plan_sweep(config(tmp_path, axis="optimizer.peak_lr", values=["1e-3", "3e-3"])).arms
    assert [(arm.name, arm.seed) for arm in arms] == [("peak_lr=1e-3", 7), ("peak_lr=3e-3", 7)]
    assert [arm_config(config(tmp_path), arm).optimizer.peak_lr for arm in arms] == [1e-3, 3e-3]


def test_references_are_what_they_are_called(tmp_path):
    swept = config(tmp_path, references=list(Reference), reference_loops=[3])
    plan = plan_sweep(swept)
    flops, depth, sequential = (arm for arm in plan.arms if arm.reference)
    assert [arm.reference for arm in (flops, depth, sequential)] == ["flops", "depth", "sequential"]
    assert all("reference" in arm.name for arm in (flops, depth, sequential))

    def cost(made: RunConfig) -> float:
        pairs = pairs_of_lengths([32], made.model.window_left)
        return made.training.num_steps * forward_flops(made.model, 32, pairs)

    one = arm_config(swept, plan.arms[0])
    made = arm_config(swept, flops)
    assert made.model.num_loops == 3 and made.training.num_steps < 100
    assert cost(made) == pytest.approx(cost(one), rel=0.5 / made.training.num_steps + 1e-9)
    assert made.data.planned_batches == 100, "the beginning of the same stream"
    made = arm_config(swept, depth)
    assert (made.model.num_loops, made.model.num_layers) == (1, 6)
    made = arm_config(swept, sequential)
    assert (made.model.num_loops, made.model.loop_kind.name) == (3, "sequential")


def test_a_sweep_is_read_back_as_written(tmp_path):
    plan = plan_sweep(config(tmp_path, references=[Reference.depth], finetune=[]))
    plan.write(tmp_path)
    assert Sweep.read(tmp_path) == plan and not plan.tuned
    (tmp_path / "sweep.json").write_text(json.dumps({"version": 9}))
    with pytest.raises(UserError, match=r"another version"):
        Sweep.read(tmp_path)
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(UserError, match=r"is no sweep"):
        Sweep.read(tmp_path)


def test_the_stages_of_an_arm(tmp_path):
    swept = config(tmp_path, finetune=["experiment=sft", "training.num_steps=3"], diagnose=["num_samples=5"])
    plain, looped = plan_sweep(swept).arms[:2]
    given = ["experiment=x", "training.num_steps=100"]
    stages = stages_of(swept, looped, given)
    assert [stage.name for stage in stages] == [
        "pretrain", "finetune", "evaluate-pretrain", "evaluate-finetune", "evaluate-pretrain-loops4", "diagnose",
    ]  # fmt: skip
    train, tune, *_, look = stages
    folder = Path(swept.run_dir) / looped.name
    assert train.arguments == [
        "pretrain", *given, "model.num_loops=2", "seed=7", f"run_dir='{folder / 'pretrain'}'",
    ]  # fmt: skip
    assert tune.arguments[0] == "finetune" and f"model.init_from='{folder / 'pretrain'}'" in tune.arguments
    assert "engine=megatron" in tune.arguments and tune.arguments.index("experiment=sft") > 1
    assert look.arguments[-1] == "num_samples=5" and not look.trains and train.trains and tune.trains
    of_one_loop = [stage.name for stage in stages_of(swept, plain, given)]
    assert "evaluate-pretrain-loops4" in of_one_loop, "with gates of a half"
    held_out = f"max_sequences_per_source={swept.evaluation.max_sequences_per_source}"
    assert all(held_out in stage.arguments for stage in stages if stage.name.startswith("evaluate")), "before and after"
    assert [[f"{output.parent.name}/{output.name}" for output in stage.outputs] for stage in stages] == [
        [], [], ["pretrain/evaluation.json", "pretrain/evaluation_documents.json"],
        ["finetune/evaluation.json", "finetune/evaluation_documents.json"],
        ["pretrain/evaluation_loops4.json", "pretrain/evaluation_loops4_documents.json"],
        ["pretrain/diagnostics.json"],
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["step=600", "num_loops=4", "+run_dir=x"])
@pytest.mark.parametrize("stage", ["evaluate", "diagnose"])
def test_what_the_sweep_gives_its_stages_itself_is_refused(stage, text):
    with pytest.raises(UserError, match=rf"sweep\.{stage}=.*is given to the stages by the sweep"):
        SweepOptions(**{stage: [text]})


def test_results_that_tunings_take_over_are_told_as_inherited(tmp_path):
    """Else a sweep over one of them would call its tunings different."""
    swept = config(tmp_path)
    keys = [text.partition("=")[0] for text in shared_options(arm_config(swept, plan_sweep(swept).arms[0]))]
    assert "guards.spike" in keys
    assert [key for key in keys if changes_result(key) and not inherited(key)] == []


def test_an_arm_is_tuned_where_and_as_guarded_as_it_was_pretrained(tmp_path):
    swept = dataclasses.replace(
        config(tmp_path),
        engine=EngineKind.deepspeed,
        deepspeed=DeepSpeedConfig(zero_stage=3, offload_optimizer=True),
        parallel=ParallelConfig(distributed_optimizer=False),
        guards=GuardsConfig(spike=OnBadStep.ignore),
    )
    tune = stages_of(swept, plan_sweep(swept).arms[0], [])[1].arguments
    for text in ("engine=deepspeed", "deepspeed.zero_stage=3", "deepspeed.offload_optimizer=true",
                 "guards.spike=ignore", "guards.nonfinite=skip"):  # fmt: skip
        assert text in tune, "also what is as by default: the tuning's experiment may say otherwise"


def test_an_arm_is_tuned_in_the_precision_of_its_pretraining(tmp_path):
    swept = config(tmp_path, axis="training.precision", values=["fp32", "bf16"])
    tunings = [stages_of(swept, arm, [])[1].arguments for arm in plan_sweep(swept).arms]
    assert [f"training.precision={name}" in tuning for name, tuning in zip(("fp32", "bf16"), tunings, strict=True)] == [
        True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("axis", "value"),
    [
        ("data.shares", {"python": 0.5, "text": 0.5}),
        ("data.segments", [{"from_batch": 5, "text_share": None}]),
        ("model.tie_embeddings", True),
        ("schedule.kind", "cosine"),
        ("optimizer.eps", 1e-15),
    ],
)
def test_hydra_reads_every_kind_of_value_back(axis, value):
    arm = Arm(name="a", label="a", value=value, seed=0, reference=None, changes={axis: value})
    (override,) = OverridesParser.create().parse_overrides(arm.arguments())
    assert (override.key_or_group, override.value()) == (axis, value)


def test_folders_of_every_name_are_quoted(tmp_path):
    swept = config(tmp_path / "größe", finetune=[])
    train = stages_of(swept, plan_sweep(swept).arms[0], [])[0]
    (override,) = OverridesParser.create().parse_overrides(train.arguments[-1:])
    assert override.value() == str(train.run_dir)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"axis": "model.num_lops"}, r"sweep.axis=model.num_lops.*did you mean model.num_loops"),
        ({"axis": "model"}, r"sweep.axis=model: must be one option"),
        ({"axis": "logging.every_steps"}, r"changes no result"),
        ({"values": ["1", "1"]}, r"sweep.values.*must differ"),
        ({"values": []}, r"sweep.values.*at least one"),
        ({"values": ["1", "01"]}, r"sweep.values=.*: num_loops=1 and num_loops=1 are the same run"),
        ({"axis": "optimizer.peak_lr", "values": ["1e-3", "0.001"]}, r"peak_lr=1e-3 and peak_lr=0.001 are the same"),
        ({"axis": "finetune.heldout_share", "values": ["0.1"]}, r"sweep.axis=finetune.heldout_share: is an option of"),
        ({"seeds": [-1]}, r"sweep.seeds"),
        ({"axis": "seed"}, r"sweep.seeds"),
        ({"reference_loops": [1]}, r"sweep.reference_loops"),
        ({"axis": "optimizer.peak_lr", "values": ["1e-3"], "references": [Reference.depth]}, r"sweep.references"),
        ({"values": ["0"]}, r"arm num_loops=0: model.num_loops=0: must be at least 1"),
        ({"values": ["two"]}, r"arm num_loops=two: model.num_loops='two': must be of type int"),
    ],
)
def test_what_cannot_be_swept(tmp_path, options, said):
    with pytest.raises(UserError, match=said) as refused:
        plan_sweep(config(tmp_path, **options))
    assert "\n" not in str(refused.value)


def test_a_sweep_starts_nothing_over(tmp_path):
    with pytest.raises(UserError, match=r"fresh=True: is no option of a sweep"):
        SweepConfig(**{**{f: getattr(config(tmp_path), f) for f in ("run_dir", "model", "training")}, "fresh": True})


def test_options_that_leave_arms_unfinished_are_refused(tmp_path):
    made = config(tmp_path)
    for changes, said in (
        ({"training": dataclasses.replace(made.training, stop_after_step=5)}, "training.stop_after_step=5"),
        ({"launch": LaunchConfig(kind=LaunchKind.slurm, dry_run=True)}, "launch.dry_run=True"),
    ):
        with pytest.raises(UserError, match=said):
            dataclasses.replace(made, **changes)

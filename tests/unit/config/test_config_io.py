"""run.yaml: what is written is read back equal; anything else is refused with the option's name."""

import dataclasses
import os

import pytest
import yaml

from loopcoder_train.config import (
    ActivationCheckpointing,
    DataConfig,
    GateInput,
    ModelConfig,
    Precision,
    RunConfig,
    TrainingConfig,
    UserError,
)
from loopcoder_train.config.io import MAX_CONFIG_BYTES, read_run_config, to_dict, write_run_config


def make_config(**changes):
    model = ModelConfig(
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=4096,
        gate_input=GateInput.query,
    )
    training = TrainingConfig(
        num_steps=10,
        global_batch_size=4,
        micro_batch_size=2,
        precision=Precision.fp32,
        activation_checkpointing=ActivationCheckpointing.selective,
    )
    data = DataConfig(shares={"python": 0.25, "c": 1e-7})
    values = {"run_dir": "runs/a", "model": model, "training": training, "data": data, **changes}
    return RunConfig(**values)


def test_round_trip_is_exact(tmp_path):
    config = make_config(seed=7)
    path = tmp_path / "run.yaml"
    write_run_config(config, path)
    assert read_run_config(path) == config
    assert read_run_config(path).optimizer.eps == 1e-15
    assert list(tmp_path.iterdir()) == [path]  # nothing temporary is left


def test_file_is_plain_yaml_with_enum_names_in_order_of_definition(tmp_path):
    path = tmp_path / "run.yaml"
    write_run_config(make_config(), path)
    values = yaml.safe_load(path.read_text())
    assert list(values) == [field.name for field in dataclasses.fields(RunConfig)]
    assert values["model"]["gate_input"] == "query"
    assert list(values["data"]["shares"]) == ["c", "python"]


def changed(path, value, *, delete=False):
    values = to_dict(make_config())
    *groups, last = path.split(".")
    inner = values
    for group in groups:
        inner = inner[group]
    if delete:
        del inner[last]
    else:
        inner[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "fragments"),
    [
        ("model.num_lops", 2, ["model.num_lops: unknown option", "did you mean model.num_loops?"]),
        ("sede", 2, ["sede: unknown option", "did you mean seed?"]),
        ("_target_", "os.system", ["_target_: unknown option"]),
        ("model.num_loops", "two", ["model.num_loops='two'", "int", "str"]),
        ("model.num_loops", 2.0, ["model.num_loops=2.0", "int", "float"]),
        ("model.num_loops", True, ["model.num_loops=True", "int", "bool"]),
        ("fresh", 1, ["fresh=1", "bool", "int"]),
        ("run_dir", 3, ["run_dir=3", "str", "int"]),
        ("seed", None, ["seed=None", "int"]),
        ("optimizer.peak_lr", "fast", ["optimizer.peak_lr='fast'", "float"]),
        ("training.precision", "fp16", ["training.precision='fp16'", "fp32, bf16"]),
        ("training.precision", ["bf16"], ["training.precision=['bf16']", "fp32, bf16"]),
        ("model", 3, ["model=3", "group of options"]),
        ("data.shares", [1], ["data.shares=[1]", "mapping"]),
        ("data.shares", {"c": "much"}, ["data.shares.c='much'", "float"]),
        ("model.num_loops", 0, ["model.num_loops=0", "must be at least 1"]),
    ],
)
def test_wrong_content_names_file_option_and_rule(tmp_path, path, value, fragments):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(UserError) as caught:
        read_run_config(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_missing_option_is_named(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed("training.num_steps", None, delete=True)))
    with pytest.raises(UserError, match=r"training\.num_steps: is not set"):
        read_run_config(file)


def test_numbers_written_by_hand_are_read(tmp_path):
    # YAML 1.1 takes 3e-4 for text, and 1 for an integer.
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump(changed("optimizer.peak_lr", "@")).replace("'@'", "3e-4").replace("beta1: 0.9", "beta1: 0")
    )
    config = read_run_config(file)
    assert config.optimizer.peak_lr == 3e-4
    assert config.optimizer.beta1 == 0.0 and isinstance(config.optimizer.beta1, float)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"model: {", "is not YAML"),
        (b"- 1\n", "group of options"),
        (b"", "group of options"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a: &a [1]\nb: *a\n", "aliases"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML"),
        (b"a: " + b"x" * MAX_CONFIG_BYTES, "at most"),
        (b"a: " + b"[" * 3_000 + b"]" * 3_000, "nested too deep"),
        (b"seed: " + b"9" * 5000, "cannot be read"),
        (b"seed: 2020-13-45", "cannot be read"),
        (b"_target_: os.system", "_target_: unknown option"),
        (b"run_dir: x\nmodel: {_target_: os.system}", "model._target_: unknown option"),
        (b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, content, fragment):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=fragment):
        read_run_config(file)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(UserError, match="no regular file"):
        read_run_config(tmp_path / "run.yaml")


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_run_config(tmp_path / "none.yaml")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.yaml"
    write_run_config(make_config(), path)
    before = path.read_bytes()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_run_config(make_config(seed=3), path)
    assert path.read_bytes() == before

"""Options of evaluate, diagnose and generate: rules."""

import pytest

from loopcoder_train.config.commands import DiagnoseOptions, EvaluateOptions, GenerateOptions
from loopcoder_train.config.errors import UserError


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"prompt": ""}, "prompt"),
        ({}, "prompt: is not set"),
        ({"prompt": "x", "prompt_file": "y"}, "cannot be combined"),
        ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens=0"),
        ({"prompt": "x", "temperature": -0.1}, "temperature=-0.1"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature=nan"),
        ({"prompt": "x", "top_k": 0}, "top_k=0"),
        ({"prompt": "x", "top_p": 0.0}, "top_p=0.0"),
        ({"prompt": "x", "top_p": 1.1}, "top_p=1.1"),
        ({"prompt": "x", "num_threads": 0}, "num_threads=0"),
        ({"prompt": "x", "step": 0}, "step=0"),
        ({"prompt": "x", "run_dir": ""}, "run_dir"),
    ],
)
def test_generate_rules(options, fragment):
    with pytest.raises(UserError, match=fragment):
        GenerateOptions(**{"run_dir": "runs/x", **options})


def test_generate_accepts_its_limits():
    GenerateOptions(run_dir="runs/x", prompt=" ", temperature=0.0, top_k=1, top_p=1.0, max_new_tokens=1)


@pytest.mark.parametrize("option", ["step", "num_loops", "max_sequences_per_source", "batch_size", "num_threads"])
def test_evaluate_rules(option):
    EvaluateOptions(run_dir="runs/x", **{option: 1})
    with pytest.raises(UserError, match=f"{option}=0"):
        EvaluateOptions(run_dir="runs/x", **{option: 0})


@pytest.mark.parametrize(
    "option", ["step", "num_loops", "num_samples", "attention_queries", "min_sample_tokens", "num_threads"]
)
def test_diagnose_rules(option):
    DiagnoseOptions(run_dir="runs/x", **{option: 2})
    with pytest.raises(UserError, match=f"{option}=0"):
        DiagnoseOptions(run_dir="runs/x", **{option: 0})

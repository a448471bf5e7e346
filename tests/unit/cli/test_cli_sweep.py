"""`loopcoder sweep`: what its later stages are told is composed before the first step of the first arm."""

import pytest

MINIATURE = ["experiment=miniature", "sweep=miniature", "data.corpus_dir=../corpus", "run_dir=swept"]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("finetune=['experiment=sft','training.num_step=9']", "training.num_step: unknown option; did you mean"),
        ("finetune=['experiment=sft','training.global_batch_size=7']", "training.global_batch_size=7: must be a"),
        ("finetune=['experiment=sft','model.num_loops=2']", "model.num_loops=2: is what the sweep is over (1)"),
        ("evaluate=['batch=3']", "batch: unknown option"),
        ("diagnose=['num_samples=0']", "num_samples=0: must be greater than 0"),
    ],
    ids=["option", "rule", "axis", "evaluate", "diagnose"],
)
def test_a_fault_in_a_later_stage_costs_no_pretraining(workplace, loopcoder, option, told):
    code, _, error = loopcoder("sweep", *MINIATURE, f"sweep.{option}")
    command = option.partition("=")[0]
    assert code == 2 and error.splitlines()[-1].startswith(f"loopcoder: error: sweep.{command}: {told}"), error
    assert not list(workplace.rglob("pretrain")) and not list(workplace.rglob("sweep.json"))

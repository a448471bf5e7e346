"""A batch of conversations has one loss and one gradient, however it is cut into micro-batches and over ranks.

Rows have very different numbers of supervised tokens: a mean of means, over micro-batches or over ranks, would show.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from loopcoder_train.engines.plain import PlainEngine
from loopcoder_train.finetune.plan import Plan
from loopcoder_train.finetune.plan_making import prepare_plan
from loopcoder_train.model import IGNORE_INDEX
from tests.distributed.finetune_worker import LAYOUTS, ROWS, STAGES, micro_batches, name_of, run_config
from tests.distributed.megatron_setting import randomize
from tests.unit.evaluation.corpus import make_corpus
from tests.unit.finetune.conftest import jsonl, options, rows

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-6  # relative: of the loss, and ||difference|| / ||gradient|| over all parameters

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plan, and what the other engines make of its first batch in every layout."""
    folder = tmp_path_factory.mktemp("finetune")
    corpus = make_corpus(folder / "corpus")
    prepare_plan(folder / "run", options(jsonl(folder / "a.jsonl", rows(60, words=9))), corpus, 192)
    for ranks in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["-m", "tests.distributed.finetune_worker", "--run-dir", str(folder / "run")]
        command += ["--output", str(folder), "--vocab-size", str(corpus.manifest.vocab_size)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        assert run.returncode == 0, run.stderr[-4000:]
    return folder, corpus.manifest.vocab_size


def plain(folder, vocab_size, micro):
    plan = Plan.open(folder / "run")
    engine = PlainEngine(run_config(plan, micro, 1, vocab_size), torch.device("cpu"))
    randomize(engine)
    batches = micro_batches(plan, micro, 0, 1)
    result = engine.train_step(batches, 0.0, accept=lambda _: False)
    return result, {name: master.grad.numpy() for name, master in engine.master.items()}, batches


def error(gradients, reference) -> float:
    difference = sum(float(np.square(gradients[n].astype("f8") - reference[n]).sum()) for n in reference)
    return (difference / sum(float(np.square(g.astype("f8")).sum()) for g in reference.values())) ** 0.5


def test_the_rows_are_unequal(folder):
    _, _, batches = plain(*folder, 1)
    counts = [int((batch.labels != IGNORE_INDEX).sum()) for batch in batches]
    assert len(counts) == ROWS and max(counts) > 1.2 * min(counts)


@pytest.mark.parametrize("micro", [1, 2])
def test_plain_engine(folder, micro):
    reference, gradients, _ = plain(*folder, 4)
    result, own, _ = plain(*folder, micro)
    assert result.loss == pytest.approx(reference.loss, rel=TOLERANCE)
    assert error(own, gradients) < TOLERANCE


def check_saved(folder, name: str) -> None:
    """What a worker has written: loss, tokens, and the gradient as a whole and each parameter's own."""
    reference, gradients, _ = plain(*folder, 4)
    saved = np.load(folder[0] / name)
    assert set(saved.files) - {"loss", "tokens"} == gradients.keys()
    assert float(saved["loss"]) == pytest.approx(reference.loss, rel=TOLERANCE)
    assert int(saved["tokens"]) == reference.supervised_tokens
    assert error(saved, gradients) < TOLERANCE
    each = {parameter: error(saved, {parameter: gradient}) for parameter, gradient in gradients.items()}
    assert {parameter: value for parameter, value in each.items() if not value < TOLERANCE} == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_megatron_engine(folder, layout):
    check_saved(folder, name_of("megatron", layout))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_deepspeed_engine(folder, layout, stage):
    check_saved(folder, name_of(f"zero{stage}", layout))

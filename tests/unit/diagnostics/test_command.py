"""`loopcoder diagnose` on trained checkpoints: table, file, figures, other numbers of loops."""

import io
import json
import math

import pytest
import torch

from loopcoder_train.config import Device, LoopKind, UserError
from loopcoder_train.config.commands import DiagnoseOptions
from loopcoder_train.diagnostics.command import diagnose_run
from loopcoder_train.diagnostics.samples import select_samples
from loopcoder_train.evaluation.load import PlainLosses, load_run
from tests.unit.evaluation.trained_run import STEPS, S, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("r2"))


def diagnose(run_dir, **options):
    stream = io.StringIO()
    asked = DiagnoseOptions(run_dir=str(run_dir), device=Device.cpu, **({"min_sample_tokens": 4} | options))
    return diagnose_run(asked, stream), stream.getvalue()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def numbers(content):
    """All numbers of a JSON document."""
    if isinstance(content, dict | list):
        return [x for part in (content.values() if isinstance(content, dict) else content) for x in numbers(part)]
    return [content] if isinstance(content, int | float) else []


def test_table_file_and_figures(trained):
    diagnosis, text = diagnose(trained, num_samples=9)
    saved = json.loads((trained / "diagnostics.json").read_text())
    assert saved == json.loads(json.dumps(diagnosis.to_json()))
    assert (saved["step"], saved["num_loops"], saved["num_samples"]) == (STEPS, 2, 9)
    assert files(trained / "diagnostics") == ["attention.png", "dynamics.png", "gain_cost.png", "output.png"]
    for path in (trained / "diagnostics").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert f"9 samples of {saved['num_documents']} held-out documents" in text
    assert "offset cost Omega" in text and "loop 2" in text and "diagnostics.json" in text and "nan" not in text
    assert all(math.isfinite(number) for number in numbers(saved))
    assert set(saved["layers"]["2"]["1"]) >= {"gate_mean", "attention_kl", "head_rank_local"}
    assert "gate_mean" not in saved["loops"]["1"] and "gate_mean" in saved["loops"]["2"]
    (point,) = saved["gain_cost"]
    assert point == {
        "loop": 2,
        "gain": saved["loops"]["2"]["output_kl"],
        "cost": saved["loops"]["2"]["offset_cost"],
        "relative_cost": saved["loops"]["2"]["offset_cost_relative"],
    }


def test_one_thread_unless_more_are_asked_for(trained):
    before = torch.get_num_threads()
    try:
        for options, threads in (({"num_threads": 3}, 3), ({"num_threads": None}, 3), ({}, 1)):
            diagnose(trained, num_samples=1, **options)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_loss_is_that_of_evaluate(trained):
    """Means weigh tokens alike, as the evaluation does."""
    diagnosis, _ = diagnose(trained, num_samples=10_000)
    run = load_run(str(trained), step=None, num_loops=None, device=Device.cpu)
    losses = PlainLosses(run.model, run.device)
    total, tokens = torch.zeros(2), 0
    for row in select_samples(run.corpus, S, 10_000, 4).rows:
        of_row = losses.token_losses(row.batch)[:, 0]
        for sample in row.samples:
            total += of_row[:, sample.first : sample.stop].sum(dim=-1)
            tokens += len(sample)
    assert diagnosis.sample_tokens == tokens
    assert diagnosis.num_documents < diagnosis.num_samples, "no document goes on in the next row"
    assert {value.samples for value in diagnosis.estimates.values()} == {diagnosis.num_documents}
    found = [diagnosis.of_loop(loop)["loss"].mean for loop in (1, 2)]
    assert found == pytest.approx((total / tokens).tolist(), rel=1e-5)


def test_other_numbers_of_loops_have_a_file_of_their_own(trained):
    two, _ = diagnose(trained, num_samples=6)
    four, text = diagnose(trained, num_samples=6, num_loops=4, json=True)
    assert json.loads(text)["num_loops"] == 4 and json.loads(text)["trained_num_loops"] == 2
    assert files(trained / "diagnostics_loops4")[0] == "attention.png"
    assert json.loads((trained / "diagnostics_loops4.json").read_text())["num_loops"] == 4
    assert json.loads((trained / "diagnostics.json").read_text())["num_loops"] == 2
    for lens, value in two.of_loop(2).items():  # loop r does not know R; shares do
        if "share" not in lens:
            assert four.of_loop(2)[lens].mean == pytest.approx(value.mean, rel=1e-4, abs=1e-5), lens
    shares = [four.of_loop(loop)["output_kl_share"].mean for loop in (2, 3, 4)]
    assert sum(shares) == pytest.approx(1.0)
    assert sum(four.of_loop(loop)["peak_loop_share"].mean for loop in (2, 3, 4)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "model", [{"num_loops": 1}, {"num_loops": 2, "loop_kind": LoopKind.sequential}], ids=["r1", "sequential"]
)
def test_models_without_offset_have_no_gain_cost(tmp_path, model):
    run_dir = train(tmp_path, **model)
    diagnosis, text = diagnose(run_dir, num_samples=6)
    saved = json.loads((run_dir / "diagnostics.json").read_text())
    assert saved["gain_cost"] == [] and "Omega" not in text and "gate" not in text
    assert files(run_dir / "diagnostics") == ["attention.png", "dynamics.png", "output.png"]
    assert all(math.isfinite(number) for number in numbers(saved))
    assert ("output_kl" in diagnosis.of_loop(model["num_loops"])) == (model["num_loops"] == 2)


def test_a_model_of_one_loop_is_read_with_more_and_gates_of_a_half(tmp_path, caplog):
    run_dir = train(tmp_path, num_loops=1)
    own, _ = diagnose(run_dir, num_samples=6)
    two, text = diagnose(run_dir, num_samples=6, num_loops=2, json=True)
    assert "has no gates; they are 0.5 everywhere" in caplog.text
    assert json.loads(text)["untrained_gates"] and not own.untrained_gates
    assert two.of_loop(2)["gate_mean"].mean == 0.5
    assert two.of_loop(1)["loss"] == own.of_loop(1)["loss"], "the first loop does not know of the second"


def test_one_document_has_no_intervals(trained):
    diagnosis, text = diagnose(trained, num_samples=1)
    assert diagnosis.num_samples == 1
    assert json.loads((trained / "diagnostics.json").read_text())["loops"]["1"]["loss"]["ci95"] is None
    assert "-+" not in text.split("\n", 3)[3] and "nan" not in text


def test_a_run_that_cannot_be_written_to_is_a_users_error(trained, tmp_path):
    (trained / "diagnostics_loops3").write_text("in the way")
    with pytest.raises(UserError, match="diagnostics_loops3: cannot be written"):
        diagnose(trained, num_samples=1, num_loops=3)

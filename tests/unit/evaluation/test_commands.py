"""From a trained checkpoint to numbers and text: fit with the plain engine, then the two commands."""

import io
import json
import shutil

import pytest
import torch

from loopcoder_train.checkpoint import find_checkpoint
from loopcoder_train.config import Device, UserError
from loopcoder_train.config.commands import EvaluateOptions, GenerateOptions
from loopcoder_train.config.io import read_run_config, write_run_config
from loopcoder_train.evaluation.command import evaluate_run
from loopcoder_train.evaluation.generate import continue_prompt, generate_text
from loopcoder_train.evaluation.load import load_run
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from tests.unit.evaluation.corpus import make_corpus
from tests.unit.evaluation.trained_run import CPU, STEPS, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run"))


def evaluate(run_dir, **options) -> tuple[object, str]:
    stream = io.StringIO()
    evaluation = evaluate_run(EvaluateOptions(run_dir=str(run_dir), device=Device.cpu, **options), stream)
    return evaluation, stream.getvalue()


def test_the_command_repeats_the_training_runs_own_numbers(trained):
    evaluation, text = evaluate(trained)
    recorded = read_metrics(trained / METRICS_FILE, ["evaluation"])[-1]
    computed = evaluation.report.metrics()
    assert evaluation.step == recorded["step"] == STEPS
    assert {key: recorded[key] for key in computed} == computed
    assert "everything" in text and "unigram entropy" in text and "bigram" in text
    saved = json.loads((trained / "evaluation.json").read_text())
    assert saved["overall"]["loop_losses"] == evaluation.report.overall.loop_losses
    assert saved["unigram_entropy"] == evaluation.unigram_entropy
    assert 0 < saved["bigram_tokens"] <= saved["tokens"]
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_an_older_step_and_json(trained):
    evaluation, text = evaluate(trained, step=3, json=True)
    assert json.loads(text)["step"] == evaluation.step == 3
    recorded = read_metrics(trained / METRICS_FILE, ["evaluation"])[0]
    assert recorded["step"] == 3 and recorded["loss"] == evaluation.report.overall.loss


def test_other_numbers_of_loops(trained):
    trained_loops, _ = evaluate(trained)
    one, _ = evaluate(trained, num_loops=1)
    three, _ = evaluate(trained, num_loops=3)
    assert one.report.num_loops == 1 and three.report.num_loops == 3
    # Loop r of R loops does not know R.
    assert one.report.overall.loop_losses == pytest.approx(trained_loops.report.overall.loop_losses[:1])
    assert three.report.overall.loop_losses[:2] == pytest.approx(trained_loops.report.overall.loop_losses)
    assert json.loads((trained / "evaluation.json").read_text())["num_loops"] == 2
    assert json.loads((trained / "evaluation_loops3.json").read_text())["num_loops"] == 3


def test_no_run_and_no_checkpoint_are_users_errors(tmp_path, trained):
    with pytest.raises(UserError, match="no run there"):
        evaluate(tmp_path / "missing")
    (tmp_path / "run.yaml").write_text((trained / "run.yaml").read_text())
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of step 99"):
        evaluate(trained, step=99)


def test_a_corpus_with_another_tokenizer_is_refused(tmp_path, trained):
    make_corpus(tmp_path / "corpus", merges=10)
    run_dir = shutil.copytree(trained, tmp_path / "run")
    config = read_run_config(run_dir / "run.yaml")
    config.data.corpus_dir = str(tmp_path / "corpus")
    write_run_config(config, run_dir / "run.yaml")
    with pytest.raises(UserError, match="is not the one of the run"):
        evaluate(run_dir)


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(tmp_path, trained, caplog):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    newest = find_checkpoint(run_dir).checkpoint.path
    tensors = next(newest.glob("*.safetensors"))
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    evaluation, _ = evaluate(run_dir)
    assert evaluation.step == 3
    assert "step 3 is used" in caplog.text


def generate(run_dir, **options) -> tuple[str, str]:
    stream = io.StringIO()
    text = generate_text(GenerateOptions(run_dir=str(run_dir), device=Device.cpu, **options), stream)
    return text, stream.getvalue()


@pytest.fixture
def two_threads():
    """Two, whatever the machine has; afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_are_as_asked_and_else_as_they_were(trained):
    evaluate(trained)
    generate(trained, prompt="def f", max_new_tokens=1)
    assert torch.get_num_threads() == 2
    evaluate(trained, num_threads=1)
    assert torch.get_num_threads() == 1
    generate(trained, prompt="def f", max_new_tokens=1, num_threads=3)
    assert torch.get_num_threads() == 3


def test_generation_is_a_function_of_the_seed(trained):
    first, shown = generate(trained, prompt="def f", max_new_tokens=12, seed=1)
    assert shown == "def f" + first + "\n"
    assert generate(trained, prompt="def f", max_new_tokens=12, seed=1)[0] == first
    others = {generate(trained, prompt="def f", max_new_tokens=12, seed=seed)[0] for seed in range(2, 6)}
    assert others - {first}
    greedy = [generate(trained, prompt="def f", max_new_tokens=5, temperature=0, seed=seed)[0] for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_prompts_that_cannot_be_continued(trained, tmp_path):
    with pytest.raises(UserError, match=r"prompt: has \d+ tokens.*max_position_embeddings=64"):
        generate(trained, prompt="x y z " * 50)
    with pytest.raises(UserError, match="cannot be read"):
        generate(trained, prompt_file=str(tmp_path / "missing"))
    (tmp_path / "empty").write_text("")
    with pytest.raises(UserError, match="is empty"):
        generate(trained, prompt_file=str(tmp_path / "empty"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        generate(trained, prompt_file=str(tmp_path / "binary"))
    with pytest.raises(UserError, match="prompt: is not UTF-8"):
        generate(trained, prompt="\udcff")


def test_generation_stops_where_the_longest_document_ends(trained):
    run = load_run(str(trained), step=None, num_loops=None, device=Device.cpu)
    tokenizer = run.corpus.tokenizer
    tokenizer.end_of_document_id = -1  # never drawn
    options = GenerateOptions(run_dir=str(trained), prompt="x", max_new_tokens=500)
    prompt_ids = tokenizer.encode("x y z " * 50)[:60]
    assert len(list(continue_prompt(run.model, tokenizer, prompt_ids, options, CPU))) == 4


def test_generation_stops_at_the_end_of_the_document(trained):
    run = load_run(str(trained), step=None, num_loops=None, device=Device.cpu)
    tokenizer = run.corpus.tokenizer
    options = GenerateOptions(run_dir=str(trained), prompt="x", max_new_tokens=9, temperature=0)
    tokens = list(continue_prompt(run.model, tokenizer, tokenizer.encode("def f"), options, CPU))
    tokenizer.end_of_document_id = tokens[-1]
    stopped = list(continue_prompt(run.model, tokenizer, tokenizer.encode("def f"), options, CPU))
    assert stopped == tokens[: tokens.index(tokens[-1])]

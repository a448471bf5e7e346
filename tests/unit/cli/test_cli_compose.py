"""Every experiment composes to a valid run, overrides arrive, defaults are the dataclasses', help fits a screen."""

import dataclasses
import subprocess
import sys
from importlib import resources

import pytest
import yaml

from data_pipeline.language_manifest import load_manifest
from data_pipeline.languages import slug
from data_pipeline.prepare.build_config import BuildConfig
from loopcoder_train.cli.arguments import quote
from loopcoder_train.config import RunConfig, ScheduleKind
from loopcoder_train.config.commands import ShowOptions
from loopcoder_train.config.compare import changed_keys
from loopcoder_train.config.data import DataConfig
from loopcoder_train.config.io import _plain, read_run_config, write_run_config
from tests.unit.cli.conftest import QUICK, make_corpus

CONFIGS = resources.files("configs")
TUNING = {"sft"}  # of `loopcoder finetune`
FILES = {file.name.removesuffix(".yaml") for file in CONFIGS.joinpath("experiment").iterdir()}
EXPERIMENTS = sorted(FILES - TUNING)
COMMANDS = (
    "plan",
    "pretrain",
    "finetune",
    "evaluate",
    "generate",
    "data build",
    "data show",
    "data audit",
    "data report",
)
COMMANDS += ("diagnose", "sweep", "report", *(f"checkpoint {name}" for name in ("list", "verify", "prune")))


def make_paper_corpus(workplace):
    """Beside `workplace`: the sources that configs/data/paper.yaml gives shares to, and one of the others."""
    shares = yaml.safe_load(CONFIGS.joinpath("data", "paper.yaml").read_text())["shares"]
    make_corpus(workplace.parent / "paper", code=(*shares, "rust"))
    return "data.corpus_dir=../paper"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_and_survives_run_yaml(experiment, workplace, started, loopcoder, tmp_path):
    code, _, error = loopcoder("pretrain", f"experiment={experiment}", make_paper_corpus(workplace))
    assert (code, error) == (0, "")
    (config,) = started
    assert config.run_dir == f"runs/{experiment}"
    write_run_config(config, tmp_path / "again.yaml")
    assert read_run_config(tmp_path / "again.yaml") == config
    assert sorted(path.name for path in workplace.iterdir()) == ["runs"]  # nothing of Hydra's


def test_paper_experiments_differ_in_nothing_but_the_loops(workplace, started, loopcoder):
    corpus = make_paper_corpus(workplace)
    for loops in (1, 2, 3, 4):
        assert loopcoder("pretrain", f"experiment=paper_r{loops}", corpus)[0] == 0
    for loops, config in zip((1, 2, 3, 4), started, strict=True):
        assert config.model.num_loops == loops
        assert {key for key, _, _ in changed_keys(started[0], config)} <= {"model.num_loops", "run_dir"}
    assert started[0].total_tokens == pytest.approx(18e12, rel=1e-6)
    assert started[0].optimizer == type(started[0].optimizer)(
        peak_lr=4e-4, beta1=0.9, beta2=0.95, eps=1e-15, weight_decay=0.1, clip_grad_norm=1.0
    )
    preset = started[1].model
    assert (preset.embedding_scale, preset.hidden_scale, preset.normalize_between_loops) == (0.707, 0.053, True)


@pytest.mark.parametrize("file", sorted(CONFIGS.joinpath("model").iterdir(), key=str), ids=lambda file: file.name)
def test_model_sizes_compose(file, workplace, started, loopcoder):
    code, _, error = loopcoder("pretrain", QUICK[0], QUICK[2], f"model={file.name.removesuffix('.yaml')}")
    assert (code, error) == (0, "")
    assert started[0].model.vocab_size % 8 == 0


def test_the_shares_of_the_paper_are_those_of_the_manifest(workplace, started, loopcoder):
    assert loopcoder("pretrain", "experiment=paper_r1", make_paper_corpus(workplace))[0] == 0
    manifest = load_manifest()
    shares = manifest.shares_of(map(slug, manifest.languages)).shares
    assert started[0].data.shares == {source: float(share) for source, share in shares.items()}


def test_a_corpus_without_the_languages_of_the_paper_is_named_an_error(workplace, started, loopcoder):
    code, _, error = loopcoder("pretrain", "experiment=paper_r1", "data.corpus_dir=../corpus")
    assert (code, started) == (2, [])
    assert "data.shares: source 'java' is not in the corpus" in error
    assert loopcoder("pretrain", "experiment=paper_r1", "data=default", "data.corpus_dir=../corpus")[0] == 0


def test_overrides_arrive_with_their_types(workplace, started, loopcoder):
    code, _, error = loopcoder(
        "pretrain", *QUICK, "model.num_loops=3", "optimizer.peak_lr=3e-4", "run_dir=runs/x", "schedule=wsd", "seed=5",
        "training.precision=fp32", "data.shares.code=0.4", "checkpoint.keep_every_steps=500", "engine=plain",
        "parallel.world_size=1", "training.stop_after_step=7",
    )  # fmt: skip
    assert (code, error) == (0, "")
    (config,) = started
    assert config == read_run_config(workplace / "runs/x/run.yaml")
    assert (config.model.num_loops, config.optimizer.peak_lr, config.seed) == (3, 3e-4, 5)
    assert (config.schedule.kind, config.data.shares) == (ScheduleKind.wsd, {"code": 0.4})
    assert (config.checkpoint.keep_every_steps, config.training.stop_after_step) == (500, 7)


def test_shares_may_be_given_together_and_must_name_sources(workplace, started, loopcoder):
    assert loopcoder("pretrain", *QUICK, "data.shares={code: 1, text: 1}")[0] == 0
    assert started[0].data.shares == {"code": 1.0, "text": 1.0}
    code, _, error = loopcoder("pretrain", *QUICK, "data.shares={coed: 1}")
    assert code == 2 and "coed" in error and "code" in error and error.count("\n") == 1


def test_experiment_can_be_left_out(workplace, started, loopcoder):
    sizes = ("training.num_steps=3", "training.global_batch_size=2", "training.micro_batch_size=1")
    code, _, error = loopcoder("pretrain", "experiment=null", "model=debug", QUICK[2], *sizes, "run_dir=runs/y")
    assert (code, error) == (0, "")
    assert started[0].training.num_steps == 3


def test_own_experiment_from_another_folder(workplace, started, loopcoder, tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\ndefaults: [quickstart, _self_]\nseed: 11\n")
    code, _, error = loopcoder("pretrain", "--config-dir", str(folder.parent), "experiment=mine", QUICK[2])
    assert (code, error) == (0, "")
    assert (started[0].seed, started[0].run_dir) == (11, "runs/mine")


def test_cfg_job_shows_the_configuration_and_runs_nothing(workplace, started, loopcoder):
    code, out, error = loopcoder("pretrain", *QUICK, "model.num_loops=3", "--cfg", "job")
    assert (code, error, started) == (0, "", [])
    assert yaml.safe_load(out)["model"]["num_loops"] == 3
    assert set(yaml.safe_load(out)) == {field.name for field in dataclasses.fields(RunConfig)}
    assert list(workplace.iterdir()) == []


DEFAULT_FILES = {
    "data": "default",
    "optimizer": "adamw",
    "schedule": "cosine",
    "kernels": "auto",
    "checkpoint": "default",
    "evaluation": "default",
    "telemetry": "default",
    "guards": "default",
    "logging": "default",
    "launch": "local",
}


@pytest.mark.parametrize(("group", "name"), DEFAULT_FILES.items())
def test_default_files_agree_with_the_dataclass(group, name):
    field = next(field for field in dataclasses.fields(RunConfig) if field.name == group)
    values = yaml.safe_load(CONFIGS.joinpath(group, f"{name}.yaml").read_text())
    default = _plain(field.default_factory())
    assert {key: float(value) if isinstance(default[key], float) else value for key, value in values.items()} == {
        key: default[key] for key in values
    }


def test_default_corpus_is_one_place():
    values = yaml.safe_load(CONFIGS.joinpath("data_build", "default.yaml").read_text())
    assert values["corpus_dir"] == DataConfig().corpus_dir == ShowOptions().corpus_dir


def test_data_build_composes(monkeypatch, workplace, loopcoder, tmp_path):
    built = []
    monkeypatch.setattr("loopcoder_train.cli.data_build.build_corpus", lambda config, progress: built.append(config))
    folder = tmp_path / "mine" / "data_build"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("corpus_dir: c/mine\nsources: [{name: src, kind: folder, path: /src}]\n")
    assert loopcoder("data", "build", "corpus_dir=c/a,b=c", "seed=3")[0] == 0
    assert loopcoder("data", "build", "--config-dir", str(folder.parent), "data_build=mine")[0] == 0
    assert isinstance(built[0], BuildConfig) and (built[0].corpus_dir, built[0].seed) == ("c/a,b=c", 3)
    assert (built[1].corpus_dir, [source.name for source in built[1].sources]) == ("c/mine", ["src"])


def test_data_show_takes_the_folder_with_and_without_option(monkeypatch, workplace, loopcoder):
    monkeypatch.setattr("loopcoder_train.cli.data_show.describe", lambda corpus: f"described {corpus.directory}")
    assert loopcoder("data", "show", "../corpus")[1] == "described ../corpus\n"
    assert loopcoder("data", "show", "corpus_dir=../corpus")[1] == "described ../corpus\n"


def test_evaluate_and_generate_get_their_options(monkeypatch, workplace, loopcoder):
    calls = []
    monkeypatch.setattr("loopcoder_train.evaluation.command.evaluate_run", calls.append)
    monkeypatch.setattr("loopcoder_train.evaluation.generate.generate_text", calls.append)
    run = "runs/q/model.num_loops=2,seed=1"  # the folder of a sweep's job
    prompt = """def f(a="x,y", b={'k': "${z}"}): # it's 100% \\ "quoted" \\n"""
    assert loopcoder("evaluate", run, "step=200", "json=true", "num_loops=1")[0] == 0
    assert loopcoder("generate", f"run_dir={run}", f"prompt={prompt}", "temperature=0", "top_k=5")[0] == 0
    evaluate, generate = calls
    assert (evaluate.run_dir, evaluate.step, evaluate.json, evaluate.num_loops) == (run, 200, True, 1)
    assert (generate.run_dir, generate.prompt, generate.temperature, generate.top_k) == (run, prompt, 0.0, 5)


def test_diagnose_gets_its_options(monkeypatch, workplace, loopcoder):
    calls = []
    monkeypatch.setattr("loopcoder_train.diagnostics.command.diagnose_run", calls.append)
    assert loopcoder("diagnose", "runs/q", "num_samples=9", "attention_queries=null", "num_loops=3")[0] == 0
    assert loopcoder("diagnose", "runs/q")[0] == 0
    asked, default = calls
    assert (asked.run_dir, asked.num_samples, asked.attention_queries, asked.num_loops) == ("runs/q", 9, None, 3)
    assert (default.num_samples, default.attention_queries, default.num_loops) == (500, 64, None)


@pytest.mark.parametrize("path", ["a b", "a'b", "a,b=c", "a[1]{2}", "a\\b\\", "a\\'b", "it's\\\\'x", "~x:#y", "(z)"])
def test_paths_pass_through_hydra_unchanged(path, monkeypatch, workplace, loopcoder):
    calls = []
    monkeypatch.setattr("loopcoder_train.evaluation.command.evaluate_run", calls.append)
    assert loopcoder("evaluate", f"run_dir={path}")[0] == 0, quote(path)
    assert calls[0].run_dir == path


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen(command, workplace, loopcoder):
    code, out, error = loopcoder(*command.split(), "--help")
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert 5 <= len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert command in out and "--cfg job" in out + "--cfg job" * (command == "data show")


def test_help_of_pretrain_lists_every_file_to_choose(workplace, loopcoder):
    out = loopcoder("pretrain", "--help")[1]
    for group in ("experiment", "model", "schedule"):
        for file in CONFIGS.joinpath(group).iterdir():
            assert file.name.removesuffix(".yaml") in out or file.name.removesuffix(".yaml") in TUNING


def test_help_works_whatever_else_is_given(workplace, loopcoder):
    assert loopcoder("pretrain", "nonsense=1", "--help")[0] == 0


def test_help_and_errors_do_not_import_torch():
    program = (
        "import sys; from loopcoder_train.cli.main import main; "
        "lines = ['--help', 'pretrain --help', 'evaluate x a=1', 'data sow']; "
        "print([main(line.split()) for line in lines], 'torch' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr.splitlines()[-1] == "[0, 0, 2, 2] False"


def test_corpus_with_a_larger_vocabulary_is_refused(workplace, started, loopcoder, tmp_path):
    make_corpus(tmp_path / "large", vocab_size=5000)
    code, _, error = loopcoder("pretrain", QUICK[0], "data.corpus_dir=../large")
    assert code == 2 and not started
    assert "model.vocab_size=4096" in error and "5000" in error and "../large" in error

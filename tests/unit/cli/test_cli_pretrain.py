"""Resuming, starting over, sweeps: which folder, which run.yaml, which exit code."""

import json
import os
from pathlib import Path

from loopcoder_train.config.io import read_run_config
from loopcoder_train.runtime.lock import RunLock
from tests.unit.cli.conftest import QUICK


def names_of_runs():
    return sorted(path.name for path in Path("runs").iterdir())


def a_checkpoint(workplace):
    """Something that other options could spoil."""
    (workplace / "runs/quickstart/checkpoints/step-00000004").mkdir(parents=True)


def test_the_same_command_resumes(workplace, started, loopcoder):
    for _ in range(2):
        assert loopcoder("pretrain", *QUICK)[0] == 0
    assert started[0] == started[1]
    assert names_of_runs() == ["quickstart"]


def test_exit_code_of_the_workers_is_carried_through(workplace, started, loopcoder):
    for code in (1, 2, 130, 143):
        started.codes = [code]
        assert loopcoder("pretrain", *QUICK)[0] == code


def test_how_far_a_failed_attempt_came(workplace, loopcoder, monkeypatch):
    told = []

    def run_workers(run_yaml, *_, progress, **__):
        told.append(progress(0.0))
        for step in (1, 2):
            with (run_yaml.parent / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"kind": "train", "step": step, "attempt": 1, "time": 100.0 + step}) + "\n")
        told.extend([progress(100.0), progress(103.0)])
        return 1

    monkeypatch.setattr("launch.local.run_workers", run_workers)
    assert loopcoder("pretrain", *QUICK, "training.num_steps=40")[0] == 1
    assert told == ["before its first step", "after step 2 of 40", "before its first step"]


def test_other_options_are_refused_with_both_values_and_ways_out(workplace, started, loopcoder):
    assert loopcoder("pretrain", *QUICK)[0] == 0
    a_checkpoint(workplace)
    before = (workplace / "runs/quickstart/run.yaml").read_bytes()
    code, _, error = loopcoder("pretrain", *QUICK, "optimizer.beta1=0.8", "optimizer.beta2=0.9")
    assert code == 2 and error.count("\n") == 1
    for fragment in ("optimizer.beta1 0.9 -> 0.8", "optimizer.beta2 0.95 -> 0.9", "fresh=true",
                     "accept_config_changes=true", "another run_dir"):  # fmt: skip
        assert fragment in error
    assert (workplace / "runs/quickstart/run.yaml").read_bytes() == before
    assert len(started) == 1


def test_a_run_that_saved_nothing_may_start_with_other_options(workplace, started, loopcoder):
    assert loopcoder("pretrain", *QUICK)[0] == 0
    assert loopcoder("pretrain", *QUICK, "seed=3")[0] == 0
    assert read_run_config("runs/quickstart/run.yaml").seed == 3


def test_what_cannot_be_accepted_is_not_offered(workplace, started, loopcoder):
    """The saved position belongs to one token stream, the saved tensors to one shape."""
    assert loopcoder("pretrain", *QUICK)[0] == 0
    a_checkpoint(workplace)
    before = (workplace / "runs/quickstart/run.yaml").read_bytes()
    for words in ([], ["accept_config_changes=true"]):
        code, _, error = loopcoder("pretrain", *QUICK, "seed=3", "model.num_layers=3", *words)
        assert code == 2 and "seed 0 -> 3" in error and "model.num_layers 2 -> 3" in error
        assert "accept_config_changes" not in error and "fresh=true" in error
    assert (workplace / "runs/quickstart/run.yaml").read_bytes() == before


def test_what_the_workers_refuse_does_not_become_the_runs_configuration(workplace, started, loopcoder):
    assert loopcoder("pretrain", *QUICK)[0] == 0
    a_checkpoint(workplace)
    before = (workplace / "runs/quickstart/run.yaml").read_bytes()
    started.codes = [2]
    assert loopcoder("pretrain", *QUICK, "optimizer.beta2=0.9", "accept_config_changes=true")[0] == 2
    assert (workplace / "runs/quickstart/run.yaml").read_bytes() == before


def test_what_was_saved_under_accepted_options_keeps_them(workplace, started, loopcoder, monkeypatch):
    """A run that diverges after it has saved also ends with code 2: its checkpoints are of the new options."""
    assert loopcoder("pretrain", *QUICK)[0] == 0
    a_checkpoint(workplace)

    def save_and_diverge(run_yaml, *_, **__):
        (run_yaml.parent / "checkpoints/step-00000008").mkdir()
        return 2

    monkeypatch.setattr("launch.local.run_workers", save_and_diverge)
    assert loopcoder("pretrain", *QUICK, "optimizer.beta2=0.9", "accept_config_changes=true")[0] == 2
    assert read_run_config("runs/quickstart/run.yaml").optimizer.beta2 == 0.9


def test_layout_logging_and_intervals_may_change(workplace, started, loopcoder):
    assert loopcoder("pretrain", *QUICK)[0] == 0
    free = (
        "parallel.world_size=1",
        "training.micro_batch_size=1",
        "logging.tensorboard=true",
        "checkpoint.every_steps=9",
    )
    assert loopcoder("pretrain", *QUICK, *free)[0] == 0
    assert read_run_config("runs/quickstart/run.yaml").checkpoint.every_steps == 9


def test_changes_can_be_accepted(workplace, started, loopcoder):
    assert loopcoder("pretrain", *QUICK)[0] == 0
    a_checkpoint(workplace)
    assert loopcoder("pretrain", *QUICK, "optimizer.beta2=0.9", "accept_config_changes=true")[0] == 0
    assert read_run_config("runs/quickstart/run.yaml").optimizer.beta2 == 0.9


def test_fresh_sets_the_old_run_aside_and_is_said_once(workplace, started, loopcoder):
    assert loopcoder("pretrain", *QUICK)[0] == 0
    (workplace / "runs/quickstart/weights").write_text("precious")
    code, _, error = loopcoder("pretrain", *QUICK, "seed=3", "--fresh")
    assert code == 0 and error.count("\n") == 1 and "runs/quickstart.old-1" in error
    assert (workplace / "runs/quickstart.old-1/weights").read_text() == "precious"
    assert not (workplace / "runs/quickstart/weights").exists()
    assert loopcoder("pretrain", *QUICK, "fresh=true")[0] == 0
    assert names_of_runs() == ["quickstart", "quickstart.old-1", "quickstart.old-2"]
    # A worker that is restarted, or torchrun by hand, must resume instead of starting over.
    assert [config.fresh for config in started] == [False, False, False]


def test_fresh_without_a_run_is_an_ordinary_start(workplace, started, loopcoder):
    assert loopcoder("pretrain", *QUICK, "fresh=true") == (0, "", "")
    assert names_of_runs() == ["quickstart"]


def test_source_of_the_weights_is_looked_for_before_workers_start(workplace, started, loopcoder):
    for source, said in (
        ("runs/none", "model.init_from=runs/none: no such folder"),
        ("runs/none@4", "model.init_from=runs/none@4: no such folder"),
        ("@4", "model.init_from='@4': must be the folder of a run, or FOLDER@STEP"),
    ):
        code, _, error = loopcoder("pretrain", *QUICK, f"model.init_from={source}")
        assert code == 2 and error.count("\n") == 1 and said in error
    source = workplace / "runs/a=b,c"
    source.mkdir(parents=True)
    (source / "checkpoints/step-00000016.tmp-0123").mkdir(parents=True)
    assert "holds no checkpoint; " in loopcoder("pretrain", *QUICK, "model.init_from=runs/a=b,c")[2]
    for step in (4, 12):
        (source / f"checkpoints/step-{step:08d}").mkdir()
    code, _, error = loopcoder("pretrain", *QUICK, "model.init_from=runs/a=b,c@8")
    assert (
        code == 2
        and "model.init_from=runs/a=b,c@8: holds no checkpoint of step 8; it has those of steps 4, 12\n" in error
    )
    assert started == [] and names_of_runs() == ["a=b,c"]
    assert loopcoder("pretrain", *QUICK, "model.init_from=runs/a=b,c@12") == (0, "", "")
    assert started[0].model.init_source == ("runs/a=b,c", 12)


def test_a_run_that_resumes_needs_its_source_no_more_but_a_fresh_one_does(workplace, started, loopcoder):
    source = workplace / "runs/source/checkpoints/step-00000004"
    source.mkdir(parents=True)
    words = (*QUICK, "model.init_from=runs/source")
    assert loopcoder("pretrain", *words)[0] == 0
    a_checkpoint(workplace)
    source.rename(workplace / "gone")
    assert loopcoder("pretrain", *words)[0] == 0
    code, _, error = loopcoder("pretrain", *words, "fresh=true")
    assert code == 2 and "holds no checkpoint" in error and "quickstart.old-1" not in names_of_runs()
    code, _, error = loopcoder("pretrain", *QUICK)
    assert code == 2 and "model.init_from runs/source -> None" in error and "fresh=true" in error


def test_a_run_cannot_start_from_the_folder_that_it_sets_aside(workplace, started, loopcoder):
    assert loopcoder("pretrain", *QUICK)[0] == 0
    a_checkpoint(workplace)
    code, _, error = loopcoder("pretrain", *QUICK, "model.init_from=./runs/quickstart", "fresh=true")
    assert code == 2 and "is this run's own folder" in error and names_of_runs() == ["quickstart"]


def test_locks_are_held_as_needed(workplace, loopcoder, monkeypatch):
    seen = {}

    def run_workers(run_yaml, *_, **__):
        seen["worker"] = RunLock(run_yaml.parent).acquire(wait_seconds=0)  # rank 0 must get it
        seen["worker"].release()
        try:
            RunLock(run_yaml.parent, name="launcher").acquire(wait_seconds=0)
        except ValueError as error:
            seen["launcher"] = str(error)
        return 0

    monkeypatch.setattr("launch.local.run_workers", run_workers)
    for arguments in (QUICK, (*QUICK, "fresh=true")):
        assert loopcoder("pretrain", *arguments)[0] == 0
        assert f"process {os.getpid()}" in seen.pop("launcher")


def test_a_living_run_is_left_alone(workplace, started, loopcoder, monkeypatch):
    assert loopcoder("pretrain", *QUICK)[0] == 0
    before = (workplace / "runs/quickstart/run.yaml").read_bytes()
    monkeypatch.setattr("loopcoder_train.runtime.lock.RunLock.acquire.__defaults__", (0.2,))
    with RunLock("runs/quickstart"):
        for change in ("checkpoint.every_steps=3", "fresh=true"):
            code, _, error = loopcoder("pretrain", *QUICK, change)
            assert code == 2 and f"process {os.getpid()}" in error and "runs/quickstart" in error
    assert names_of_runs() == ["quickstart"]
    assert (workplace / "runs/quickstart/run.yaml").read_bytes() == before
    assert len(started) == 1


def test_damaged_run_yaml_is_named(workplace, started, loopcoder):
    assert loopcoder("pretrain", *QUICK)[0] == 0
    a_checkpoint(workplace)
    (workplace / "runs/quickstart/run.yaml").write_text("seed: {")
    code, _, error = loopcoder("pretrain", *QUICK)
    assert code == 2 and "runs/quickstart/run.yaml" in error and error.count("\n") == 1
    assert loopcoder("pretrain", *QUICK, "fresh=true")[0] == 0


def test_sweep_gives_each_job_its_folder(workplace, started, loopcoder):
    code, _, error = loopcoder("pretrain", "-m", *QUICK, "model.num_loops=1,2", "seed=0,1", "training.num_steps=3")
    assert (code, error) == (0, "")
    assert [config.run_dir for config in started] == [
        f"runs/quickstart/model.num_loops={loops},seed={seed}" for loops in (1, 2) for seed in (0, 1)
    ]
    assert [(config.model.num_loops, config.seed) for config in started] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [path.name for path in workplace.iterdir()] == ["runs"]  # no multirun/ folder


def test_sweep_over_folders_or_experiments(workplace, started, loopcoder):
    assert loopcoder("pretrain", "-m", *QUICK, "run_dir=runs/a,runs/b")[0] == 0
    assert loopcoder("pretrain", "-m", "experiment=paper_r1,paper_r2", "data=default", "seed=1", QUICK[2])[0] == 0
    assert loopcoder("pretrain", "-m", *QUICK, "run_dir=runs/c", "data.corpus_dir=../corpus,./../corpus")[0] == 0
    assert [config.run_dir for config in started] == [
        "runs/a", "runs/b",
        "runs/paper_r1", "runs/paper_r2",
        "runs/c/data.corpus_dir=.._corpus", "runs/c/data.corpus_dir=._.._corpus",
    ]  # fmt: skip


def test_failed_job_does_not_stop_a_sweep_but_shows_in_its_code(workplace, started, loopcoder):
    started.codes = [0, 1, 0]
    code, _, error = loopcoder("pretrain", "-m", *QUICK, "seed=0,1,2")
    assert code == 1 and len(started) == 3
    assert error == "loopcoder: 1 of 3 runs failed: seed=1\n"


def test_impossible_job_of_a_sweep_is_named(workplace, started, loopcoder):
    code, _, error = loopcoder("pretrain", "-m", *QUICK, "model.num_loops=1,0,2")
    assert code == 2 and [config.model.num_loops for config in started] == [1, 2]
    lines = error.splitlines()
    assert len(lines) == 2 and "model.num_loops=0: must be at least 1" in lines[0] and "1 of 3" in lines[1]


def test_interrupted_job_ends_the_sweep(workplace, started, loopcoder):
    started.codes = [0, 130, 0]
    code, _, _ = loopcoder("pretrain", "-m", *QUICK, "seed=0,1,2")
    assert code == 130 and len(started) == 2


def test_fresh_sets_the_mirror_aside_and_another_runs_mirror_is_refused(workplace, started, loopcoder):
    options = (*QUICK, "run_dir=runs/x", "checkpoint.mirror_dir=mirrors")
    mirror = workplace / "mirrors" / "x"
    (mirror / "checkpoints").mkdir(parents=True)
    (mirror / "mirror-of").write_text(str(workplace / "runs" / "x") + "\n")
    assert loopcoder("pretrain", *options)[0] == 0 and mirror.exists()
    code, _, error = loopcoder("pretrain", *options, "fresh=true")
    assert code == 0 and "its mirror was moved to mirrors/x.old-1" in error
    assert not mirror.exists() and (workplace / "mirrors" / "x.old-1" / "checkpoints").is_dir()
    mirror.mkdir()
    (mirror / "mirror-of").write_text("/elsewhere/x\n")
    code, _, error = loopcoder("pretrain", *options, "fresh=true")
    assert code == 2 and "checkpoint.mirror_dir=mirrors" in error and "/elsewhere/x" in error
    assert mirror.exists() and (workplace / "runs" / "x" / "run.yaml").exists()

"""Whatever a user gets wrong: exit code 2, one line, no traceback, the option named, nothing started, nothing left."""

import subprocess
import sys

import pytest

from tests.unit.cli.conftest import QUICK

Q = " ".join(QUICK)
TABLE = [
    # misspelt
    ("pretrain experiment=quikstart", ["experiment=quikstart", "did you mean quickstart?"]),
    (f"pretrain {Q} model=tinny", ["model=tinny", "did you mean tiny?"]),
    (f"pretrain {Q} model.num_lops=3", ["model.num_lops", "did you mean model.num_loops?"]),
    (f"pretrain {Q} num_loops=3", ["num_loops", "did you mean model.num_loops?"]),
    (f"pretrain {Q} modle=tiny", ["modle", "did you mean model?"]),
    (f"pretrain {Q} +model.num_lops=3", ["model.num_lops", "did you mean model.num_loops?"]),
    (f"pretrain {Q} +rundir=x", ["rundir", "did you mean run_dir?"]),
    (f"pretrain {Q} _target_=os.system", ["_target_: unknown option"]),
    (f"pretrain {Q} +model._target_=os.system", ["model._target_: unknown option"]),
    ("pretain", ["pretain: unknown command", "did you mean pretrain?"]),
    ("data sow", ["data sow: unknown command", "did you mean show?"]),
    ("evaluate runs/x stpe=3", ["stpe", "did you mean step?"]),
    ("generate runs/x prompt=a temprature=3", ["temprature", "did you mean temperature?"]),
    ("data build corpus_dri=x", ["corpus_dri", "did you mean corpus_dir?"]),
    ("data build data_build=defalt", ["data_build=defalt", "did you mean default?"]),
    ("pretrain --cgf job", ["--cgf: unknown flag", "did you mean --cfg?"]),
    ("pretrain --experimental-rerun x.pickle", ["--experimental-rerun: unknown flag"]),
    # wrong type
    (f"pretrain {Q} model.num_loops=two", ["model.num_loops", "two", "<int>"]),
    (f"pretrain {Q} model.num_loops=2.5", ["model.num_loops", "2.5", "<int>"]),
    (f"pretrain {Q} model.num_loops=null", ["model.num_loops", "<int>"]),
    (f"pretrain {Q} optimizer.peak_lr=fast", ["optimizer.peak_lr", "fast", "<float>"]),
    (f"pretrain {Q} fresh=maybe", ["fresh", "maybe", "<bool>"]),
    (f"pretrain {Q} training.precision=fp16", ["training.precision", "fp16", "fp32"]),
    (f"pretrain {Q} data.shares=3", ["data.shares"]),
    (f"pretrain {Q} data.shares.python=much", ["data.shares.python", "much"]),
    (f"pretrain {Q} model=3", ["group"]),
    ("generate runs/x prompt=a top_k=many", ["top_k", "many", "<int>"]),
    # missing
    ("pretrain", ["experiment: is not set", "quickstart"]),
    ("pretrain experiment=null", ["model: is not set", "tiny"]),
    ("pretrain experiment=null model=tiny run_dir=x", ["training.global_batch_size: is not set", "<int>"]),
    (f"pretrain {Q} training.num_steps=???", ["training.num_steps: is not set", "<int>"]),
    ("pretrain --cfg", ["--cfg: needs a value"]),
    ("evaluate", ["run_dir: is not set"]),
    ("generate runs/x", ["prompt: is not set"]),
    ("generate runs/x prompt=", ["prompt=''"]),
    # grammar
    ("pretrain quickstart", ["quickstart: is not of the form option=value"]),
    (f"pretrain {Q} model.num_loops=1,2", ["model.num_loops=1,2", "-m"]),
    (f"pretrain {Q} model.num_loops=[1", ["model.num_loops=[1"]),
    (f"pretrain {Q} ~model.num_loops", ["model.num_loops"]),
    (f"pretrain {Q} run_dir=${{nope}}", ["run_dir", "nope"]),
    # impossible
    (f"pretrain {Q} training.num_steps=0", ["training.num_steps=0", "greater than 0"]),
    (f"pretrain {Q} model.window_left=-1", ["model.window_left=-1"]),
    (f"pretrain {Q} model.num_loops=0", ["model.num_loops=0", "at least 1"]),
    (f"pretrain {Q} model.num_key_value_heads=3", ["model.num_key_value_heads=3", "num_attention_heads=4"]),
    (f"pretrain {Q} parallel.tensor_parallel_size=3 parallel.world_size=3", ["model.num_attention_heads=4", "=3"]),
    (f"pretrain {Q} training.global_batch_size=7", ["training.global_batch_size=7", "multiple"]),
    (f"pretrain {Q} parallel.sequence_parallel=true", ["parallel.sequence_parallel", "tensor_parallel_size"]),
    (f"pretrain {Q} optimizer.peak_lr=nan", ["optimizer.peak_lr=nan"]),
    (f"pretrain {Q} engine=plain", ["engine=plain", "world_size"]),
    (f"pretrain {Q} model.vocab_size=1000", ["model.vocab_size=1000", "4096", "../corpus"]),
    # not there
    ("pretrain experiment=quickstart", ["corpora/default", "loopcoder data build"]),
    (f"pretrain {Q} run_dir=/proc/x", ["run_dir=/proc/x"]),
    ("data show nowhere", ["nowhere"]),
    ("checkpoint list nowhere", ["run_dir=nowhere", "holds no run"]),
    ("checkpoint verify nowhere", ["run_dir=nowhere", "holds no run"]),
    ("checkpoint prune nowhere keep_last=1", ["run_dir=nowhere", "holds no run"]),
    ("checkpoint prune runs/x", ["keep_last: is not set", "<int>"]),
    ("checkpoint prune runs/x keep_last=0", ["keep_last=0", "greater than 0"]),
    ("checkpoint prune runs/x keep_last=1 keep_every_steps=-1", ["keep_every_steps=-1", "0 (none) or more"]),
    ("checkpoint lsit runs/x", ["checkpoint lsit: unknown command", "did you mean list?"]),
    (f"pretrain {Q} checkpoint.mirror_keep_last=0", ["checkpoint.mirror_keep_last=0", "greater than 0"]),
    (f"pretrain {Q} checkpoint.mirror_dir=", ["checkpoint.mirror_dir=''", "must name a folder"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "fragments"), TABLE, ids=[line for line, _ in TABLE])
def test_one_line_that_helps(line, fragments, workplace, started, loopcoder):
    code, out, error = loopcoder(*line.split())
    assert code == 2, error
    assert out == "" and error.startswith("loopcoder: error: ") and error.count("\n") == 1, error
    for fragment in fragments:
        assert fragment in error
    assert started == [] and list(workplace.iterdir()) == []


def test_broken_yaml_in_an_own_folder_is_one_line(workplace, started, loopcoder, tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    cases = {"model: [1\n": "mine", "model: {num_lops: 3}\n": "model.num_lops", "seed: many\n": "seed"}
    for content, fragment in cases.items():
        (folder / "mine.yaml").write_text(f"# @package _global_\n{content}")
        code, _, error = loopcoder("pretrain", "--config-dir", str(folder.parent), "experiment=mine", "model=tiny")
        assert code == 2 and error.count("\n") == 1 and fragment in error, error


def run_command(*arguments, cwd):
    command = [sys.executable, "-m", "loopcoder_train.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


def test_as_a_real_process(workplace):
    result = run_command("pretrain", *QUICK, "model.num_lops=3", cwd=workplace)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "loopcoder: error: model.num_lops: unknown option; did you mean model.num_loops?\n"
    assert list(workplace.iterdir()) == []


def test_a_closed_pipe_is_no_error(workplace):
    command = f"{sys.executable} -m loopcoder_train.cli.main pretrain {Q} --cfg job | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=workplace, timeout=60)
    assert result.stderr == "" and len(result.stdout.splitlines()) == 1


def test_a_bug_is_not_dressed_up_as_a_users_error(workplace, loopcoder, monkeypatch):
    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr("launch.local.run_workers", broken)
    with pytest.raises(ValueError, match="a bug"):
        loopcoder("pretrain", *QUICK)


def test_interrupt_has_its_own_code(workplace, loopcoder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.local.run_workers", interrupted)
    code, _, error = loopcoder("pretrain", *QUICK)
    assert (code, error) == (130, "loopcoder: interrupted\n")

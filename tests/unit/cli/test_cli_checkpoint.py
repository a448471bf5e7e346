"""`loopcoder checkpoint list, verify, prune`: what is there, is it whole, what may go."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loopcoder_train.checkpoint import find_checkpoint
from loopcoder_train.config.io import write_run_config
from loopcoder_train.config.run import CheckpointConfig
from loopcoder_train.runtime.lock import RunLock
from tests.unit.checkpoint.builders import assert_holds, save_step
from tests.unit.config.test_config_io import make_config

TENSORS = "tensors-00000-of-00001.safetensors"
PLENTY = 100


@pytest.fixture
def run_dir(workplace):
    """A run with checkpoints of steps 10, 20, 30 and 40, whose rule would keep two and the multiples of 20."""
    path = Path("runs/r")
    path.mkdir(parents=True)
    options = CheckpointConfig(keep_last=2, keep_every_steps=20, mirror_dir="mirror")
    write_run_config(replace(make_config(run_dir=str(path)), checkpoint=options), path / "run.yaml")
    for step in (10, 20, 30, 40):
        save_step(path, step, keep_last=PLENTY)
    return path


def folder_of(run_dir, step):
    return run_dir / "checkpoints" / f"step-{step:08d}"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def steps_of(run_dir):
    return sorted(int(path.name.removeprefix("step-")) for path in run_dir.glob("checkpoints/step-*"))


def listed(loopcoder, run_dir):
    code, out, error = loopcoder("checkpoint", "list", str(run_dir), "json=true")
    assert (code, error) == (0, ""), error
    return [json.loads(line) for line in out.splitlines()]


def test_list_says_state_rule_size_and_mirror(run_dir, loopcoder):
    shutil.copytree(folder_of(run_dir, 40), folder_of(Path("mirror/r"), 40))
    shutil.copytree(folder_of(run_dir, 40), folder_of(Path("mirror/r"), 30))  # another content
    shutil.copytree(folder_of(run_dir, 10), folder_of(Path("mirror/r"), 5))
    entries = listed(loopcoder, run_dir)
    assert [(e["step"], e["state"], e["kept_by"], e["mirrored"]) for e in entries] == [
        (10, "good", "", "no"),
        (20, "good", "keep_every_steps=20", "no"),
        (30, "good", "keep_last=2", "no"),
        (40, "good", "newest good", "yes"),
        (5, "bad", "", "only there"),
    ]
    for entry in entries:
        assert entry["size_bytes"] == sum(path.stat().st_size for path in Path(entry["path"]).iterdir())
        assert entry["saved_at"].endswith("+00:00")


def test_list_tells_bad_and_interrupted_ones_with_the_reason(run_dir, loopcoder):
    (folder_of(run_dir, 40) / "COMMIT").unlink()
    (folder_of(run_dir, 30) / TENSORS).write_bytes(b"short")
    folder_of(run_dir, 10).rename(run_dir / "checkpoints" / "step-00000010.tmp-ab")
    told = {e["step"]: (e["state"], e["kept_by"], e["reason"]) for e in listed(loopcoder, run_dir)}
    assert told[10][:2] == ("not committed", "") and "killed save" in told[10][2]
    assert told[20] == ("good", "newest good", "")
    assert told[30][:2] == ("bad", "newer than it") and TENSORS in told[30][2]
    assert told[40][:2] == ("not committed", "newer than it") and "has no COMMIT" in told[40][2]


def test_list_as_a_table_and_of_nothing(run_dir, loopcoder):
    lines = loopcoder("checkpoint", "list", str(run_dir))[1].splitlines()
    assert lines[0].split()[:3] == ["step", "saved", "(UTC)"]
    assert "newest good" in lines[4] and "nothing" in lines[1]
    shutil.rmtree(run_dir / "checkpoints")
    assert loopcoder("checkpoint", "list", str(run_dir))[:2] == (0, f"{run_dir}: no checkpoints\n")


def test_verify_reads_every_byte_and_names_each_bad_folder(run_dir, loopcoder):
    code, out, error = loopcoder("checkpoint", "verify", str(run_dir))
    assert (code, error) == (0, "") and out.count(": good, ") == 4
    flip(folder_of(run_dir, 20) / TENSORS)  # sizes and small files stay right
    flip(folder_of(run_dir, 40) / TENSORS)
    assert {e["state"] for e in listed(loopcoder, run_dir)} == {"good"}
    code, out, error = loopcoder("checkpoint", "verify", str(run_dir))
    assert code == 2 and out.count(": good, ") == 2
    assert [("step-00000020" in line, "step-00000040" in line) for line in error.splitlines()] == [
        (True, False),
        (False, True),
    ]
    assert loopcoder("checkpoint", "verify", str(run_dir), "step=30")[0] == 0
    assert loopcoder("checkpoint", "verify", str(run_dir), "step=40")[0] == 2


def test_verify_of_an_interrupted_save_and_of_a_step_that_is_not_there(run_dir, loopcoder):
    (folder_of(run_dir, 40) / "COMMIT").unlink()
    code, out, error = loopcoder("checkpoint", "verify", str(run_dir))
    assert (code, error) == (0, "") and "not committed" in out
    assert loopcoder("checkpoint", "verify", str(run_dir), "step=40")[0] == 2
    code, _, error = loopcoder("checkpoint", "verify", str(run_dir), "step=7")
    assert code == 2 and "no checkpoint of step 7" in error


def test_prune_deletes_what_no_rule_keeps_and_says_how_much(run_dir, loopcoder):
    before = sum(e["size_bytes"] for e in listed(loopcoder, run_dir))
    gone = sum(e["size_bytes"] for e in listed(loopcoder, run_dir) if e["step"] in (10, 30))
    code, out, _ = loopcoder("checkpoint", "prune", str(run_dir), "keep_last=1", "dry_run=true")
    assert code == 0 and steps_of(run_dir) == [10, 20, 30, 40]
    assert "would delete step-00000010" in out and f"{gone:,} bytes would be freed" in out
    code, out, _ = loopcoder("checkpoint", "prune", str(run_dir), "keep_last=1")
    assert code == 0 and steps_of(run_dir) == [20, 40], "the run's own keep_every_steps=20 holds"
    assert f"{gone:,} bytes freed" in out and "step 40, was verified" in out
    assert sum(e["size_bytes"] for e in listed(loopcoder, run_dir)) == before - gone
    assert loopcoder("checkpoint", "prune", str(run_dir), "keep_last=1", "keep_every_steps=0")[0] == 0
    assert steps_of(run_dir) == [40]
    assert_holds(find_checkpoint(run_dir).checkpoint, 40)


def test_prune_counts_from_the_newest_good_one_and_leaves_newer_ones(run_dir, loopcoder):
    flip(folder_of(run_dir, 40) / TENSORS)
    (run_dir / "checkpoints" / "step-00000050.tmp-ab").mkdir()
    code, out, _ = loopcoder("checkpoint", "prune", str(run_dir), "keep_last=1", "keep_every_steps=0")
    assert code == 0 and "step 30, was verified" in out and "deleted step-00000050.tmp-ab" in out
    assert steps_of(run_dir) == [30, 40]
    assert_holds(find_checkpoint(run_dir).checkpoint, 30)


def test_prune_deletes_nothing_where_nothing_is_good(run_dir, loopcoder):
    for step in (10, 20, 30, 40):
        flip(folder_of(run_dir, step) / TENSORS)
    code, _, error = loopcoder("checkpoint", "prune", str(run_dir), "keep_last=1")
    assert code == 2 and "nothing is deleted" in error
    assert steps_of(run_dir) == [10, 20, 30, 40]


def test_prune_keeps_the_good_former_of_a_bad_one(run_dir, loopcoder):
    shutil.copytree(folder_of(run_dir, 40), run_dir / "checkpoints" / "step-00000040.old-ab")
    flip(folder_of(run_dir, 40) / TENSORS)
    code, _, error = loopcoder("checkpoint", "prune", str(run_dir), "keep_last=1")
    assert code == 2 and "step-00000040.old-ab: is the newest good checkpoint" in error
    assert_holds(find_checkpoint(run_dir).checkpoint, 40)


@pytest.mark.parametrize("name", ["run", "launcher"])
def test_prune_leaves_a_run_alone_that_somebody_writes_to(run_dir, loopcoder, name):
    with RunLock(run_dir, name):
        code, _, error = loopcoder("checkpoint", "prune", str(run_dir), "keep_last=1")
        assert code == 2 and f"run_dir={run_dir}: is in use by process" in error
        assert steps_of(run_dir) == [10, 20, 30, 40]
        assert len(listed(loopcoder, run_dir)) == 4 and loopcoder("checkpoint", "verify", str(run_dir))[0] == 0

"""A file that is not as it was saved makes its checkpoint a bad one, with the reason; the one before it is taken."""

import os
import shutil

import pytest

from loopcoder_train.checkpoint import Checkpoint, CheckpointError, checkpoints_of, find_checkpoint, require_checkpoint
from tests.unit.checkpoint.builders import assert_holds, on_ranks, reseal, save_step

FILES = ("tensors-00000-of-00001.safetensors", "index.json", "state.json", "manifest.json", "COMMIT")


@pytest.fixture
def run_dir(tmp_path):
    save_step(tmp_path, 1)
    save_step(tmp_path, 2)
    return tmp_path


def flip_byte(path, where):
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def assert_falls_back(run_dir, file):
    found = find_checkpoint(run_dir)
    assert_holds(found.checkpoint, 1)
    assert len(found.rejected) == 1 and "\n" not in found.rejected[0] and "step-00000002" in found.rejected[0]
    named = "manifest.json" if file == "COMMIT" else file  # a wrong COMMIT does not fit its manifest
    assert named in found.rejected[0] and found.damaged


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.98])
def test_flipped_byte_falls_back(run_dir, file, where):
    flip_byte(run_dir / "checkpoints/step-00000002" / file, where)
    assert_falls_back(run_dir, file)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("length", [0.0, 0.5, 0.99])
def test_truncation_falls_back(run_dir, file, length):
    path = run_dir / "checkpoints/step-00000002" / file
    path.write_bytes(path.read_bytes()[: int(length * path.stat().st_size)])
    assert_falls_back(run_dir, file)


@pytest.mark.parametrize("file", FILES[:-1])
def test_missing_file_falls_back(run_dir, file):
    (run_dir / "checkpoints/step-00000002" / file).unlink()
    assert_falls_back(run_dir, file)


def test_a_file_that_grew_falls_back(run_dir):
    with (run_dir / "checkpoints/step-00000002" / FILES[0]).open("ab") as file:
        file.write(b"\0")
    assert_falls_back(run_dir, FILES[0])


def test_a_flipped_byte_in_one_ranks_share_is_found_by_every_rank(run_dir):
    """Ranks share the hashing; a fault in any rank's file must reject the checkpoint on all."""
    flip_byte(run_dir / "checkpoints/step-00000002" / FILES[0], 0.7)
    for found in on_ranks(3, lambda ranks: find_checkpoint(run_dir, ranks=ranks)):
        assert_holds(found.checkpoint, 1)
        assert FILES[0] in found.rejected[0]


def test_missing_commit_is_an_interrupted_save(run_dir):
    (run_dir / "checkpoints/step-00000002/COMMIT").unlink()
    found = find_checkpoint(run_dir)
    assert_holds(found.checkpoint, 1)
    assert "no COMMIT" in found.rejected[0] and not found.damaged
    assert [checkpoint.step for checkpoint in checkpoints_of(run_dir)] == [1]


def test_all_bad_finds_none_and_says_so(run_dir):
    for step in (1, 2):
        flip_byte(run_dir / f"checkpoints/step-0000000{step}/state.json", 0.5)
    found = find_checkpoint(run_dir)
    assert found.checkpoint is None and len(found.rejected) == 2 and found.damaged
    assert "step-00000002" in found.rejected[0]
    with pytest.raises(CheckpointError, match=r"step-00000002/state\.json"):
        require_checkpoint(run_dir)


@pytest.mark.parametrize("latest", [None, "", "step-00000099\n", "step-00000001\n", "../../etc\n", "\xff\0"])
def test_discovery_does_not_depend_on_latest(run_dir, latest):
    path = run_dir / "checkpoints/latest"
    path.unlink() if latest is None else path.write_bytes(latest.encode("latin-1"))
    assert_holds(find_checkpoint(run_dir).checkpoint, 2)


def test_named_step(run_dir):
    assert_holds(find_checkpoint(run_dir, step=1).checkpoint, 1)
    assert find_checkpoint(run_dir, step=5).checkpoint is None
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        require_checkpoint(run_dir, step=5)


def test_nothing_there(tmp_path):
    found = find_checkpoint(tmp_path / "nowhere")
    assert found.checkpoint is None and found.rejected == [] and not found.damaged
    with pytest.raises(CheckpointError, match="train first"):
        require_checkpoint(tmp_path / "nowhere")
    assert checkpoints_of(tmp_path) == []


def test_a_renamed_folder_is_not_another_step(run_dir):
    (run_dir / "checkpoints/step-00000002").rename(run_dir / "checkpoints/step-00000009")
    found = find_checkpoint(run_dir)
    assert_holds(found.checkpoint, 1)
    assert "holds step 2" in found.rejected[0]


def test_a_copy_elsewhere_is_complete(run_dir, tmp_path_factory):
    """A second location needs the folder only: nothing in it depends on where it lies."""
    other = tmp_path_factory.mktemp("other") / "kept"
    shutil.copytree(run_dir / "checkpoints/step-00000002", other)
    Checkpoint(other).verify()
    assert_holds(Checkpoint(other), 2)


def test_quick_verification_does_not_hash_tensors(run_dir):
    checkpoint = run_dir / "checkpoints/step-00000002"
    flip_byte(checkpoint / FILES[0], 0.9)
    Checkpoint(checkpoint).verify(full=False)
    with pytest.raises(CheckpointError, match="SHA-256"):
        Checkpoint(checkpoint).verify()
    os.truncate(checkpoint / FILES[0], 5)
    with pytest.raises(CheckpointError, match="has 5 bytes"):
        Checkpoint(checkpoint).verify(full=False)


@pytest.mark.parametrize(
    ("file", "old", "new"), [("state.json", b'"loss": 2.1', b'"loss": 2.2'), ("index.json", b"bfloat16", b"bfloat61")]
)
def test_json_files_are_hashed_also_for_a_reader_who_does_not_verify(run_dir, file, old, new):
    path = run_dir / "checkpoints/step-00000002" / file
    changed = path.read_bytes().replace(old, new)
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    checkpoint = Checkpoint(path.parent)
    with pytest.raises(CheckpointError, match=f"{file}: does not have the SHA-256"):
        _ = checkpoint.state, checkpoint.tensor_names()


def test_unknown_format_version_is_named(run_dir):
    folder = run_dir / "checkpoints/step-00000002"
    reseal(folder, lambda manifest: manifest.update(format_version=2))
    with pytest.raises(CheckpointError, match="format_version=2, this program reads 1"):
        Checkpoint(folder).verify()

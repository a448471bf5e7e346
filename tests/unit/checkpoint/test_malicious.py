"""More folders made to do harm (see test_hostile.py): what a safetensors header and a manifest can claim."""

import hashlib
import os
import pickle

import pytest

from loopcoder_train.checkpoint import Checkpoint, CheckpointError, find_checkpoint
from tests.unit.checkpoint.builders import assert_holds, reseal, save_step
from tests.unit.checkpoint.test_hostile import TENSORS, _header, _write_header, assert_refused

DEEP = 100_000


@pytest.fixture
def folder(tmp_path):
    save_step(tmp_path, 1)
    return save_step(tmp_path, 2).path


class _Harm:
    def __reduce__(self):
        return os.mkdir, ("pickle-was-executed",)


@pytest.mark.parametrize("file", ["index.json", "state.json", "manifest.json", "COMMIT"])
def test_pickle_in_place_of_any_file(folder, file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (folder / file).write_bytes(pickle.dumps(_Harm()))
    if file in ("index.json", "state.json"):
        reseal(folder)
    assert_refused(folder, file if file != "COMMIT" else "manifest.json")
    assert not (tmp_path / "pickle-was-executed").exists()


def test_a_pickle_under_a_name_of_torch_is_not_read(folder, monkeypatch, tmp_path):
    """Whatever lies beside the files of the manifest is never opened."""
    monkeypatch.chdir(tmp_path)
    (folder / "model.pt").write_bytes(pickle.dumps(_Harm()))
    Checkpoint(folder).verify()
    assert_holds(find_checkpoint(tmp_path).checkpoint, 2)
    assert not (tmp_path / "pickle-was-executed").exists()


@pytest.mark.parametrize(
    "lie",
    [
        lambda h: h["model/embed"].update(data_offsets=h["model/norm"]["data_offsets"]),  # the bytes of another tensor
        lambda h: h["model/norm"].update(data_offsets=[h["model/embed"]["data_offsets"][0], 10**6]),
        lambda h: h["model/embed"].update(data_offsets=h["model/embed"]["data_offsets"][::-1]),
        lambda h: h["model/embed"].update(dtype="F64"),  # twice the bytes that it has
        lambda h: h["model/embed"].update(dtype="PICKLE"),
        lambda h: h["model/embed"].update(shape=[2**62, 2**62]),  # the product passes 64 bits
        lambda h: h["model/embed"].update(shape=[-6, -4]),
        lambda h: h["model/embed"].pop("dtype"),
        lambda h: h.pop("model/embed"),
    ],
)
def test_safetensors_header_that_lies(folder, lie):
    header, data = _header(folder / TENSORS)
    lie(header)
    _write_header(folder / TENSORS, header, data)
    reseal(folder)
    assert_refused(folder, TENSORS)


@pytest.mark.parametrize("size", [0, 2**32, 2**63, 2**64 - 1])
def test_safetensors_header_length_that_lies(folder, size):
    content = bytearray((folder / TENSORS).read_bytes())
    content[:8] = size.to_bytes(8, "little")
    (folder / TENSORS).write_bytes(content)
    reseal(folder)
    assert_refused(folder, "not a readable safetensors file")


@pytest.mark.parametrize("text", ["[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "9" * 10_000, "NaN"])
@pytest.mark.parametrize("file", ["index.json", "state.json", "manifest.json", TENSORS])
def test_hard_to_parse_json(folder, file, text):
    content = text.encode()
    if file == TENSORS:
        content = len(content).to_bytes(8, "little") + content
    (folder / file).write_bytes(content)
    if file == "manifest.json":
        (folder / "COMMIT").write_text(hashlib.sha256(content).hexdigest() + "\n")
    else:
        reseal(folder)
    assert_refused(folder, file)


@pytest.mark.parametrize("size", [2**70, -1, True, 1.0, float("nan"), "1"])
def test_sizes_of_the_manifest_that_lie(folder, size):
    reseal(folder, lambda manifest: manifest["files"][0].update(size_bytes=size))
    with pytest.raises(CheckpointError):
        Checkpoint(folder).verify()
    assert_holds(find_checkpoint(folder.parent.parent).checkpoint, 1)


def test_an_index_larger_than_its_limit_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr("loopcoder_train.checkpoint.integrity.MAX_JSON_BYTES", 4000)
    assert max(path.stat().st_size for path in folder.glob("*.json")) < 4000
    (folder / "index.json").write_bytes((folder / "index.json").read_bytes().ljust(5000))
    reseal(folder)
    assert_refused(folder, "larger than 4000 bytes")

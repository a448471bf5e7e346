"""Folders made to do harm, with hashes that fit: each is refused before anything outside or oversized is touched."""

import hashlib
import json
import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopcoder_train.checkpoint import Checkpoint, CheckpointError, find_checkpoint
from loopcoder_train.checkpoint.integrity import open_regular
from loopcoder_train.checkpoint.layout import is_plain_file_name, parse_folder
from tests.unit.checkpoint.builders import assert_holds, reseal, save_step

TENSORS = "tensors-00000-of-00001.safetensors"


@pytest.fixture
def folder(tmp_path):
    save_step(tmp_path, 1)
    return save_step(tmp_path, 2).path


def assert_refused(folder, match):
    with pytest.raises(CheckpointError, match=match):
        Checkpoint(folder).verify()
    with pytest.raises(CheckpointError):  # nor is it read by somebody who does not verify
        checkpoint = Checkpoint(folder)
        assert checkpoint.state
        for name in checkpoint.tensor_names():
            checkpoint.read_tensor(name)
    found = find_checkpoint(folder.parent.parent)
    assert_holds(found.checkpoint, 1)
    assert "\n" not in found.rejected[0]


def edit_index(folder, edit):
    content = json.loads((folder / "index.json").read_text())
    edit(content["tensors"])
    (folder / "index.json").write_text(json.dumps(content))
    reseal(folder)


def box_of(tensors, name="model/embed"):
    return tensors[name]["boxes"][0]


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "a/b", "..", "", ".hidden", "a\0b", "x\n"])
def test_index_that_points_outside(folder, file):
    (folder.parent / "secret.safetensors").write_bytes((folder / TENSORS).read_bytes())
    edit_index(folder, lambda tensors: box_of(tensors).update(file=file))
    assert_refused(folder, "not a file of the manifest")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "COMMIT", "manifest.json", "a\\b/../c"])
def test_manifest_that_points_outside(folder, name):
    reseal(folder, lambda manifest: manifest["files"][0].update(name=name))
    assert_refused(folder, "not a plain name")


@pytest.mark.parametrize("file", [TENSORS, "state.json", "index.json", "manifest.json", "COMMIT"])
def test_link_in_place_of_a_file(folder, file, tmp_path):
    outside = tmp_path / "outside"
    (folder / file).rename(outside)
    (folder / file).symlink_to(outside)
    assert_refused(folder, "link|cannot be read")


def test_additional_link(folder):
    (folder / "note").symlink_to("/etc")
    assert_refused(folder, "is a link")


def test_folder_that_is_a_link(folder, tmp_path):
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert_refused(folder, "is not a folder")


def test_pipe_in_place_of_a_file_does_not_hang(folder):
    (folder / "COMMIT").unlink()
    os.mkfifo(folder / "COMMIT")
    assert_refused(folder, "not a regular file")


class _Harm:
    def __reduce__(self):
        return os.mkdir, ("pickle-was-executed",)


def test_pickle_in_place_of_safetensors(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(_Harm()).ljust((folder / TENSORS).stat().st_size, b"\0")
    (folder / TENSORS).write_bytes(content)
    reseal(folder)
    assert_refused(folder, "not a readable safetensors file")
    assert not (tmp_path / "pickle-was-executed").exists()


def _header(path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _write_header(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("end", [10**15, -1, 96 + 8])
def test_safetensors_header_that_lies_about_offsets(folder, end):
    header, data = _header(folder / TENSORS)
    header["model/embed"]["data_offsets"][1] = end
    _write_header(folder / TENSORS, header, data)
    reseal(folder)
    assert_refused(folder, "not a readable safetensors file")


def test_safetensors_header_longer_than_the_file(folder):
    content = bytearray((folder / TENSORS).read_bytes())
    content[:8] = (2**60).to_bytes(8, "little")
    (folder / TENSORS).write_bytes(content)
    reseal(folder)
    assert_refused(folder, "not a readable safetensors file")


def test_safetensors_header_with_another_shape(folder):
    header, data = _header(folder / TENSORS)
    header["model/embed"]["shape"] = [4, 6]
    _write_header(folder / TENSORS, header, data)
    reseal(folder)
    assert_refused(folder, "model/embed is not as the index says")


def test_safetensors_header_with_another_dtype(folder):
    header, data = _header(folder / TENSORS)
    header["model/embed"]["dtype"] = "I32"
    _write_header(folder / TENSORS, header, data)
    reseal(folder)
    with pytest.raises(CheckpointError, match="model/embed is not as the index says"):
        Checkpoint(folder).verify()
    with pytest.raises(CheckpointError, match="I32"):
        Checkpoint(folder).read_tensor("model/embed")


HUGE = [2**40, 4]


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda t: t["model/embed"].update(global_shape=HUGE), "of .* elements"),
        (lambda t: (t["model/embed"].update(global_shape=HUGE), box_of(t).update(lengths=HUGE)), "claims .* bytes"),
        (lambda t: box_of(t).update(offsets=[-1, 0]), "not up to"),
        (lambda t: box_of(t).update(offsets=[1, 0]), "outside its shape"),
        (lambda t: box_of(t).update(offsets=[0.0, 0]), "not up to"),
        (lambda t: box_of(t).update(offsets=[False, 0]), "not up to"),
        (lambda t: box_of(t).update(lengths=[5, 4]), "20 of 24 elements"),
        (lambda t: box_of(t).update(lengths=[24]), "outside its shape"),
        (lambda t: box_of(t).update(lengths=[2**70, 1]), "not up to"),
        (lambda t: box_of(t).update(key=7), "key is not of type str"),
        (lambda t: box_of(t).update(key="model/norm"), "a second time|not as the index|has shape"),
        (lambda t: t.update(other=t["model/embed"]), "other uses key|embed uses key"),
        (lambda t: box_of(t).update(key="nowhere"), "nowhere"),
        (lambda t: box_of(t).pop("key"), "exactly the fields"),
        (lambda t: box_of(t).update(more=1), "exactly the fields"),
        (lambda t: t["model/embed"]["boxes"].append(box_of(t)), "elements twice"),
        (lambda t: t["model/embed"].update(dtype="object"), "unknown dtype"),
        (lambda t: t["model/embed"].update(global_shape=[6, 4] * 20), "not up to"),
        (lambda t: t.update(other=None), "exactly the fields"),
        (lambda t: t["model/embed"].update(boxes={}), "boxes is not of type list"),
    ],
)
def test_index_that_lies(folder, edit, match):
    edit_index(folder, edit)
    assert_refused(folder, match)


@pytest.mark.parametrize("file", ["index.json", "state.json"])
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b"{", b"\xff\xfe", b"[" * 200_000, b"1" * 10_000, b'{"step": NaN}']
)
def test_json_that_is_not_what_it_should_be(folder, file, content):
    (folder / file).write_bytes(content)
    reseal(folder)
    assert_refused(folder, file)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.sampled_from(["", "float32", TENSORS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["key", "a\nb"]), inner, max_size=3),
    max_leaves=4,
)


def _places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def _replaced(value, path, new):
    if not path:
        return new
    changed = value.copy()
    changed[path[0]] = _replaced(value[path[0]], path[1:], new)
    return changed


@settings(max_examples=80, deadline=None)
@given(data=st.data(), file=st.sampled_from(["index.json", "state.json", "manifest.json", TENSORS]))
def test_any_replaced_value_is_refused_or_harmless(tmp_path_factory, data, file):
    """Whatever is put in place of any value of any JSON: the only error is CheckpointError."""
    folder = save_step(tmp_path_factory.mktemp("run"), 2).path
    content, rest = _header(folder / file) if file == TENSORS else (json.loads((folder / file).read_bytes()), b"")
    content = _replaced(content, data.draw(st.sampled_from(list(_places(content)))), data.draw(_json))
    if file == TENSORS:
        _write_header(folder / file, content, rest)
    else:
        (folder / file).write_text(json.dumps(content))
    if file == "manifest.json":
        manifest = (folder / file).read_bytes()
        (folder / "COMMIT").write_text(hashlib.sha256(manifest).hexdigest() + "\n")
    else:
        reseal(folder)
    try:
        checkpoint = Checkpoint(folder)
        checkpoint.verify()
        assert checkpoint.state is not None and checkpoint.rank_state(0, 1) is not Ellipsis
        for name in checkpoint.tensor_names():
            checkpoint.read_tensor(name)
    except CheckpointError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("content", [b"[" * 200_000, b"{}", b'{"format_version": 1, "step": 2, "files": [1]}'])
def test_manifest_that_is_not_what_it_should_be(folder, content):
    (folder / "manifest.json").write_bytes(content)
    (folder / "COMMIT").write_text(hashlib.sha256(content).hexdigest() + "\n")
    assert_refused(folder, "manifest")


def test_state_of_another_checkpoint(folder):
    (folder / "state.json").write_bytes((folder.parent / "step-00000001/state.json").read_bytes())
    reseal(folder)
    assert_refused(folder, "another checkpoint")


def test_oversized_json_is_refused_unread(folder, monkeypatch):
    monkeypatch.setattr("loopcoder_train.checkpoint.integrity.MAX_JSON_BYTES", 1000)
    (folder / "manifest.json").write_bytes(b" " * 2000)
    assert_refused(folder, "larger than 1000 bytes")


def test_names():
    assert is_plain_file_name(TENSORS) and is_plain_file_name("index.json")
    for name in ("..", ".", "", "a/b", "/a", "a\n", "a\0", ".a", "a\\b", "a" * 300, "ä"):
        assert not is_plain_file_name(name), name
    assert parse_folder("step-00000100").step == 100 and parse_folder("step-123456789").step == 123456789
    assert parse_folder("step-00000100.tmp-0a").kind == "tmp" and parse_folder("step-00000100.old-0a").kind == "old"
    for name in ("100", "100.tmp", "000000100", "00000100/", "00000100\n", "00000100.tmp-a!", "00000100.tmp-a\n"):
        assert parse_folder(f"step-{name}") is None, name


def test_links_and_pipes_are_not_opened(tmp_path):
    (tmp_path / "link").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError):
            open_regular(tmp_path / name)


def test_messages_stay_one_printable_line(folder):
    edit_index(
        folder, lambda tensors: tensors.update({"a\n\x1b[31mb": {"global_shape": [], "dtype": "x", "boxes": []}})
    )
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder).verify()
    assert str(caught.value).isprintable()

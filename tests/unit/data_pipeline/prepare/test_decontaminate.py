"""Decontamination: every rule from both sides, held against a search through plain word lists."""

import dataclasses
import gzip
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.prepare import decontaminate
from data_pipeline.prepare.decontaminate import Contamination, EvaluationSet
from data_pipeline.prepare.shingles import word_bytes

_PROBLEM = '''def has_close_elements(numbers, threshold):
    """ Check if in given list of numbers, are any two numbers closer to each other than given threshold. """
    for index, element in enumerate(numbers):
        for other, second in enumerate(numbers):
            if index != other and abs(element - second) < threshold:
                return True
    return False
'''
_ELEVEN = "Which river carries the most water of all rivers on Earth?"
_SEVEN = "Who painted the ceiling in Padua, 1305?"
_FOUR = "What is a monad?"


@pytest.fixture
def sets(tmp_path):
    code = tmp_path / "humaneval.jsonl"
    code.write_text(json.dumps({"task_id": "a/1", "prompt": _PROBLEM}) + "\n" + json.dumps({"prompt": None}) + "\n")
    questions = tmp_path / "questions.txt"
    questions.write_text(f"{_ELEVEN}\n\n{_SEVEN}\n   \n\n{_FOUR}\n")
    return [EvaluationSet(path=str(code), fields=["prompt"]), EvaluationSet(path=str(questions))]


@pytest.fixture
def index(sets):
    return Contamination.from_files(sets)


def filler(words: int, seed: int = 0) -> str:
    generator = random.Random(seed)
    return " ".join(f"filler{generator.randrange(10**6)}" for _ in range(words))


def run_of(text: str, first: int, count: int) -> str:
    words = word_bytes(text).decode().split()
    assert first + count <= len(words)
    return " ".join(words[first : first + count])


def test_an_exact_copy_is_found_wherever_it_stands(index):
    reason = "contamination: 13 words in a row of humaneval.jsonl"
    assert index.reason(_PROBLEM) == reason
    assert index.reason(filler(20_000) + "\n" + _PROBLEM + filler(20_000, 1)) == reason
    assert index.reason(filler(50_000)) is None
    assert index.reason("") is None


def test_a_reformatted_copy_is_found(index):
    squeezed = " ".join(_PROBLEM.replace('"""', "'''").replace("(", " ( ").upper().split())
    assert index.reason(f"// {squeezed}") == "contamination: 13 words in a row of humaneval.jsonl"
    commented = "\n".join("# " + line for line in _PROBLEM.splitlines())
    assert index.reason(commented) == "contamination: 13 words in a row of humaneval.jsonl"


@pytest.mark.parametrize(
    ("item", "needed", "reason"),
    [
        (_PROBLEM, 13, "contamination: 13 words in a row of humaneval.jsonl"),
        (_ELEVEN, 10, "contamination: 10 words in a row of questions.txt"),
        (_SEVEN, 7, "contamination: a whole item of questions.txt"),
    ],
)
def test_as_many_words_as_the_rule_says_and_not_one_fewer(index, item, needed, reason):
    num_words = word_bytes(item).count(b" ") + 1
    for first in range(num_words - needed + 1):
        assert index.reason(f"{filler(30)} {run_of(item, first, needed)} {filler(30, 2)}") == reason
    for first in range(num_words - needed + 2):
        assert index.reason(f"{filler(30)} {run_of(item, first, needed - 1)} {filler(30, 2)}") is None


def test_one_changed_word_in_every_dozen_is_no_run(index):
    words = word_bytes(_PROBLEM).decode().split()
    assert len(words) > 40
    words[11::12] = ["changed"] * len(words[11::12])
    assert index.reason(" ".join(words)) is None


def test_items_of_fewer_than_five_words_never_drop_and_are_counted(index):
    assert index.reason(_FOUR) is None
    assert [(entry.name, entry.items, entry.too_short) for entry in index.sets] == [
        ("humaneval.jsonl", 1, 0), ("questions.txt", 3, 1),
    ]  # fmt: skip


def test_runs_that_many_items_share_do_not_count_but_every_item_keeps_one(tmp_path):
    licence = run_of(_PROBLEM, 0, 20)
    unique = [filler(20, seed) for seed in range(11)]
    path = tmp_path / "shared.txt"
    path.write_text("\n\n".join(f"{licence} {tail}" for tail in unique[:10]))
    assert Contamination.from_files([EvaluationSet(path=str(path))]).reason(licence) is not None
    path.write_text("\n\n".join(f"{licence} {tail}" for tail in unique[:10] * 3))  # equal items are one item
    assert Contamination.from_files([EvaluationSet(path=str(path))]).reason(licence) is not None
    path.write_text("\n\n".join(f"{licence} {tail}" for tail in unique))
    index = Contamination.from_files([EvaluationSet(path=str(path))])
    assert index.reason(licence) is None
    for first in range(8):
        assert all(index.reason(run_of(tail, first, 13)) for tail in unique)
    # The licence as an item of its own has no other run.
    path.write_text("\n\n".join([f"{licence} {tail}" for tail in unique] + [licence] * 30))
    assert Contamination.from_files([EvaluationSet(path=str(path))]).reason(licence) is not None
    path.write_text("\n\n".join([_PROBLEM.replace("\n\n", "\n")] * 30))
    assert Contamination.from_files([EvaluationSet(path=str(path))]).reason(_PROBLEM) is not None


def test_the_first_set_of_a_run_is_named(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(_ELEVEN)
    index = Contamination.from_files([EvaluationSet(path=str(tmp_path / name)) for name in ("b.txt", "a.txt")])
    assert index.reason(_ELEVEN).endswith(" of b.txt")


def test_the_longest_run_is_named_first(index):
    assert index.reason(f"{_ELEVEN} {_SEVEN} {_PROBLEM}") == "contamination: 13 words in a row of humaneval.jsonl"
    assert index.reason(f"{_SEVEN} {_ELEVEN}") == "contamination: 10 words in a row of questions.txt"


_ITEM = st.lists(st.sampled_from("ab"), min_size=1, max_size=17).map(" ".join)


@given(st.lists(_ITEM, min_size=1, max_size=5), st.lists(st.sampled_from("ab"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_verdicts_are_those_of_a_search_through_word_lists(tmp_path_factory, items, document):
    def contains(run):
        return any(document[at : at + len(run)] == run for at in range(len(document) - len(run) + 1))

    def contaminated(item):
        words = item.split()
        if len(words) < 5:
            return False
        length = 13 if len(words) >= 13 else 10 if len(words) >= 10 else len(words)
        return any(contains(words[at : at + length]) for at in range(len(words) - length + 1))

    path = tmp_path_factory.mktemp("items") / "items.txt"
    path.write_text("\n\n".join([*items, "e f g h i"]))
    index = Contamination.from_files([EvaluationSet(path=str(path))])
    assert (index.reason(" ".join(document)) is not None) == any(map(contaminated, items))


def test_parquet_compressed_jsonl_and_lists_of_texts(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"choices": [[_SEVEN, _ELEVEN], None], "id": [1, 2]}), tmp_path / "mmlu.parquet")
    with gzip.open(tmp_path / "code.jsonl.gz", "wt") as file:
        file.write(json.dumps({"prompt": filler(20, 7), "solution": _PROBLEM}))
    index = Contamination.from_files(
        [
            EvaluationSet(path=str(tmp_path / "mmlu.parquet"), fields=["choices"], name="mmlu"),
            EvaluationSet(path=str(tmp_path / "code.jsonl.gz"), fields=["prompt", "solution"]),
        ]
    )
    assert index.reason(_SEVEN) == "contamination: a whole item of mmlu"
    assert index.reason(filler(20, 7)) == index.reason(_PROBLEM) == "contamination: 13 words in a row of code.jsonl.gz"


def test_saved_and_loaded_is_the_same_index(index, sets, tmp_path):
    index.save(tmp_path / "index.npz")
    loaded = Contamination.load(tmp_path / "index.npz")
    assert loaded.sets == index.sets
    assert loaded.content_hash == index.content_hash
    for text in (_PROBLEM, _ELEVEN, _SEVEN, _FOUR, filler(100)):
        assert loaded.reason(text) == index.reason(text)
    index.save(tmp_path / "again.npz")
    assert (tmp_path / "index.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.npz*")) == ["again.npz", "index.npz"]
    renamed = [sets[0], dataclasses.replace(sets[1], name="renamed")]
    assert Contamination.from_files(renamed).content_hash != index.content_hash
    Path(sets[1].path).write_text(_ELEVEN)
    assert Contamination.from_files(sets).content_hash != index.content_hash


def test_a_damaged_or_foreign_index_is_one_line(index, tmp_path):
    path = tmp_path / "index.npz"
    with pytest.raises(DataError, match=r"index.npz: not a readable contamination index .*; build it again$"):
        Contamination.load(path)
    index.save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"no archive", whole[:-100], whole[:200], whole[:300] + b"\xff" * 50 + whole[350:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"not a readable contamination index"):
            Contamination.load(path)
    np.savez(path, header=np.frombuffer(b'{"format": 99}', dtype=np.uint8))
    with pytest.raises(DataError, match=r"format 99, this version reads 1; build it again$"):
        Contamination.load(path)
    np.savez(path, header=np.array([{"format": 1}], dtype=object))  # a pickle is never opened
    with pytest.raises(DataError, match=r"not a readable contamination index"):
        Contamination.load(path)


def test_an_index_holds_no_pickle(index, tmp_path):
    index.save(tmp_path / "index.npz")
    with zipfile.ZipFile(tmp_path / "index.npz") as archive:
        assert all(b"|O" not in archive.read(name)[:100] for name in archive.namelist())


def refused(path: Path, content: str | bytes, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Contamination.from_files([EvaluationSet(path=str(path), **options)])


def test_sets_that_cannot_be_read_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"missing.txt: is not a file; correct its path$"):
        Contamination.from_files([EvaluationSet(path=str(tmp_path / "missing.txt"))])
    with pytest.raises(DataError, match=r"give at least one set"):
        Contamination.from_files([])
    with pytest.raises(DataError, match=r"none of its 0 items has 5 words"):
        refused(tmp_path / "empty.txt", "  \n \n")
    with pytest.raises(DataError, match=r"none of its 2 items has 5 words"):
        refused(tmp_path / "tiny.txt", "yes\n\nno\n")
    with pytest.raises(DataError, match=r"is not UTF-8 at byte 2"):
        refused(tmp_path / "latin.txt", b"na\xefve")
    with pytest.raises(DataError, match=r"line is not a JSON object .*every row must be readable"):
        refused(tmp_path / "bad.jsonl", json.dumps({"a": _ELEVEN}) + "\n[1]\n", fields=["a"])
    with pytest.raises(DataError, match=r"bad.jsonl:1 has no field 'promt'; nearest: 'prompt'"):
        refused(tmp_path / "bad.jsonl", json.dumps({"prompt": _ELEVEN}), fields=["promt"])
    with pytest.raises(DataError, match=r"a is int, must be text or texts"):
        refused(tmp_path / "bad.jsonl", json.dumps({"a": 3}), fields=["a"])
    with pytest.raises(DataError, match=r"not a readable parquet file"):
        refused(tmp_path / "bad.parquet", "PAR1", fields=["a"])
    for path, fields in (("a.csv", ["x"]), ("a.jsonl", []), ("a.txt", ["x"])):
        with pytest.raises(DataError, match=r"^evaluation set a"):
            EvaluationSet(path=path, fields=fields)
    first = EvaluationSet(path="one/same.txt")
    with pytest.raises(DataError, match=r"each its own name"):
        Contamination.from_files([first, EvaluationSet(path="two/same.txt")])


def test_members_of_a_hash_set_and_no_others():
    generator = np.random.default_rng(0)
    hashes = np.unique(generator.integers(0, 2**64, 5000, dtype=np.uint64))
    others = generator.integers(0, 2**64, 200_000, dtype=np.uint64)
    members = decontaminate._HashSet(hashes)
    assert members.contains(hashes).all()
    assert not members.contains(hashes + np.uint64(1)).any()
    assert not members.contains(others).any()
    assert not decontaminate._HashSet(hashes[:0]).contains(others).any()

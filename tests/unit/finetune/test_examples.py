"""Every known shape becomes the same messages; every fault is counted with its reason."""

import json
from datetime import date

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import DataError
from data_pipeline.prepare.rows import NOT_AN_OBJECT
from loopcoder_train.config.finetune import ConversationKind, ConversationSource
from loopcoder_train.finetune import examples
from loopcoder_train.finetune.examples import Dropped, ExampleReader, conversation_of, read_rows
from tests.unit.finetune.conftest import jsonl

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SYSTEM = {"role": "system", "content": "s"}
CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
SHAPES = [
    ({"messages": TURNS}, TURNS),
    ({"prompt": "a", "completion": "b"}, TURNS),
    ({"prompt": TURNS[:1], "completion": TURNS[1:]}, TURNS),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, TURNS),
    (
        {"system": "s", "conversations": [{"from": "user", "value": "a"}, {"from": "gpt", "value": "b"}]},
        [SYSTEM, *TURNS],
    ),
    ({"system": "s", "messages": TURNS}, [SYSTEM, *TURNS]),
    ({"system": "s", "messages": [SYSTEM, *TURNS]}, [SYSTEM, *TURNS]),
    ({"system": "s", "prompt": "a", "completion": "b"}, [SYSTEM, *TURNS]),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, TURNS[1]]}, TURNS),
    ({"messages": [TURNS[0], TURNS[1] | {"thinking": "t"}]}, [TURNS[0], TURNS[1] | {"reasoning_content": "t"}]),
    (
        {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]}]},
        [TURNS[0], {"role": "assistant", "content": "", "tool_calls": CALLS}],
    ),
]


@pytest.mark.parametrize(("row", "messages"), SHAPES)
def test_shapes(row, messages):
    assert conversation_of(row, "row").messages == messages


@pytest.mark.parametrize("nothing", ["", None, {}, "{}"])
def test_a_tool_call_without_arguments(nothing):
    row = with_answer(tool_calls=[{"name": "f", "arguments": nothing}])
    assert conversation_of(row, "row").messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


def with_answer(**changes):
    return {"messages": [TURNS[0], TURNS[1] | changes]}


FAULTS = [
    ({"text": "x"}, examples.NO_SHAPE),
    ({"messages": "x"}, examples.NOT_MESSAGES),
    ({"messages": ["x"]}, examples.NOT_MESSAGES),
    ({"prompt": "a", "completion": 3}, examples.NOT_MESSAGES),
    ({"messages": []}, examples.NO_MESSAGES),
    ({"messages": [{"content": "a"}]}, examples.NO_ROLE),
    ({"messages": [{"role": "wizard", "content": "a"}]}, examples.UNKNOWN_ROLE),
    ({"messages": [{"role": ["user"], "content": "a"}]}, examples.UNKNOWN_ROLE),
    ({"messages": TURNS[::-1]}, examples.ASSISTANT_FIRST),
    ({"messages": [SYSTEM, TURNS[1]]}, examples.ASSISTANT_FIRST),
    ({"messages": [SYSTEM]}, examples.NO_ASSISTANT),
    ({"messages": TURNS[:1]}, examples.NO_ASSISTANT),
    (with_answer(weight=0), examples.NO_ASSISTANT),
    (with_answer(weight=2), examples.BAD_WEIGHT),
    ({"messages": [*TURNS, SYSTEM]}, examples.SYSTEM_LATER),
    ({"system": "other", "messages": [SYSTEM, *TURNS]}, examples.SYSTEM_LATER),
    ({"system": "s", "messages": []}, examples.NO_ASSISTANT),
    (with_answer(content=" \n"), examples.EMPTY_MESSAGE),
    (with_answer(content=3), examples.NOT_TEXT),
    (with_answer(content=[{"type": "image_url"}]), examples.NOT_TEXT),
    (with_answer(content="\ufdd0"), examples.MARKED),
    (with_answer(content="\ud800"), examples.NO_UNICODE),
    (with_answer(tool_calls=[{"function": {"name": "f", "arguments": "{"}}]), examples.BAD_TOOLS),
    (with_answer(tool_calls=[{"function": {"arguments": {}}}]), examples.BAD_TOOLS),
    (with_answer(tool_calls=[{"name": "f", "arguments": '{"x": NaN}'}]), examples.BAD_TOOLS),
    (
        with_answer(tool_calls=[{"name": "f", "arguments": json.loads('{"x": ' * 400 + "1" + "}" * 400)}]),
        examples.BAD_TOOLS,
    ),
    ({"messages": TURNS, "tools": [{"name": "f", "since": date(2026, 1, 1)}]}, examples.BAD_TOOLS),
    ({"messages": [*TURNS, {"role": "tool", "content": "3"}]}, examples.TOOL_FIRST),
    ({"messages": TURNS, "tools": {"name": "f"}}, examples.BAD_TOOLS),
]


@pytest.mark.parametrize(("row", "reason"), FAULTS)
def test_faults(row, reason):
    with pytest.raises(Dropped) as dropped:
        conversation_of(row, "row")
    assert str(dropped.value) == reason


def test_the_key_is_what_is_said():
    rows = [with_answer(), with_answer(weight=1), with_answer(reasoning_content="r"), with_answer(content="c")]
    keys = [conversation_of(row, "row").key for row in rows]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    calls = [
        with_answer(tool_calls=[{"name": name, "id": given}]) for name, given in (("f", None), ("f", "x"), ("g", "x"))
    ]
    keys = [conversation_of(row, "row").key for row in calls]
    assert keys[0] == keys[1] != keys[2]


def reader(kind, path, thinking=False):
    return ExampleReader(ConversationSource(name="mine", kind=kind, path=str(path)), thinking=thinking)


def test_bad_lines_are_counted(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ['{"messages": [', "[1]", "", {"messages": TURNS}, {"messages": TURNS[:1]}])
    read = reader(ConversationKind.jsonl, path)
    assert [c.messages for c in read.conversations(read_rows(read))] == [TURNS]
    assert (read.read, read.dropped) == (4, {NOT_AN_OBJECT: 2, examples.NO_ASSISTANT: 1})


def test_reasoning_is_left_out_and_counted(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [with_answer(reasoning_content="r")])
    for thinking in (False, True):
        read = reader(ConversationKind.jsonl, path, thinking)
        (row,) = read.conversations(read_rows(read))
        assert ("reasoning_content" in row.messages[1]) is thinking
        assert (read.reasoned, read.reasoning_left_out) == (1, int(not thinking))


def test_parquet_and_datasets_are_read_without_their_nulls(tmp_path):
    rows = [{"messages": TURNS}, {"messages": [TURNS[0], TURNS[1] | {"tool_calls": CALLS}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for kind, path in (
        (ConversationKind.parquet, tmp_path / "a.parquet"),
        (ConversationKind.huggingface, tmp_path / "saved"),
    ):
        read = reader(kind, path)
        assert [c.messages for c in read.conversations(read_rows(read))] == [row["messages"] for row in rows]


@pytest.mark.parametrize("kind", [ConversationKind.parquet, ConversationKind.jsonl, ConversationKind.huggingface])
def test_what_is_no_source_is_an_error(tmp_path, kind):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "state.json").write_text("{}")
    (damaged / "a.parquet").write_bytes(b"PAR1 no")
    if kind is ConversationKind.jsonl:
        damaged = tmp_path / "nowhere.jsonl"
    read = reader(kind, damaged)
    with pytest.raises(DataError, match="mine"):
        list(read.conversations(read_rows(read)))

"""Rows of jsonl, parquet and Hugging Face datasets -> conversations, or a reason why not.

The journey of a row: columns -> messages (three shapes are known) -> each message with its known keys, content as
text, tool calls with their arguments as an object -> the rules of a conversation. What is wrong with a row is a reason
that is counted (`Dropped`); what is wrong with a file is a DataError, because nobody can say what it lost.

    {"messages": [{"role", "content", "reasoning_content", "tool_calls", "weight"}, ...], "tools": [...]}
    {"prompt": text or messages, "completion": text or messages}
    {"conversations": [{"from": "human" | "gpt" | ..., "value": text}, ...]}

Each may have a column `system` with the text of a system message.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, nearest_hint
from data_pipeline.prepare import rows
from data_pipeline.prepare.documents import WHOLE, SourceConfig, SourceKind
from loopcoder_train.config.finetune import ConversationKind, ConversationSource
from loopcoder_train.finetune.chat import MARK, Conversation, Message

ROLES = ("system", "user", "assistant", "tool")
_ROLE_NAMES = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
    "developer": "system",
    "observation": "tool",
}
_SHAPES = ("messages", "conversations", "prompt")
MAX_ROW_BYTES = 16 << 20
MAX_NESTING = 64  # of the arguments of a tool call, and of tools: far below what Python can pass to another process
_SAID = ("role", "content", "tool_calls")

# Reasons.
NO_SHAPE = "no messages, conversations, or prompt and completion"
NOT_MESSAGES, NO_ROLE, UNKNOWN_ROLE = "messages are no list of objects", "message without role", "unknown role"
NOT_TEXT, EMPTY_MESSAGE, MARKED = "content is not text", "empty message", "holds the noncharacter U+FDD0"
NO_MESSAGES, ASSISTANT_FIRST = "no messages", "does not begin with the user"
SYSTEM_LATER, NO_ASSISTANT = "system message behind the first", "no assistant message to train on"
BAD_TOOLS, NO_UNICODE = "tools or tool calls are not of the known form", "text is no Unicode (lone surrogate)"
BAD_WEIGHT, TOOL_FIRST = "weight is neither 0 nor 1", "tool result without a tool call"


class Dropped(ValueError):  # noqa: N818 - counted, not an error
    """A row that is no conversation; the message is the reason."""


class ExampleReader:
    """Conversations of the sources, and counts of everything that was passed over.

    thinking: false leaves `reasoning_content` out. read, dropped: rows and reasons so far; reasoned,
    reasoning_left_out: messages with reasoning, and how many lost it.
    """

    def __init__(self, source: ConversationSource, *, thinking: bool) -> None:
        self.source, self.thinking = source, thinking
        self.read = self.reasoned = self.reasoning_left_out = 0
        self.dropped: dict[str, int] = {}

    def drop(self, reason: str) -> None:
        """Count a row that was read."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def skip(self, reason: str, _size: int) -> None:
        """Count a row that could not be read."""
        self.read += 1
        self.drop(reason)

    def conversations(self, rows_of_source: Iterator[rows.Row]) -> Iterator[Conversation]:
        """What is in the rows, in their order."""
        for name, row in rows_of_source:
            self.read += 1
            try:
                conversation = conversation_of(row, name)
            except Dropped as reason:
                self.drop(str(reason))
                continue
            self._reasoning(conversation)
            yield conversation

    def _reasoning(self, conversation: Conversation) -> None:
        for message in conversation.messages:
            if "reasoning_content" in message:
                self.reasoned += 1
                if not self.thinking:
                    del message["reasoning_content"]
                    self.reasoning_left_out += 1


def read_rows(reader: ExampleReader) -> Iterator[rows.Row]:
    """(name, columns) of every row of a source that is not embedded. DataError when it cannot be read."""
    source = reader.source
    if source.kind is ConversationKind.jsonl:
        config = SourceConfig(name=source.name, kind=SourceKind.jsonl, path=source.path)
        return rows.read(config, MAX_ROW_BYTES, reader.skip, WHOLE)
    return _dataset_rows(source)


def _dataset_rows(source: ConversationSource) -> Iterator[rows.Row]:
    import datasets
    import pyarrow as pa

    errors = (OSError, ValueError, KeyError, pa.ArrowException, datasets.exceptions.DatasetsError)
    try:
        for number, row in enumerate(_load(source), start=1):
            yield f"{source.path}:{number}", _without_nulls(row)
    except DataError:
        raise
    except errors as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"finetune source {source.name!r}: {source.path} cannot be read ({reason}); correct path and split"
        ) from error


def _load(source: ConversationSource) -> Any:
    import datasets

    path = Path(source.path)
    if source.kind is ConversationKind.parquet:
        files = sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else [source.path]
        if not files or not Path(files[0]).is_file():
            raise DataError(f"finetune source {source.name!r}: no .parquet file at {source.path}; correct its path")
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    if (path / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(source.path)
        if source.split not in saved:
            hint = nearest_hint(source.split, saved)
            raise DataError(f"finetune source {source.name!r}: no split {source.split!r}{hint}")
        return saved[source.split]
    if (path / "state.json").is_file():
        return datasets.load_from_disk(source.path)
    name, _, subset = source.path.partition(":")
    return datasets.load_dataset(name, subset or None, split=source.split, streaming=True)


def _without_nulls(value: Any) -> Any:
    """Columns give every row every key that any row has; null is how they say that it is not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def conversation_of(row: dict[str, Any], name: str) -> Conversation:
    """The conversation in a row. Raises Dropped with the reason when there is none."""
    raw = _raw_messages(row)
    if not isinstance(raw, list) or not all(isinstance(message, dict) for message in raw):
        raise Dropped(NOT_MESSAGES)
    messages = [_message(message) for message in raw]
    _check_order(messages)
    tools = _tools(row.get("tools"))
    untrained = frozenset(index for index, message in enumerate(messages) if message.pop("weight", 1) == 0)
    said = json.dumps([messages, tools], ensure_ascii=False)
    if MARK in said:
        raise Dropped(MARKED)
    try:
        said.encode()
    except UnicodeEncodeError as error:
        raise Dropped(NO_UNICODE) from error
    if not any(m["role"] == "assistant" and index not in untrained for index, m in enumerate(messages)):
        raise Dropped(NO_ASSISTANT)
    return Conversation(messages=messages, name=name, key=_key(messages, tools), tools=tools, untrained=untrained)


def _key(messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
    """Equal for conversations that say the same: weights and ids are not said, reasoning is but a way to the answer."""
    said = [{key: value for key, value in message.items() if key in _SAID} for message in messages]
    for message in said:
        if "tool_calls" in message:
            message["tool_calls"] = [{"type": c["type"], "function": c["function"]} for c in message["tool_calls"]]
    return hashlib.sha256(json.dumps([said, tools], ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _raw_messages(row: dict[str, Any]) -> Any:
    """The messages of a row; a `system` column is the first of them, unless they begin with the same."""
    raw, system = _turns(row), row.get("system")
    if not system or not isinstance(raw, list):
        return raw
    first = raw[0] if raw and isinstance(raw[0], dict) else {}
    said = first.get("role", first.get("from")), first.get("content", first.get("value"))
    return raw if said == ("system", system) else [{"role": "system", "content": system}, *raw]


def _turns(row: dict[str, Any]) -> Any:
    shape = next((shape for shape in _SHAPES if row.get(shape) is not None), None)
    match shape:
        case "messages":
            return row["messages"]
        case "conversations":
            return row["conversations"]
        case "prompt" if "completion" in row:
            sides = [(row["prompt"], "user"), (row["completion"], "assistant")]
            asked, said = ([{"role": r, "content": s}] if isinstance(s, str) else s for s, r in sides)
            return asked + said if isinstance(asked, list) and isinstance(said, list) else None
    raise Dropped(NO_SHAPE)


def _message(raw: dict[str, Any]) -> Message:
    """One message with the keys that templates know."""
    role = raw.get("role", raw.get("from"))
    if role is None:
        raise Dropped(NO_ROLE)
    if not isinstance(role, str) or role not in _ROLE_NAMES:
        raise Dropped(UNKNOWN_ROLE)
    message: Message = {"role": _ROLE_NAMES[role], "content": _text(raw.get("content", raw.get("value")))}
    reasoning = raw.get("reasoning_content", raw.get("thinking"))
    calls = _tool_calls(raw.get("tool_calls"))
    if message["role"] == "assistant" and reasoning:
        message["reasoning_content"] = _text(reasoning)
    if message["role"] == "assistant" and calls:
        message["tool_calls"] = calls
    if not message["content"].strip() and "tool_calls" not in message and message["role"] != "tool":
        raise Dropped(EMPTY_MESSAGE)
    if message["role"] == "tool":
        message |= {key: _text(raw[key]) for key in ("name", "tool_call_id") if raw.get(key) is not None}
    if raw.get("weight") is not None:
        if raw["weight"] not in (0, 1):
            raise Dropped(BAD_WEIGHT)
        message["weight"] = int(raw["weight"])
    return message


def _text(content: Any) -> str:
    """Text, a list of parts that are text, or nothing."""
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Dropped(NOT_TEXT)
    return content


def _tool_calls(raw: Any) -> list[dict[str, Any]]:
    """OpenAI's form, arguments as an object; they may come as its JSON."""
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise Dropped(BAD_TOOLS)
    calls = []
    for call in raw:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Dropped(BAD_TOOLS)
        arguments = _json_of(function.get("arguments") or {})  # a call without arguments may have "" or null
        if not isinstance(arguments, dict) or not _is_json(arguments):
            raise Dropped(BAD_TOOLS)
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
        if call.get("id") is not None:
            calls[-1]["id"] = _text(call["id"])  # there are templates that ask for it
    return calls


def _tools(raw: Any) -> list[dict[str, Any]] | None:
    tools = _json_of(raw)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools) or not _is_json(tools):
        raise Dropped(BAD_TOOLS)
    return tools


def _json_of(value: Any) -> Any:
    """A value that may come as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise Dropped(BAD_TOOLS) from error


def _is_json(value: Any, nesting: int = MAX_NESTING) -> bool:
    """Whether JSON can write it: columns of parquet may hold dates and bytes, Python reads NaN and any depth."""
    if isinstance(value, dict):
        return nesting > 0 and all(isinstance(k, str) and _is_json(v, nesting - 1) for k, v in value.items())
    if isinstance(value, list):
        return nesting > 0 and all(_is_json(item, nesting - 1) for item in value)
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _check_order(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    if not roles:
        raise Dropped(NO_MESSAGES)
    if "system" in roles[1:]:
        raise Dropped(SYSTEM_LATER)
    turns = roles[1:] if roles[0] == "system" else roles
    if turns[:1] != ["user"]:
        raise Dropped(ASSISTANT_FIRST if turns else NO_ASSISTANT)
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            before = messages[index - 1]
            if before["role"] != "tool" and "tool_calls" not in before:
                raise Dropped(TOOL_FIRST)

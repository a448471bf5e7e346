"""A conversation -> token ids, and which of them the assistant says.

The journey: every sentinel that the *template* spells becomes a mark around its id before anything is rendered ->
Jinja, sandboxed, writes the conversation as text with marks -> the text between marks is encoded as text, each mark
becomes its id. What messages say holds no mark, so it can spell `<|im_end|>` and it stays text.

The assistant's part of a turn begins where the generation prompt of the turns before ends, and ends with its end
token. At both places the text is cut before it is encoded: a model that answers sees the very tokens it was tuned on.
So a prefix of a conversation is a prefix of its tokens, or the template is refused.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data_pipeline.errors import DataError
from data_pipeline.tokenizer import CHAT_TOKENS, Tokenizer

MARK = "\ufdd0"  # a noncharacter: no text has it (examples.py counts a conversation that does)
DEFAULT_TEMPLATE = Path(__file__).parent / "templates" / "chatml.jinja"
THINK_TOKENS, TOOL_TOKENS = ("<think>", "</think>"), ("<tool_call>", "</tool_call>")
_MARKED = re.compile(f"{MARK}([0-9]+){MARK}")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: no UTF-8 has it, so the tokenizer cannot take it
# What a template may do wrong while it runs; the sandbox raises SecurityError, a TemplateError.
_RENDER_ERRORS = (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError)

Message = dict[str, Any]
Json = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Conversation:
    """messages: {role, content, [reasoning_content], [tool_calls]} each; tools: JSON schemas or None.

    name: for messages to people. key: what decides whether it is held out. untrained: indices of assistant messages
    that are context only.
    """

    messages: list[Message]
    name: str
    key: str
    tools: list[Json] | None = None
    untrained: frozenset[int] = field(default_factory=frozenset)


@dataclass(slots=True)
class Encoded:
    """tokens uint32 [n]; supervised bool [n]: the tokens that are to be predicted."""

    tokens: np.ndarray
    supervised: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


class RefusedByTemplate(Exception):  # noqa: N818 - the template's own word about one conversation
    """The template called `raise_exception`."""


class ChatFormat:
    """A template with the tokenizer whose sentinels it spells.

    template: its Jinja source; where: its file, for messages. end_token: the sentinel that ends an assistant's turn.
    Raises DataError when it is no template, or not one that a conversation can be tuned on (`_check`).
    """

    def __init__(self, template: str, where: str, tokenizer: Tokenizer, end_token: str, *, thinking: bool) -> None:
        self.where, self.tokenizer, self.thinking = where, tokenizer, thinking
        (self.end_token_id,) = tokenizer.sentinel_ids([end_token], f"finetune.end_token={end_token}")
        self._end_mark, self._known_ids = _mark(self.end_token_id), set(tokenizer.sentinels.values())
        if MARK in template:
            raise DataError(f"{where}: holds the noncharacter U+FDD0, which stands for sentinels; remove it")
        self._spelled = re.compile("|".join(map(re.escape, sorted(tokenizer.sentinels, key=len, reverse=True))))
        marked = self._spelled.sub(lambda match: _mark(tokenizer.sentinels[match[0]]), template)
        try:
            self._template = _environment().from_string(marked)
        except (TemplateError, SyntaxError, ValueError) as error:  # Jinja leaves some checks to Python's compiler
            raise DataError(f"{where}: no chat template ({_one_line(error)}); correct it") from error
        except RecursionError as error:
            raise DataError(f"{where}: no chat template (nested too deep); correct it") from error
        self._check()

    def encode(self, conversation: Conversation) -> Encoded:
        """Tokens and mask of a conversation.

        Raises RefusedByTemplate when the template refuses it, DataError when the template is wrong.
        """
        text = self._render(conversation)
        encoded = self._cut(conversation, text)
        self._check_tools(conversation, text)
        return encoded

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens before the assistant's answer to `messages`: how the tokens of a conversation with it begin.

        Raises DataError when the template, or what `messages` say, is wrong.
        """
        conversation = Conversation(messages=list(messages), name="the message", key="")
        for said in _words_of(conversation):
            if MARK in said or _SURROGATE.search(said):
                raise DataError("message: holds U+FDD0 or a lone surrogate, which no text has; remove it")
        try:
            text = self._render(conversation, answer_follows=True)
            return self._cut(conversation, text).tokens.tolist()
        except RefusedByTemplate as error:
            raise DataError(f"{self.where}: refuses the message ({error}); say something else") from error

    def _cut(self, conversation: Conversation, text: str) -> Encoded:
        """The tokens of a rendered text, encoded piece by piece: what the assistant says, and what lies between."""
        tokens: list[int] = []
        supervised: list[bool] = []
        position = 0
        for start, stop, trained in [*self._assistant_spans(conversation, text), (len(text), len(text), False)]:
            for begin, end, said in ((position, start, False), (start, stop, trained)):
                ids = self.encode_marked(text[begin:end])
                tokens += ids
                supervised += [said] * len(ids)
            position = stop
        return Encoded(np.array(tokens, dtype=np.uint32), np.array(supervised, dtype=bool))

    def _assistant_spans(self, conversation: Conversation, whole: str) -> list[tuple[int, int, bool]]:
        """(start, stop, trained) of every assistant message in the rendered text `whole`, its end token included."""
        name, spans = conversation.name, []
        for index, message in enumerate(conversation.messages):
            if message["role"] != "assistant":
                continue
            before = self._render(conversation, index, answer_follows=True)
            after = self._render(conversation, index + 1)
            if not (after.startswith(before) and whole.startswith(after)):
                raise DataError(
                    f"{self.where}: the text up to message {index} of {name} is not how the whole conversation begins, "
                    "so tuning would not be what inference sees; write every turn alike wherever it stands"
                )
            end = after.rfind(self._end_mark, len(before))
            if end < 0:
                raise DataError(
                    f"{self.where}: message {index} of {name}, the assistant's, does not end with finetune.end_token, "
                    "so the end would not be trained; set finetune.end_token to the template's own"
                )
            if after[end + len(self._end_mark) :].strip():
                raise DataError(
                    f"{self.where}: goes on after finetune.end_token in message {index} of {name}, so that what "
                    "follows would not be trained; end the assistant's turn with it"
                )
            self._check_calls(conversation, message, after[len(before) :])
            spans.append((len(before), end + len(self._end_mark), index not in conversation.untrained))
        return spans

    def _check_calls(self, conversation: Conversation, message: Message, answer: str) -> None:
        """DataError when the template leaves the tool calls of a message out: it would be tuned to answer nothing."""
        for call in message.get("tool_calls", ()):
            name = call["function"]["name"]
            if name not in answer:
                raise DataError(
                    f"{self.where}: leaves out the call of {name!r} in {conversation.name}; write tool_calls, or give "
                    "conversations without them"
                )

    def _check_tools(self, conversation: Conversation, text: str) -> None:
        """DataError when the template leaves out the tools of a conversation, the arguments of a call, or what it gave:
        answers would be tuned without what they rest on. `text`: the conversation, rendered."""
        if conversation.tools and self._try(replace(conversation, tools=None)) == text:
            raise DataError(
                f"{self.where}: leaves out the tools of {conversation.name}; write `tools`, or tune on conversations "
                "without them"
            )
        for messages, words in (_plain_results(conversation.messages), _plain_calls(conversation.messages)):
            altered = self._try(replace(conversation, messages=messages)) if words else None
            left_out = [what for word, what in words.items() if altered is not None and word not in altered]
            if left_out:
                raise DataError(
                    f"{self.where}: leaves out {left_out[0]} in {conversation.name}; write it, or tune on "
                    "conversations without tools"
                )

    def _try(self, conversation: Conversation) -> str | None:
        """The text of a changed conversation; None where the template does not take it."""
        try:
            return self._render(conversation)
        except (RefusedByTemplate, DataError):
            return None

    def _render(self, conversation: Conversation, stop: int | None = None, *, answer_follows: bool = False) -> str:
        """The text with marks of the messages before `stop` (default: all)."""
        try:
            text = self._template.render(
                messages=conversation.messages[:stop],
                tools=conversation.tools,
                add_generation_prompt=answer_follows,
                enable_thinking=self.thinking,
                bos_token="",
                eos_token=_mark(self.tokenizer.end_of_document_id),
            )
        except SecurityError as error:
            raise DataError(f"{self.where}: does what a template must not ({_one_line(error)}); remove it") from error
        except MemoryError as error:
            raise DataError(f"{self.where}: takes too much memory for {conversation.name}; correct it") from error
        except _RENDER_ERRORS as error:
            raise DataError(f"{self.where}: fails for {conversation.name} ({_one_line(error)}); correct it") from error
        if _SURROGATE.search(text):
            raise DataError(f"{self.where}: writes a lone surrogate for {conversation.name}; write whole characters")
        return text

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of text with marks."""
        ids: list[int] = []
        for number, piece in enumerate(_MARKED.split(text)):  # text, id, text, id, ..., text
            if number % 2:
                if int(piece) not in self._known_ids:
                    raise DataError(
                        f"{self.where}: writes the mark of token {piece}, which is no sentinel; remove U+FDD0"
                    )
                ids.append(int(piece))
            elif MARK in piece:
                raise DataError(
                    f"{self.where}: cuts a sentinel into pieces; write sentinels out, as text of the template"
                )
            elif piece:
                ids += self.tokenizer.encode(piece)
        return ids

    def _check(self) -> None:
        """Try the template on conversations that hold nothing but plain words.

        Every message must be in the text, the prefix property and the end token must hold, and no sentinel may be put
        together from pieces: it would be text for the model.
        """
        for conversation in _probes(self.thinking):
            try:
                text = self._render(conversation)
                self._assistant_spans(conversation, text)
            except RefusedByTemplate as error:
                raise DataError(f"{self.where}: refuses {conversation.name} ({error}); correct it") from error
            for said in _words_of(conversation):
                if said not in text:
                    raise DataError(f"{self.where}: leaves out {said!r} of {conversation.name}; write every message")
            if spelled := self._spelled.search(_MARKED.sub("\n", text)):
                raise DataError(
                    f"{self.where}: puts {spelled[0]!r} together from pieces, which would be text and no sentinel; "
                    "write it out"
                )
            self.encode(conversation)


def load_chat_format(
    path: str | None, tokenizer: Tokenizer, end_token: str, *, thinking: bool, template: str | None = None
) -> ChatFormat:
    """The format of a template file (None: the default one). `template`: its content, where it was read before."""
    file = DEFAULT_TEMPLATE if path is None else Path(path)
    if path is None:
        tokenizer.sentinel_ids([*CHAT_TOKENS, *THINK_TOKENS, *TOOL_TOKENS], "the default chat template")
    where = f"finetune.chat_template={path or file.name}"
    return ChatFormat(template or read_template(path), where, tokenizer, end_token, thinking=thinking)


def read_template(path: str | None) -> str:
    """The source of a template file (None: the default one). DataError when it cannot be read."""
    file = DEFAULT_TEMPLATE if path is None else Path(path)
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"finetune.chat_template={path}: cannot be read ({error.strerror}); give a Jinja file"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"finetune.chat_template={path}: is not UTF-8 text; give a Jinja file") from error


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, but reaching for what is out of bounds is an error at once, not nothing that prints as nothing."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Called for an attribute that a template must not see."""
        raise SecurityError(f"reaches for {attribute!r} of {type(obj).__name__}")


def _environment() -> _Sandbox:
    # The settings that published templates are written for.
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _tojson
    environment.globals = {"range": environment.globals["range"], "namespace": environment.globals["namespace"]}
    environment.globals |= {"dict": dict, "raise_exception": _refuse}
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """With the arguments of the filter that published templates are written for."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> NoReturn:
    raise RefusedByTemplate(_one_line(message))


def _plain_results(messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
    """Messages whose tools returned words that any template writes as they are, and what each word stands for."""
    words = {index: f"result-{index}." for index, message in enumerate(messages) if message["role"] == "tool"}
    plain = [m | ({"content": words[index]} if index in words else {}) for index, m in enumerate(messages)]
    return plain, dict.fromkeys(words.values(), "what a tool returned")


def _plain_calls(messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
    """Likewise for calls: their names, and the values of their arguments, which keep their own names."""
    plain: list[Message] = []
    words: dict[str, str] = {}
    for index, message in enumerate(messages):
        calls = []
        for number, call in enumerate(message.get("tool_calls", ())):
            name = f"call-{index}-{number}."
            arguments = {
                key: f"value-{index}-{number}-{place}." for place, key in enumerate(call["function"]["arguments"])
            }
            words |= {name: "a tool call"} | dict.fromkeys(arguments.values(), "the arguments of a tool call")
            calls.append(call | {"function": {"name": name, "arguments": arguments}})
        plain.append(message | ({"tool_calls": calls} if calls else {}))
    return plain, words


def _mark(token_id: int) -> str:
    return f"{MARK}{token_id}{MARK}"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]


def _probes(thinking: bool) -> Iterator[Conversation]:
    def assistant(number: int) -> Message:
        reasoning = {"reasoning_content": f"thought {number}"} if thinking else {}
        return {"role": "assistant", "content": f"answer {number}", **reasoning}

    turns = [message for n in (1, 2) for message in ({"role": "user", "content": f"question {n}"}, assistant(n))]
    yield Conversation(messages=turns, name="the probe of two turns", key="")
    system = {"role": "system", "content": "rules"}
    yield Conversation(messages=[system, *turns], name="the probe with a system message", key="")


def _words_of(conversation: Conversation) -> Iterator[str]:
    for message in conversation.messages:
        yield message["content"]
        if "reasoning_content" in message:
            yield message["reasoning_content"]

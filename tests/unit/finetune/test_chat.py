"""Masks token by token against tokens spelled by hand; text is never a sentinel; bad templates are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.tokenizer import MIN_VOCAB_SIZE, SPECIAL_TOKENS, train_tokenizer
from loopcoder_train.finetune.chat import RefusedByTemplate, load_chat_format
from tests.unit.finetune.conftest import TEMPLATE, conversation, custom, encoded, spelled

NO, YES = False, True
START, END = "<|im_start|>", "<|im_end|>"


def test_mask_of_many_turns(chat, tokenizer):
    row = conversation(
        ("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "x")
    )
    assert encoded(chat, row) == spelled(
        tokenizer,
        [(START, NO), ("system\nBe kind.", NO), (END, NO), ("\n", NO),
         (START, NO), ("user\nHi", NO), (END, NO), ("\n", NO),
         (START, NO), ("assistant\n", NO), ("Hello", YES), (END, YES), ("\n", NO),
         (START, NO), ("user\nBye", NO), (END, NO), ("\n", NO),
         (START, NO), ("assistant\n", NO), ("x", YES), (END, YES), ("\n", NO)],
    )  # fmt: skip


def test_mask_of_tool_calls(chat, tokenizer):
    call = {"function": {"name": "add", "arguments": '{"a": 1, "ü": [2]}'}}
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = conversation(
        ("user", "1 + 2?"),
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "3"},
        ("assistant", "It is 3."),
        tools=tools,
    )
    said = '{"name": "add", "arguments": {"a": 1, "ü": [2]}}'
    listed = "# Tools\n\nEach line describes a function that may be called:\n"
    listed += '{"type": "function", "function": {"name": "add"}}'
    assert encoded(chat, row) == spelled(
        tokenizer,
        [(START, NO), (f"system\n{listed}", NO), (END, NO), ("\n", NO),
         (START, NO), ("user\n1 + 2?", NO), (END, NO), ("\n", NO),
         (START, NO), ("assistant\n", NO),
         ("<tool_call>", YES), (said, YES), ("</tool_call>", YES), ("\n", YES),
         ("<tool_call>", YES), (said, YES), ("</tool_call>", YES), (END, YES), ("\n", NO),
         (START, NO), ("tool\n3", NO), (END, NO), ("\n", NO),
         (START, NO), ("assistant\n", NO), ("It is 3.", YES), (END, YES), ("\n", NO)],
    )  # fmt: skip


def test_mask_of_thinking(chat, tokenizer):
    said = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
    row = conversation(("user", "2 + 2?"), said, ("user", "sure?"), said | {"content": "yes"})
    thought = [("<think>", YES), ("\n2 + 2\n", YES), ("</think>", YES)]
    assert encoded(chat, row) == spelled(
        tokenizer,
        [(START, NO), ("user\n2 + 2?", NO), (END, NO), ("\n", NO),
         (START, NO), ("assistant\n", NO), *thought, ("\n4", YES), (END, YES), ("\n", NO),
         (START, NO), ("user\nsure?", NO), (END, NO), ("\n", NO),
         (START, NO), ("assistant\n", NO), *thought, ("\nyes", YES), (END, YES), ("\n", NO)],
    )  # fmt: skip


def test_a_message_of_weight_0_is_context(chat):
    context = {"role": "assistant", "content": "no", "weight": 0}
    row = conversation(("user", "a"), context, ("user", "b"), ("assistant", "yes"))
    said = [token for token, supervised in encoded(chat, row) if supervised]
    assert said == [*chat.tokenizer.encode("yes"), chat.end_token_id]


def test_the_prompt_of_an_answer_is_how_its_conversation_begins(chat):
    row = conversation(("user", "\n a"), ("assistant", "\n\n  b"))
    prompt = chat.prompt(row.messages[:1])
    tokens = chat.encode(row)
    assert tokens.tokens[: len(prompt)].tolist() == prompt
    assert tokens.supervised.tolist().index(True) == len(prompt)


def test_a_later_prompt_is_cut_where_its_conversation_is():
    """With a tokenizer that would join the end of the prompt and the beginning of the answer into one token."""
    joining = train_tokenizer(iter(["assistant\n\n\nx"] * 9), MIN_VOCAB_SIZE + 20)
    assert joining.encode("\n\n") != joining.encode("\n") * 2
    chat = load_chat_format(None, joining, END, thinking=False)
    row = conversation(("user", "a"), ("assistant", "\n\nx"), ("user", "b"), ("assistant", "\nc"))
    tokens = chat.encode(row)
    for index in (1, 3):
        prompt = chat.prompt(row.messages[:index])
        assert tokens.tokens[: len(prompt)].tolist() == prompt and tokens.supervised[len(prompt)]


def test_a_message_cannot_forge_a_sentinel_and_must_be_text(chat, tokenizer):
    for said in (f"\ufdd0{chat.end_token_id}\ufdd0", "\ufdd0", "\udcff"):
        with pytest.raises(DataError, match="message: holds"):
            chat.prompt([{"role": "user", "content": said}])
    refusing = custom(tokenizer, TEMPLATE + "{{ raise_exception('no') if messages[0].content == 'x' }}")
    with pytest.raises(DataError, match=r"refuses the message \(no\)"):
        refusing.prompt([{"role": "user", "content": "x"}])


def test_a_template_that_leaves_tool_calls_out_is_refused(tokenizer):
    silent = custom(tokenizer, TEMPLATE.replace("message.tool_calls or []", "[]"))
    call = {"role": "assistant", "tool_calls": [{"name": "look_up", "arguments": {}}]}
    row = conversation(("user", "a"), call, {"role": "tool", "content": "b"}, ("assistant", "c"))
    with pytest.raises(DataError, match="leaves out the call of 'look_up' in row"):
        silent.encode(row)


TOOLS = [{"type": "function", "function": {"name": "look_up"}}]
CALL = {"role": "assistant", "tool_calls": [{"id": "abcdefghi", "name": "look_up", "arguments": {}}]}
RESULT = {"role": "tool", "name": "look_up", "tool_call_id": "abcdefghi", "content": "b"}
CALL_OF_X = {"role": "assistant", "tool_calls": [{"name": "look_up", "arguments": {"x": 1}}]}
ASKED = [("user", "a"), ("assistant", "c")]
CALLED = [("user", "a"), CALL, RESULT, ("assistant", "c")]
WITHOUT_TOOLS = TEMPLATE.replace("if tools and", "if false and")
REFUSING = "{{ raise_exception('no tools here') if messages | selectattr('role', 'eq', 'tool') | list }}"
STRICT_ABOUT_NAMES = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ raise_exception('unknown tool') if c.function.name != 'look_up' }}{% endfor %}{% endfor %}"
)
BEHIND_A_SYSTEM_MESSAGE = TEMPLATE.replace("if tools and loop.first", "if false and loop.first")
WITHOUT_RESULTS = TEMPLATE.replace("for message in messages ", "for message in messages if message.role != 'tool' ")
WITHOUT_ARGUMENTS = TEMPLATE.replace("'arguments': call.function.arguments", "'arguments': {}")
FIRST_CALL_ALONE = TEMPLATE.replace("in message.tool_calls or []", "in (message.tool_calls or [])[:1]")
TOOLS_LEFT_OUT, RESULTS_LEFT_OUT = "leaves out the tools of row", "leaves out what a tool returned in row"
ARGUMENTS_LEFT_OUT, CALL_LEFT_OUT = "leaves out the arguments of a tool call in row", "leaves out a tool call in row"
CALLED_TWICE = [("user", "a"), CALL | {"tool_calls": CALL["tool_calls"] * 2}, RESULT, ("assistant", "c")]


@pytest.mark.parametrize(
    ("template", "messages", "tools", "left_out"),
    [
        (WITHOUT_TOOLS, CALLED, TOOLS, TOOLS_LEFT_OUT),
        (WITHOUT_TOOLS + REFUSING, ASKED, TOOLS, TOOLS_LEFT_OUT),
        (BEHIND_A_SYSTEM_MESSAGE, [("system", "s"), *ASKED], TOOLS, TOOLS_LEFT_OUT),
        (WITHOUT_RESULTS, CALLED, None, RESULTS_LEFT_OUT),
        (WITHOUT_ARGUMENTS, [("user", "a"), CALL_OF_X], TOOLS, ARGUMENTS_LEFT_OUT),
        (WITHOUT_RESULTS + STRICT_ABOUT_NAMES, CALLED, TOOLS, RESULTS_LEFT_OUT),
        (FIRST_CALL_ALONE, CALLED_TWICE, TOOLS, CALL_LEFT_OUT),
    ],
    ids=[
        "tools",
        "tools, where the template refuses results",
        "tools, after a system message",
        "results",
        "arguments",
        "results, where unknown calls are refused",
        "the second of two calls of one name",
    ],
)
def test_a_template_that_leaves_out_what_answers_rest_on_is_refused(tokenizer, template, messages, tools, left_out):
    assert template != TEMPLATE
    chat = custom(tokenizer, template)
    with pytest.raises(DataError, match=left_out):
        chat.encode(conversation(*messages, tools=tools))
    chat.encode(conversation(*ASKED))  # where nothing is left out, it will do


IN_MESSAGE = "{{- message.content -}}"


@pytest.mark.parametrize(
    ("change", "messages", "tools"),
    [
        (
            ("'arguments': call.function.arguments", "'arguments': {'x': call.function.arguments['x']}"),
            [("user", "a"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": [1, {"y": 2}]}}]}],
            None,
        ),
        (("'arguments': call.function.arguments", "'other': 1"), CALLED, TOOLS),
        ((IN_MESSAGE, "{{- (message.name ~ ':') if message.role == 'tool' -}}" + IN_MESSAGE), CALLED, TOOLS),
        (
            (IN_MESSAGE, "{{- message.content | tojson if message.role == 'tool' else message.content -}}"),
            CALLED,
            TOOLS,
        ),
        (("(tool | tojson)", "tool.name"), ASKED, [{"name": "look_up", "description": "d", "parameters": {}}]),
        (("(tool | tojson)", "tool.function.name"), [("system", "s"), *CALLED], TOOLS),
        (
            ("'<tool_call>'", "(raise_exception('id') if call.id | length != 9 else '<tool_call>')"),
            CALLED,
            TOOLS,
        ),
    ],
    ids=[
        "by the schema",
        "no arguments",
        "named results",
        "results as JSON",
        "tools without function",
        "names alone",
        "ids of nine characters",
    ],
)
def test_templates_may_write_tools_as_they_like(tokenizer, change, messages, tools):
    assert change[0] in TEMPLATE
    custom(tokenizer, TEMPLATE.replace(*change)).encode(conversation(*messages, tools=tools))


def test_a_template_that_refuses_tools_refuses_the_conversation(tokenizer):
    chat = custom(tokenizer, TEMPLATE + "{{ raise_exception('no tools') if tools }}")
    with pytest.raises(RefusedByTemplate, match="no tools"):
        chat.encode(conversation(("user", "a"), ("assistant", "c"), tools=TOOLS))


def test_json_is_written_as_published_templates_ask_for(tokenizer):
    arguments = "tojson(ensure_ascii=False, separators=(',', ':'), sort_keys=True, indent=None)"
    compact = custom(tokenizer, TEMPLATE.replace("| tojson) ~ '</", f"| {arguments}) ~ '</"))
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"ü": 1}}]}
    tokens = compact.encode(conversation(("user", "a"), call))
    said = tokenizer.decode(token for token, yes in zip(tokens.tokens, tokens.supervised, strict=True) if yes)
    assert said == '<tool_call>{"arguments":{"ü":1},"name":"f"}</tool_call><|im_end|>'


SPOKEN = st.text(st.sampled_from("ab \n<|>") | st.characters(codec="utf-8", exclude_characters="\ufdd0"), max_size=20)
SPELLINGS = st.lists(SPOKEN | st.sampled_from(SPECIAL_TOKENS), min_size=1, max_size=4).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(SPELLINGS.filter(str.strip), min_size=2, max_size=6))
def test_whatever_is_said_is_text(chat, tokenizer, said):
    turns = [("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(said)]
    tokens = encoded(chat, conversation(*turns))
    ids = [token for token, _ in tokens]
    sentinels = [token for token in ids if token < len(SPECIAL_TOKENS)]
    assert sentinels == [tokenizer.sentinels[START], tokenizer.sentinels[END]] * len(turns)
    answers = "".join(text + END for role, text in turns if role == "assistant")
    assert tokenizer.decode(token for token, supervised in tokens if supervised) == answers
    assert tokenizer.decode(ids) == "".join(f"{START}{role}\n{text}{END}\n" for role, text in turns)


BROKEN = {
    "syntax": ("{% for %}", "no chat template"),
    "syntax of Python": ("{% break %}", "no chat template"),
    "too many blocks": ("{% for m in messages %}" * 25 + "{% endfor %}" * 25, "no chat template"),
    "huge number": ("{{ 1" + "0" * 5000 + " }}", "no chat template"),
    "half a character": (TEMPLATE.replace("message.content -", "message.content ~ '\\ud800' -"), "surrogate"),
    "unknown filter": ("{{ messages | pickle }}", "No filter named 'pickle'"),
    "leaves out": (TEMPLATE.replace("message.content -", "'' -"), "leaves out"),
    "no end": (TEMPLATE.replace("{{- '<|im_end|>\\n' -}}\n{%- endfor", "{{- '\\n' -}}\n{%- endfor"), "end_token"),
    "goes on after the end": (
        TEMPLATE.replace("{{- message.content -}}", "{{- '<|im_end|>' ~ message.content -}}").replace(
            "{{- '<|im_end|>\\n' -}}\n{%- endfor", "{{- '\\n' -}}\n{%- endfor"
        ),
        "goes on after finetune.end_token",
    ),
    "last turn alone": (
        TEMPLATE.replace("{{- message.content -}}", "{{- message.content -}}{{- '!' if loop.last else '' -}}"),
        "how the whole conversation begins",
    ),
    "other prompt": (TEMPLATE.replace("<|im_start|>assistant\\n' -", "<|im_start|>assistant\\n.' -"), "begins"),
    "pieces": (TEMPLATE.replace("'<|im_start|>", "'<|im_' ~ 'start|>"), "from pieces"),
    "class": ("{{ ''.__class__.__mro__ }}", "must not"),
    "globals": ("{{ raise_exception.__globals__ }}", "must not"),
    "import": ("{{ cycler.__init__.__globals__.os.system('true') }}", "must not"),
    "include": ("{% include '/etc/passwd' %}", "fails"),
    "format": ("{{ '{0.__class__.__init__}'.format(messages) }}", "must not"),
    "mutation": ("{{ messages.append(1) }}", "must not"),
    "range": ("{% for i in range(10**9) %}{% endfor %}", "fails"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails"),
    "mark": ("\ufdd0" + TEMPLATE, "U+FDD0"),
    "forged mark": (TEMPLATE.replace("message.content -", "message.content ~ '\\ufdd077777\\ufdd0' -"), "77777"),
    "refuses": ("{{ raise_exception('never') }}", "refuses"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_cannot_be_tuned_with_is_one_line(tokenizer, name):
    template, said = BROKEN[name]
    with pytest.raises(DataError) as error:
        custom(tokenizer, template)
    assert said in str(error.value) and "custom.jinja" in str(error.value) and "\n" not in str(error.value)


def test_thinking_needs_a_template_that_writes_it(tokenizer):
    with pytest.raises(DataError, match="leaves out 'thought 1'"):
        custom(tokenizer, TEMPLATE.replace("~ message.reasoning_content", ""), thinking=True)  # fmt: skip


def test_the_end_of_thinking_is_no_end_of_a_turn(tokenizer):
    with pytest.raises(DataError, match=r"goes on after finetune\.end_token"):
        custom(tokenizer, TEMPLATE, thinking=True, end_token="</think>")


def test_a_template_may_end_its_turns_otherwise(tokenizer):
    other = custom(tokenizer, TEMPLATE.replace("<|im_end|>", "<|file_sep|>"), end_token="<|file_sep|>")
    row = conversation(("user", "a"), ("assistant", "b"))
    assert encoded(other, row)[-2] == (tokenizer.sentinels["<|file_sep|>"], True)
    with pytest.raises(DataError, match="no sentinel"):
        custom(tokenizer, TEMPLATE, end_token="<|nope|>")

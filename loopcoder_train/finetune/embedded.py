"""The default set: functions of the Python environment, signature and docstring -> implementation.

The journey: .py files of the standard library and the installed packages, in an order that is a hash of their names ->
parsed, file by file, until there are enough -> functions with a docstring and a body that does something -> one of each
(copies of a function lie in many packages) -> a conversation of two messages. The same environment gives the same
conversations. Held out by hash of the implementation, so that a copy with other white space is on the same side.
"""

import ast
import hashlib
import warnings
from collections.abc import Iterator

from data_pipeline.prepare.documents import WHOLE
from data_pipeline.prepare.environment import environment_files
from data_pipeline.prepare.files import part_of_files, read_text
from loopcoder_train.finetune.chat import MARK, Conversation

MAX_FUNCTION_LINES = 60
MIN_DOCSTRING_CHARACTERS = 30
MAX_FILE_BYTES = 200_000
_REQUEST = "Implement this Python function.\n\n"


def environment_conversations(limit: int) -> Iterator[Conversation]:
    """At most `limit` conversations, in an order that is spread over the packages."""
    seen: set[str] = set()
    files = [entry for entry in environment_files(_ignore) if entry.name.endswith(".py")]
    for entry in part_of_files(files, WHOLE):
        source = read_text(entry, MAX_FILE_BYTES, _ignore)
        for conversation in conversations_of(source, entry.name) if source else ():
            if conversation.key in seen:
                continue
            seen.add(conversation.key)
            yield conversation
            if len(seen) == limit:
                return


def conversations_of(source: str, file: str) -> Iterator[Conversation]:
    """The usable functions of one file, in its order; none where it is no Python, or has what no text has."""
    if MARK in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes are not the user's concern
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # as Python counts them
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and _is_usable(node):
            yield _conversation(node, lines, f"{file}::{node.name}")


def _is_usable(node: ast.FunctionDef) -> bool:
    """Whether it has a docstring on lines of its own, and a short body that does something."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring is None or len(docstring) < MIN_DOCSTRING_CHARACTERS or len(node.body) < 2:
        return False
    documented, first = node.body[:2]
    does_nothing = isinstance(first, ast.Pass | ast.Raise) or (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    )
    own_lines = node.lineno < documented.lineno and documented.end_lineno < first.lineno
    return own_lines and not does_nothing and node.end_lineno - node.lineno < MAX_FUNCTION_LINES


def _conversation(node: ast.FunctionDef, lines: list[str], name: str) -> Conversation:
    documented = node.body[0]
    asked = _dedented(lines[node.lineno - 1 : documented.end_lineno], node.col_offset)
    answered = _dedented(lines[documented.end_lineno : node.end_lineno], node.col_offset)
    normalised = "".join(ast.unparse(ast.Module(node.body[1:], [])).split())
    messages = [{"role": "user", "content": _REQUEST + asked}, {"role": "assistant", "content": answered}]
    return Conversation(messages=messages, name=name, key=hashlib.sha256(repr(normalised).encode()).hexdigest())


def _dedented(lines: list[str], indent: int) -> str:
    """Without the indentation that all of a function has; its own text is not touched."""
    text = "\n".join(line[indent:] if line[:indent].isspace() else line for line in lines)
    return text.strip("\n") + "\n"


def _ignore(_reason: str, _size: int) -> None:
    """What is no usable file is no conversation that was lost."""

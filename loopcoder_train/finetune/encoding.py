"""Many conversations -> tokens, in order, in processes of their own: a template is somebody else's program.

The sandbox keeps a template from reaching out. It does not keep it from taking for ever, or all memory; the operating
system does: every process may take so much memory, and so much CPU time for each conversation. One that
takes more is ended, and the template is an error.
"""

import multiprocessing
import os
import resource
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.tokenizer import Tokenizer
from loopcoder_train.finetune.chat import ChatFormat, Conversation, Encoded, RefusedByTemplate, load_chat_format

BATCH = 64  # conversations of one task
_AHEAD = 4  # tasks per process that wait
REFUSED = "refused by the template"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All that a process needs to turn conversations into tokens. The last two: what it may take."""

    template: str
    path: str | None
    tokenizer_file: Path
    end_of_document_id: int
    end_token: str
    thinking: bool
    memory_bytes: int = 2 << 30  # beyond what it has when it begins
    cpu_seconds: int = 60  # for each conversation, and to check the template

    def chat_format(self) -> ChatFormat:
        """The template with its tokenizer, checked."""
        tokenizer = Tokenizer.load(self.tokenizer_file, end_of_document_id=self.end_of_document_id)
        return load_chat_format(self.path, tokenizer, self.end_token, thinking=self.thinking, template=self.template)


def encode_all(
    recipe: Recipe, conversations: Iterable[Conversation], workers: int
) -> Iterator[tuple[Conversation, Encoded | str]]:
    """Every conversation with its tokens, or with the reason why it has none; in their order, whatever `workers` is.

    Raises DataError when the template is wrong, or takes more time or memory than a template can need.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(recipe,)) as pool:
        waiting: deque[tuple[tuple[Conversation, ...], Future]] = deque()
        try:
            source = iter(conversations)
            while batch := tuple(islice(source, BATCH)):
                waiting.append((batch, pool.submit(_encode, batch)))
                if len(waiting) > workers * _AHEAD:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        except (BrokenProcessPool, MemoryError) as error:
            raise DataError(
                f"finetune.chat_template={recipe.path or 'chatml.jinja'}: took more than {recipe.cpu_seconds} s or "
                f"{recipe.memory_bytes >> 20} MiB for a conversation and was ended; correct it, or remove "
                "huge rows"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(waiting: deque) -> Iterator[tuple[Conversation, Encoded | str]]:
    batch, future = waiting.popleft()
    yield from zip(batch, future.result(), strict=True)


class _Process:
    """What a worker process knows."""

    recipe: Recipe
    chat: ChatFormat | None = None


def _begin(recipe: Recipe) -> None:
    _Process.recipe = recipe
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _limit(resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE") + recipe.memory_bytes)


def _encode(conversations: tuple[Conversation, ...]) -> list[Encoded | str]:
    _allow_cpu_seconds()
    # Not in the initializer, whose errors nobody would see.
    _Process.chat = _Process.chat or _Process.recipe.chat_format()
    return [_encoded(_Process.chat, conversation) for conversation in conversations]


def _allow_cpu_seconds() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + 1 + _Process.recipe.cpu_seconds)


def _encoded(chat: ChatFormat, conversation: Conversation) -> Encoded | str:
    _allow_cpu_seconds()
    try:
        return chat.encode(conversation)
    except RefusedByTemplate:
        return REFUSED


def _limit(what: int, soft: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))

"""Sources -> the frozen pack plan of a run (plan.py), once.

The journey: sources -> conversations -> tokens (encoding.py) -> too long ones are dropped, or an error -> the
conversations of a source with the lowest hashes are held out -> both sides of each source are packed by themselves ->
files, and at last plan.json. A plan that is there and was made for the same options is never made again: what it was
made from may be gone.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import Corpus, write_durably
from loopcoder_train.config.finetune import ConversationKind, ConversationSource, FinetuneConfig, OnTooLong
from loopcoder_train.config.io import to_dict
from loopcoder_train.finetune.chat import Conversation, Encoded, read_template
from loopcoder_train.finetune.embedded import environment_conversations
from loopcoder_train.finetune.encoding import Recipe, encode_all
from loopcoder_train.finetune.examples import ExampleReader, read_rows
from loopcoder_train.finetune.packing import pack
from loopcoder_train.finetune.plan import (
    ARRAYS,
    PLAN_FILE,
    PLAN_FOLDER,
    TEMPLATE_FILE,
    Plan,
    SourceCounts,
    file_sha256,
    plan_hash,
)

# Options that change neither conversations nor rows.
_NOT_IN_PLAN = ("workers", "max_epochs")
_VERSION = 1
TOO_LONG, NOTHING_SAID = "longer than data.sequence_length", "no assistant token"


def prepare_plan(
    run_dir: Path, finetune: FinetuneConfig, corpus: Corpus, sequence_length: int, *, started: bool = False
) -> "Plan":
    """The plan in `run_dir`, made if it is not there or was made for other options.

    corpus: has the tokenizer. started: the run has checkpoints, which count in the rows of its plan; another one never
    takes its place. Raises DataError for data, templates and options that nobody can be tuned with.
    """
    folder = run_dir / PLAN_FOLDER
    plan = Plan.open(run_dir) if (folder / PLAN_FILE).exists() else None
    template = _template(finetune, plan)
    request = _request(finetune, template, corpus, sequence_length)
    if plan is not None and plan.content["request"] == request:
        return plan
    partial = run_dir / f"{PLAN_FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    made = _make(partial, finetune, template, corpus, sequence_length, request)
    if started and plan is not None and made != plan.plan_hash:
        shutil.rmtree(partial)
        was = plan.content["request"]
        differing = ", ".join(key for key in request if request[key] != was.get(key))
        raise DataError(
            f"{folder}: the run's checkpoints have read it, and it was made of other {differing}; bring those back, "
            "start over with fresh=true, or give another run_dir"
        )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return Plan.open(run_dir)


def _template(finetune: FinetuneConfig, plan: Plan | None) -> str:
    """The source of the chat template: of its file, or, when that is gone, the copy in the plan that was made of it."""
    file = finetune.chat_template
    if (
        plan is None
        or file is None
        or Path(file).exists()
        or plan.content["request"]["options"]["chat_template"] != file
    ):
        return read_template(file)
    return plan.template


def _request(finetune: FinetuneConfig, template: str, corpus: Corpus, sequence_length: int) -> dict[str, Any]:
    """Everything that a plan is made of, but the content of data files: a plan outlives them."""
    options = {key: value for key, value in to_dict(finetune).items() if key not in _NOT_IN_PLAN}
    return {
        "version": _VERSION,
        "options": options,
        "template": hashlib.sha256(template.encode()).hexdigest(),
        "tokenizer_hash": corpus.manifest.tokenizer_hash,
        "sequence_length": sequence_length,
    }


def _make(
    folder: Path, finetune: FinetuneConfig, template: str, corpus: Corpus, sequence_length: int, request: dict
) -> str:
    """Write a plan; returns its plan_hash."""
    (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    recipe = Recipe(
        template=template,
        path=finetune.chat_template,
        tokenizer_file=Path(corpus.directory) / "tokenizer.json",
        end_of_document_id=corpus.manifest.end_of_document_id,
        end_token=finetune.end_token,
        thinking=finetune.thinking,
    )
    written = _Written([0], [], [])
    counts = []
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "supervised.bin").open("wb") as supervised:
        for number, source in enumerate(finetune.sources):
            reader = ExampleReader(source, thinking=finetune.thinking)
            encoded = encode_all(recipe, _conversations(reader, finetune), finetune.workers)
            count = SourceCounts(name=source.name)
            for conversation, result in _kept(encoded, reader, finetune.too_long, sequence_length):
                tokens.write(result.tokens.astype("<u4").tobytes())
                supervised.write(result.supervised.astype("u1").tobytes())
                written.add(number, conversation.key, len(result))
                count.tokens += len(result)
                count.supervised_tokens += int(result.supervised.sum())
            _finish_counts(count, reader, finetune, len(written.keys) - sum(c.conversations for c in counts))
            counts.append(count)
    rows, row_sources, train_rows = _pack(written, counts, finetune.heldout_share, sequence_length)
    _write(folder, "offsets", written.offsets)
    _write(folder, "members", [index for row in rows for index in row])
    _write(folder, "rows", np.cumsum([0, *map(len, rows)]))
    _write(folder, "sources", row_sources)
    files = {name: file_sha256(folder / f"{name}.bin") for name in ARRAYS}
    content = {
        "plan_hash": "",
        "train_rows": train_rows,
        "end_of_document_id": corpus.manifest.end_of_document_id,
        "sources": [asdict(count) for count in counts],
        "files": files,
        "request": request,
    }
    content["plan_hash"] = plan_hash(content)
    _sync(folder)
    write_durably(folder / PLAN_FILE, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return content["plan_hash"]


@dataclass(slots=True)
class _Written:
    """Of every kept conversation: where it ends, what it is known by, its source."""

    offsets: list[int]
    keys: list[str]
    sources: list[int]

    def add(self, source: int, key: str, length: int) -> None:
        self.offsets.append(self.offsets[-1] + length)
        self.keys.append(key)
        self.sources.append(source)


def _conversations(reader: ExampleReader, finetune: FinetuneConfig) -> Iterator[Conversation]:
    if reader.source.kind is not ConversationKind.environment:
        yield from reader.conversations(read_rows(reader))
        return
    for conversation in environment_conversations(finetune.environment_conversations):
        reader.read += 1
        yield conversation


def _kept(
    encoded: Iterator[tuple[Conversation, Encoded | str]],
    reader: ExampleReader,
    too_long: OnTooLong,
    sequence_length: int,
) -> Iterator[tuple[Conversation, Encoded]]:
    """Those with tokens to train on that fit into a row."""
    for conversation, result in encoded:
        if isinstance(result, str):
            reader.drop(result)
        elif not result.supervised.any():
            reader.drop(NOTHING_SAID)
        elif len(result) > sequence_length:
            if too_long is OnTooLong.error:
                raise DataError(
                    f"{conversation.name}: has {len(result)} tokens, more than data.sequence_length={sequence_length} "
                    "(finetune.too_long=error); raise that, shorten it, or set finetune.too_long=drop"
                )
            reader.drop(TOO_LONG)
        else:
            yield conversation, result


def _finish_counts(count: SourceCounts, reader: ExampleReader, finetune: FinetuneConfig, conversations: int) -> None:
    """Fill in what the reader counted; DataError for a source that gives too little."""
    count.read, count.dropped = reader.read, reader.dropped
    count.reasoning_left_out, count.conversations = reader.reasoning_left_out, conversations
    source: ConversationSource = reader.source
    where = f"finetune source {source.name!r} ({source.path or source.kind.name})"
    lost = ", ".join(f"{number:,} {reason}" for reason, number in sorted(reader.dropped.items()))
    if not reader.read:
        raise DataError(f"{where}: is empty; give one with conversations")
    if not count.conversations:
        raise DataError(f"{where}: every one of its {reader.read:,} rows was dropped: {lost}; correct them")
    if sum(reader.dropped.values()) > finetune.max_dropped_share * reader.read and (
        source.kind is not ConversationKind.environment
    ):
        raise DataError(
            f"{where}: {sum(reader.dropped.values()):,} of {reader.read:,} rows were dropped, more than "
            f"finetune.max_dropped_share={finetune.max_dropped_share:g}: {lost}; correct them, or raise that"
        )
    if finetune.thinking and not reader.reasoned:
        raise DataError(
            f"{where}: no message has reasoning_content, which finetune.thinking=true trains on; leave that out, or "
            "give reasoning traces"
        )


def _pack(
    written: _Written, counts: list[SourceCounts], heldout_share: float, sequence_length: int
) -> tuple[list[list[int]], list[int], int]:
    """Rows, their sources, and how many of them are for training; sets heldout_conversations."""
    lengths, sources = np.diff(written.offsets), np.array(written.sources)
    sides: list[list[tuple[int, list[int]]]] = [[], []]
    owned = [np.flatnonzero(sources == number) for number in range(len(counts))]
    heldout_keys = set().union(*(_heldout_keys([written.keys[index] for index in own], heldout_share) for own in owned))
    for number, (count, own) in enumerate(zip(counts, owned, strict=True)):
        held_out = np.array([written.keys[index] in heldout_keys for index in own])
        count.heldout_conversations = int(held_out.sum())
        if held_out.all():
            raise DataError(
                f"finetune source {count.name!r}: has {len(own)} different conversation(s), too few to hold one out "
                "and train on another; give more"
            )
        for side, indices in zip(sides, (own[~held_out], own[held_out]), strict=True):
            side += [(number, indices[row].tolist()) for row in pack(lengths[indices], sequence_length)]
    both = sides[0] + sides[1]
    return [row for _, row in both], [number for number, _ in both], len(sides[0])


def _heldout_keys(keys: list[str], share: float) -> list[str]:
    """The lowest keys of a source, `share` of the different ones, at least one. No other source trains on them."""
    different = sorted(set(keys))
    return different[: max(1, round(share * len(different)))]


def _write(folder: Path, name: str, values: Any) -> None:
    np.asarray(values, dtype=ARRAYS[name]).tofile(folder / f"{name}.bin")


def _sync(folder: Path) -> None:
    """On the disk before plan.json says that it is."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())

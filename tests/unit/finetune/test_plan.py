"""The plan is made once, independent of everything but conversations, template and row length; bad sets are refused."""

import dataclasses
import json

import pytest

from data_pipeline.errors import DataError
from loopcoder_train.config.finetune import ConversationKind, ConversationSource, OnTooLong
from loopcoder_train.finetune.plan import PLAN_FOLDER, Plan
from loopcoder_train.finetune.plan_making import prepare_plan
from loopcoder_train.finetune.stream import heldout_rows, rows_of
from tests.unit.finetune.conftest import TEMPLATE, jsonl, options, rows

LENGTH = 128


def make(corpus, folder, path, length=LENGTH, started=False, **changes):
    return prepare_plan(folder, options(path, **changes), corpus, length, started=started)


def test_every_conversation_is_in_one_row_as_it_was_encoded(corpus, chat, tmp_path):
    plan = make(corpus, tmp_path / "run", jsonl(tmp_path / "a.jsonl", rows(30)))
    found = []
    for number in range(plan.num_rows):
        batch = rows_of(plan, [number])
        for document, (tokens, supervised) in enumerate(plan.row(number)):
            inside = batch.document_ids[0] == document
            assert batch.input_ids[0][inside].tolist() == tokens.tolist()
            expected = [t if s else -100 for t, s in zip(tokens[1:], supervised[1:], strict=True)]
            assert batch.labels[0][inside].tolist() == [*expected, -100]
            found.append(corpus.tokenizer.decode(tokens).split("\n")[1].removesuffix("<|im_end|>"))
        padding = batch.document_ids[0] == len(plan.row(number))
        assert (batch.labels[0][padding] == -100).all()
    assert sorted(found) == sorted(f"question {number}" for number in range(30))
    (counts,) = plan.sources
    assert (counts.read, counts.conversations, counts.heldout_conversations, counts.dropped) == (30, 30, 6, {})
    held_out = sum(len(plan.row(number)) for number in range(plan.train_rows, plan.num_rows))
    assert held_out == 6


def test_the_hash_knows_the_conversations_and_nothing_of_the_run(corpus, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", rows(20))
    plan = make(corpus, tmp_path / "one", path)
    assert make(corpus, tmp_path / "two", path, workers=2, max_epochs=99.0).plan_hash == plan.plan_hash
    assert make(corpus, tmp_path / "three", jsonl(tmp_path / "b.jsonl", rows(20))).plan_hash == plan.plan_hash
    others = [
        make(corpus, tmp_path / "four", jsonl(tmp_path / "c.jsonl", rows(19))),
        make(corpus, tmp_path / "five", path, length=LENGTH + 1),
        make(corpus, tmp_path / "six", path, heldout_share=0.3),
    ]
    assert len({plan.plan_hash, *(other.plan_hash for other in others)}) == 4


def test_equal_conversations_are_held_out_together(corpus, tmp_path):
    plan = make(corpus, tmp_path / "run", jsonl(tmp_path / "a.jsonl", rows(10) * 3))
    assert plan.sources[0].heldout_conversations == 6
    sides = [range(plan.train_rows), range(plan.train_rows, plan.num_rows)]
    texts = [{bytes(tokens) for number in side for tokens, _ in plan.row(number)} for side in sides]
    assert len(texts[1]) == 2 and not texts[0] & texts[1]


def test_a_plan_outlives_its_data_but_not_other_options(corpus, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", rows(20))
    plan = make(corpus, tmp_path / "run", path)
    path.unlink()
    assert make(corpus, tmp_path / "run", path).plan_hash == plan.plan_hash
    with pytest.raises(DataError, match="does not exist"):
        make(corpus, tmp_path / "run", path, thinking=True)
    assert Plan.open(tmp_path / "run").plan_hash == plan.plan_hash


def test_the_plan_of_a_run_with_checkpoints_is_never_replaced(corpus, tmp_path):
    path, template = jsonl(tmp_path / "a.jsonl", rows(20)), tmp_path / "mine.jinja"
    template.write_text(TEMPLATE)
    own = {"started": True, "chat_template": str(template)}
    plan = make(corpus, tmp_path / "run", path, **own)
    template.write_text(TEMPLATE.replace("<|im_end|>\\n", "<|im_end|>\\n\\n"))
    with pytest.raises(DataError, match="other template;"):
        make(corpus, tmp_path / "run", path, **own)
    assert not (tmp_path / "run" / f"{PLAN_FOLDER}.partial").exists()
    template.unlink()
    assert make(corpus, tmp_path / "run", path, **own).plan_hash == plan.plan_hash
    assert make(corpus, tmp_path / "run", path, max_dropped_share=0.2, **own).plan_hash == plan.plan_hash


def test_a_template_that_was_changed_is_not_the_runs(corpus, tmp_path):
    plan = make(corpus, tmp_path / "run", jsonl(tmp_path / "a.jsonl", rows(20)))
    assert plan.template == TEMPLATE
    (plan.folder / "template.jinja").write_text(TEMPLATE + " ")
    with pytest.raises(DataError, match=r"template.jinja: is not the template"):
        _ = plan.template


def test_damage_is_found(corpus, tmp_path):
    folder = tmp_path / "run" / PLAN_FOLDER
    make(corpus, tmp_path / "run", jsonl(tmp_path / "a.jsonl", rows(20))).verify()
    tokens = bytearray((folder / "tokens.bin").read_bytes())
    tokens[8] ^= 1
    (folder / "tokens.bin").write_bytes(tokens)
    with pytest.raises(DataError, match=r"tokens.bin: is damaged"):
        Plan.open(tmp_path / "run").verify()
    (folder / "tokens.bin").write_bytes(tokens[:-4])
    with pytest.raises(DataError, match="do not belong together"):
        Plan.open(tmp_path / "run")
    content = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(content | {"train_rows": 1}))
    with pytest.raises(DataError, match="changed by hand"):
        Plan.open(tmp_path / "run")
    (folder / "plan.json").unlink()
    with pytest.raises(DataError, match="loopcoder finetune"):
        Plan.open(tmp_path / "run")


LONG = {"messages": [{"role": "user", "content": "x " * LENGTH}, {"role": "assistant", "content": "y"}]}
NO_ANSWER = {"messages": [{"role": "user", "content": "x"}]}


def test_drops_are_counted_by_reason(corpus, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*rows(20), LONG, NO_ANSWER, "{"])
    (counts,) = make(corpus, tmp_path / "run", path, max_dropped_share=0.5).sources
    assert counts.read == 23 and counts.conversations == 20
    assert counts.dropped == {
        "longer than data.sequence_length": 1,
        "no assistant message to train on": 1,
        "line is not a JSON object": 1,
    }


REFUSED = [
    ([], {}, "is empty"),
    ([NO_ANSWER], {}, "every one of its 1 rows was dropped: 1 no assistant message"),
    ([*rows(4), "{"], {}, "1 of 5 rows were dropped, more than finetune.max_dropped_share=0.1"),
    (
        [*rows(20), LONG],
        {"too_long": OnTooLong.error},
        r"a.jsonl:21: has \d+ tokens, more than data.sequence_length=128",
    ),
    (rows(1), {}, "too few to hold one out"),
    (rows(1) * 5, {}, "too few to hold one out"),
    (rows(20), {"thinking": True}, "no message has reasoning_content"),
]


@pytest.mark.parametrize(("content", "changes", "said"), REFUSED)
def test_a_set_that_cannot_be_tuned_with_is_one_line(corpus, tmp_path, content, changes, said):
    with pytest.raises(DataError, match=said) as error:
        make(corpus, tmp_path / "run", jsonl(tmp_path / "a.jsonl", content), **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / PLAN_FOLDER).exists()


def test_sources_are_packed_and_held_out_by_themselves(corpus, tmp_path):
    paths = [jsonl(tmp_path / f"{name}.jsonl", own) for name, own in (("a", rows(40)[:10]), ("b", rows(40)[10:]))]
    sources = [ConversationSource(name=path.stem, kind=ConversationKind.jsonl, path=str(path)) for path in paths]
    plan = prepare_plan(tmp_path / "run", dataclasses.replace(options(), sources=sources), corpus, LENGTH)
    assert [source.heldout_conversations for source in plan.sources] == [2, 6]
    held_out = list(heldout_rows(plan, 2, 1))
    assert [batch.source_ids.tolist() for batch in held_out] == [[0, 1]]
    assert all(len(batch.input_ids[0]) == LENGTH for batch in held_out)


def test_what_one_source_holds_out_no_other_trains_on(corpus, tmp_path):
    content = {"a": rows(40), "b": rows(40)[:16], "c": rows(40)[20:]}
    paths = [jsonl(tmp_path / f"{name}.jsonl", own) for name, own in content.items()]
    sources = [ConversationSource(name=path.stem, kind=ConversationKind.jsonl, path=str(path)) for path in paths]
    plan = prepare_plan(tmp_path / "run", dataclasses.replace(options(), sources=sources), corpus, LENGTH)
    sides = [range(plan.train_rows), range(plan.train_rows, plan.num_rows)]
    texts = [{bytes(tokens) for number in side for tokens, _ in plan.row(number)} for side in sides]
    assert texts[0] and texts[1] and not texts[0] & texts[1]

"""The numbers of a report add up, whatever the ledger; its estimates are what they are said to be."""

import itertools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.ledger import Ledger
from data_pipeline.manifest import LEDGER_FILE, Corpus
from data_pipeline.report.flows import DROPS, LOSSES, Amount, Flow, top_and_others
from data_pipeline.report.funnel import make_report, stages_off
from data_pipeline.report.write import numbers
from tests.unit.data_pipeline.report.corpora import EVERY_STAGE, FATES, Fate, save_corpus, save_manifest, side

LANGUAGES = ("Python", "C++", "Markdown", "Text", "reStructuredText")
_SIZES = st.integers(1, 2**45)


@st.composite
def fates(draw) -> list[Fate]:
    """At least one document that was kept."""
    where = {"source": st.sampled_from(("a", "b", "c")), "language": st.sampled_from(LANGUAGES)}
    number = st.integers(1, 10**9)
    kept = st.builds(
        Fate, **where, stage=st.sampled_from(("train", "heldout")), bytes=_SIZES.map(lambda n: n + 100),
        tokens=st.integers(1, 2**45), redacted=st.integers(-100, 100), fim=st.integers(0, 1000),
        reason=st.sampled_from(("key", "email")),
        documents=number,
    )  # fmt: skip
    dropped = st.builds(
        Fate, **where, stage=st.sampled_from(DROPS), bytes=_SIZES, reason=st.sampled_from(("x", "y")), documents=number
    )
    skipped = st.builds(
        Fate, source=where["source"], language=st.just(""), stage=st.just("skipped"), bytes=_SIZES,
        reason=st.sampled_from(("empty", "binary")), documents=number,
    )  # fmt: skip
    return draw(st.lists(kept, min_size=1, max_size=6)) + draw(st.lists(st.one_of(kept, dropped, skipped), max_size=12))


def report_of(fates: list[Fate], **options):
    with tempfile.TemporaryDirectory() as folder:
        return make_report(save_corpus(Path(folder), fates, **options))


def left_after(fates: list[Fate], stage: str) -> tuple[int, int]:
    """Documents and bytes that a stage has left over, recounted from the documents."""
    gone = () if stage == "read" else LOSSES[: LOSSES.index(stage) + 1]
    left = [fate for fate in fates if fate.stage not in (*gone, "skipped")]
    taken = sum(fate.redacted for fate in left) if "redacted" in gone else 0
    return sum(fate.documents for fate in left), sum(fate.bytes for fate in left) - taken


@settings(deadline=None, max_examples=40)
@given(fates())
def test_every_flow_is_a_recount_of_its_documents(fates):
    report = report_of(fates)
    chosen = {
        **{id(flow): [f for f in fates if f.language == flow.name] for flow in report.languages},
        **{id(flow): [f for f in fates if f.source == flow.name] for flow in report.sources},
        **{id(flow): [f for f in fates if f.language and side(f.language) == flow.name] for flow in report.sides},
        id(report.total): fates,
    }
    for flow in (report.total, *report.sides, *report.languages, *report.sources):
        own = chosen[id(flow)]
        for step in flow.steps():
            assert (step.left.documents, step.left.bytes) == left_after(own, step.stage), (flow.name, step.stage)
        for stage, amount in (("train", flow.train), ("heldout", flow.heldout)):
            counted = [f for f in own if f.stage == stage]
            assert amount == Amount(
                documents=sum(f.documents for f in counted),
                bytes=sum(f.bytes - f.redacted for f in counted),
                tokens=sum(f.tokens for f in counted),
            )
        filled = [f for f in own if f.fim]
        assert flow.fim == Amount(documents=sum(f.documents for f in filled), tokens=sum(f.fim for f in filled))
        assert flow.changed == sum(f.documents for f in own if f.redacted)
        assert flow.skipped.documents == sum(f.documents for f in own if f.stage == "skipped")


@settings(deadline=None, max_examples=40)
@given(fates())
def test_everything_adds_up_along_every_axis_tokens_included(fates):
    report = report_of(fates)
    for flows in (report.languages, report.sources, report.sides):
        total = Flow(name="sum", side="")
        for flow in flows:
            total.include(flow)
        for name in ("read", "lost", "train", "heldout", "changed", "fim"):
            assert getattr(total, name) == getattr(report.total, name), name
        assert total.skipped == (report.total.skipped if flows is report.sources else Amount())
    for flow in (report.total, *report.languages, *report.sources):
        steps = list(flow.steps())
        assert [step.stage for step in steps] == ["read", *LOSSES]
        assert steps[0].left == flow.read and steps[-1].left == flow.kept
        for before, after in itertools.pairwise(steps):
            assert before.left == after.left + after.lost
            assert after.stage == "redacted" or after.left.tokens <= before.left.tokens
    for stage in DROPS:
        rows = [reason.amount for reason in report.reasons if reason.stage == stage]
        assert sum(rows, Amount()) == report.total.lost[stage]
    for before, after in itertools.pairwise(report.reasons):
        assert before.stage != after.stage or before.amount.documents >= after.amount.documents
    assert {reason.stage for reason in report.reasons} <= {*LOSSES, "fim", "skipped"}
    assert {f.source for f in fates} == {flow.name for flow in report.sources}


@settings(deadline=None, max_examples=20)
@given(fates())
def test_tokens_are_exact_when_marked_so_and_estimates_follow_the_language(fates):
    report = report_of(fates)
    for flow in report.languages:
        for step in flow.steps():
            if not step.about:
                assert step.left == flow.kept
        if flow.kept.bytes:
            for stage in LOSSES:
                lost = flow.lost[stage]
                error = abs(lost.tokens * flow.kept.bytes - lost.bytes * flow.kept.tokens)
                assert 2 * error <= len(fates) * flow.kept.bytes, "every row of the ledger is rounded once"


@settings(deadline=None, max_examples=20)
@given(fates())
def test_json_has_the_same_numbers(fates):
    report = report_of(fates)
    content = json.loads(json.dumps(numbers(report)))
    for entry in [content["total"], *content["languages"], *content["sources"], *content["sides"]]:
        for unit in ("documents", "bytes", "tokens"):
            dropped = sum(amount[unit] for amount in entry["lost"].values())
            assert entry["read"][unit] == dropped + entry["train"][unit] + entry["heldout"][unit]
            assert entry["kept"][unit] == entry["train"][unit] + entry["heldout"][unit]
    assert content["total"]["train"]["tokens"] == sum(share["train"]["tokens"] for share in content["mixture"])


def test_estimates_come_from_the_language_else_its_side(tmp_path):
    report = make_report(save_corpus(tmp_path, FATES))
    python, lua, text = (next(f for f in report.languages if f.name == name) for name in ("Python", "Lua", "Text"))
    # Python: 1,230 tokens in 4,900 bytes. Lua kept nothing: code has 1,430 in 5,500. Text: 1,500 in 6,000.
    assert python.lost["filtered"].tokens == round(2000 * 1230 / 4900)
    assert lua.lost["filtered"].tokens == round(490 * 1430 / 5500)
    assert text.lost["capped"].tokens == 250
    assert lua.bytes_per_token is None and text.bytes_per_token == 4.0


def test_estimates_of_a_side_that_kept_nothing_come_from_everything():
    report = report_of([
        Fate(source="a", language="C", stage="train", bytes=100, tokens=50),
        Fate(source="a", language="Text", stage="filtered", bytes=30),
    ])  # fmt: skip
    assert report.side("text").lost["filtered"].tokens == 15


def test_order_sides_and_sources(tmp_path):
    report = make_report(save_corpus(tmp_path, FATES))
    assert [flow.name for flow in report.sides] == ["text", "code"]
    assert [flow.name for flow in report.languages] == ["Text", "Python", "C", "Lua"]
    assert {flow.name: flow.side for flow in report.sources} == {
        "mine": "code",
        "theirs": "code",
        "wiki": "text + code",
    }
    assert [(share.name, share.share) for share in report.mixture] == [
        ("wiki", 1.0), ("python", 1130 / 1330), ("c", 200 / 1330)
    ]  # fmt: skip
    generated = next(reason for reason in report.reasons if reason.reason == "generated file")
    assert (generated.amount.documents, generated.sources) == (2, ["mine", "wiki"])


def test_the_first_ten_and_all_others():
    flows = [Flow(name=str(number), side="code", train=Amount(tokens=2**number)) for number in range(20, 0, -1)]
    top = top_and_others(flows)
    assert [flow.name for flow in top] == [*map(str, range(20, 10, -1)), "10 others"]
    assert top[-1].train.tokens == 2**11 - 2 and sum(flow.train.tokens for flow in top) == 2**21 - 2
    assert top_and_others(flows[:10]) == flows[:10]


def test_stages_that_the_build_did_not_have(tmp_path):
    assert stages_off(EVERY_STAGE) == []
    assert stages_off({}) == ["capped", "filtered", "near_duplicate", "contaminated", "redacted"]
    assert "filtered" not in stages_off({"filters": "none", "language_manifest": "mine"})
    # What the ledger has is never called absent, whatever the options say.
    assert make_report(save_corpus(tmp_path, FATES)).off == []


MANIFEST = """
name: mine
shares: {Python: 60, Java: 20}
others_share: 20
others: [C, Lua]
"""


def test_planned_shares_are_those_of_the_language_manifest(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MANIFEST)
    fates = [*FATES, Fate(source="theirs", language="Lua", stage="train", bytes=90, tokens=600)]
    corpus = save_corpus(tmp_path / "corpus", fates, build_config={"language_manifest": str(path)})
    report = make_report(corpus)
    assert report.language_manifest == str(path)
    # Java is not there: 60 and 20 of 80. The 20 of the others by size: C has 200 tokens, Lua 600.
    planned = {share.name: share.planned for share in report.mixture}
    assert planned == pytest.approx({"wiki": None, "python": 0.75, "c": 0.0625, "lua": 0.1875})
    assert any("Java: 20% of the code tokens" in note for note in report.notes)
    path.unlink()
    report = make_report(corpus)
    assert [note for note in report.notes if "not shown" in note and "no such file" in note] == report.notes
    assert {share.planned for share in report.mixture} == {None}


def _edited(tmp_path, edit) -> Corpus:
    """A corpus whose ledger was changed afterwards."""
    corpus = save_corpus(tmp_path, FATES)
    content = json.loads((tmp_path / LEDGER_FILE).read_text())
    edit(content["rows"])
    (tmp_path / LEDGER_FILE).write_text(json.dumps(content))
    return corpus


def _row(rows, stage, language):
    return next(row for row in rows if (row["stage"], row["language"]) == (stage, language))


def test_a_language_that_does_not_add_up_is_an_error_even_if_its_source_does(tmp_path):
    def edit(rows):
        _row(rows, "read", "Python")["documents"] += 1
        _row(rows, "near_duplicate", "C")["documents"] += 1

    corpus = _edited(tmp_path, edit)
    Ledger.load(tmp_path).balance()
    with pytest.raises(DataError, match=r"(Python: 1|C: -1) documents \(0 bytes\) are unaccounted for"):
        make_report(corpus)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stage", "polished", "stage 'polished' is unknown"),
        ("group", "pyhton", "group 'pyhton' is not in the manifest"),
        ("tokens", 1131, "python train has 2,261 tokens, its shards have 1,130"),
    ],
)
def test_a_ledger_of_something_else_is_an_error(tmp_path, field, value, message):
    def edit(rows):
        row = dict(_row(rows, "train", "Python"))
        rows.append(
            row | {field: value, "reason": "added"} | ({} if field == "tokens" else {"documents": 0, "bytes": 0})
        )
        if field == "tokens":
            _row(rows, "read", "Python")["documents"] += row["documents"]
            _row(rows, "read", "Python")["bytes"] += row["bytes"]

    with pytest.raises(DataError, match=message) as caught:
        make_report(_edited(tmp_path, edit))
    assert LEDGER_FILE in str(caught.value) and "\n" not in str(caught.value)


def test_a_dropped_language_that_nobody_knows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="language 'Klingon' is unknown"):
        make_report(save_corpus(tmp_path, [*FATES, Fate(source="a", language="Klingon", stage="filtered", bytes=1)]))


def test_nothing_kept_is_an_error(tmp_path):
    corpus = save_corpus(tmp_path, FATES)
    Ledger().save(tmp_path)
    with pytest.raises(DataError, match="no document was kept"):
        make_report(corpus)


def test_manifest_tokens_that_the_ledger_lacks_are_an_error(tmp_path):
    corpus = save_corpus(tmp_path, FATES)
    sources = corpus.manifest.sources
    python = next(source for source in sources if source.name == "python")
    python.heldout.tokens += 7
    python.heldout.shards[0].num_tokens += 7
    save_manifest(tmp_path, sources, {})
    with pytest.raises(DataError, match="python heldout has 100 tokens, its shards have 107"):
        make_report(Corpus.open(tmp_path))

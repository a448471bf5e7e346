"""From documents to a corpus: nothing lost, nothing twice, the same every time."""

import dataclasses
import fcntl
import json
import os
import random
import shutil
from typing import ClassVar

import pytest
from omegaconf import OmegaConf

from data_pipeline.errors import DataError
from data_pipeline.ledger import Ledger
from data_pipeline.manifest import Corpus, Manifest
from data_pipeline.prepare import build, collect
from data_pipeline.prepare.build import build_corpus
from data_pipeline.prepare.build_config import BuildConfig
from data_pipeline.prepare.collect import StagedDocument
from data_pipeline.prepare.dedup import IDENTICAL, SAME_BUT_FOR_DETAILS, SeenDocuments
from data_pipeline.prepare.documents import SourceConfig, SourceKind
from data_pipeline.prepare.overlap import return_overlapping, window_hashes
from data_pipeline.prepare.split import HeldoutRule, split_hash
from data_pipeline.quotas import quotas_for
from data_pipeline.show import describe
from data_pipeline.stream import TokenStream

_WORDS = [
    f"{a}{b}" for a in ("data", "loop", "token", "gate", "shift", "näht") for b in ("ing", "er", "s", "ed", "ful", "漢")
]


def sentence(generator: random.Random, words: int = 60) -> str:
    return " ".join(generator.choices(_WORDS, k=words))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """120 Python files, 40 of C, 3 of Rust, a jsonl of prose; two exact copies, one that differs in a number."""
    folder, generator = tmp_path_factory.mktemp("raw"), random.Random(0)
    code = folder / "code"
    code.mkdir()
    for number in range(120):
        (code / f"{number}.py").write_text(f"# version 1.{number}\n{sentence(generator)}\n")
    for number in range(40):
        (code / f"{number}.c").write_text(f"/* <|endoftext|> */ {sentence(generator)}\n")
    for number in range(3):
        (code / f"{number}.rs").write_text(sentence(generator, 10))
    (code / "go.go").write_text(sentence(generator, 10))
    shutil.copy(code / "7.py", code / "copy of 7.py")
    shutil.copy(code / "8.py", code / "copy of 8.py")
    (code / "new 9.py").write_text((code / "9.py").read_text().replace("1.9", "2.10").replace(" ", "   ").upper())
    (code / "bad.py").write_bytes(b"\xff\xfe")
    with (folder / "prose.jsonl").open("w") as file:
        for _ in range(150):
            file.write(json.dumps({"text": sentence(generator)}) + "\n")
    return folder


def config_of(raw, corpus_dir, **options) -> BuildConfig:
    sources = [
        SourceConfig(name="mine", kind=SourceKind.folder, path=str(raw / "code")),
        SourceConfig(name="prose", kind=SourceKind.jsonl, path=str(raw / "prose.jsonl")),
    ]
    defaults = {
        "vocab_size": 400, "min_source_tokens": 200, "min_heldout_documents": 5,
        "shard_tokens": 2000, "block_tokens": 64,
    }  # fmt: skip
    return BuildConfig(**{"corpus_dir": str(corpus_dir), "sources": sources, **defaults, **options})


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "corpus"
    lines = []
    build_corpus(config_of(raw, folder), lines.append)
    return folder, lines


def documents_of(corpus: Corpus, source: int, split: str) -> list[str]:
    """The texts of a split, from its tokens."""
    tokens, end = corpus.tokens(source, split), corpus.manifest.end_of_document_id
    if not tokens.num_tokens:
        return []
    texts, current = [], []
    for token in tokens.read(0, tokens.num_tokens).tolist():
        if token == end:
            texts.append(corpus.tokenizer.decode(current))
            current = []
        else:
            current.append(token)
    assert not current
    return texts


def all_documents(corpus: Corpus, split: str) -> list[str]:
    return [text for source in range(len(corpus.manifest.sources)) for text in documents_of(corpus, source, split)]


def test_every_document_is_in_the_corpus_exactly_once(raw, built):
    corpus = Corpus.open(built[0])
    train, heldout = all_documents(corpus, "train"), all_documents(corpus, "heldout")
    expected = {path.read_text() for path in (raw / "code").iterdir() if path.name != "bad.py"}
    expected |= {json.loads(line)["text"] for line in (raw / "prose.jsonl").open()}
    assert len(train) + len(heldout) == len(set(train) | set(heldout)) == 120 + 40 + 3 + 1 + 150
    assert set(train) | set(heldout) <= expected
    assert len(heldout) >= 3 * 4


def test_sources_by_language_and_small_ones_grouped(built):
    manifest = Corpus.open(built[0]).manifest
    assert [(source.name, source.kind, source.language) for source in manifest.sources] == [
        ("prose", "text", "prose"), ("c", "code", "C"), ("python", "code", "Python"), ("code-other", "code", "Others"),
    ]  # fmt: skip
    assert sum(manifest.sources[3].split(split).documents for split in ("train", "heldout")) == 4
    assert len(manifest.sources[2].train.shards) > 1
    note = next(note for note in Ledger.load(built[0]).notes if note.startswith("code-other"))
    assert note.endswith("go, rust")


def test_ledger_accounts_for_every_document_and_token(built):
    ledger, manifest = Ledger.load(built[0]), Corpus.open(built[0]).manifest
    ledger.balance()
    assert {reason: row.documents for reason, row in ledger.reasons("duplicate").items()} == {
        IDENTICAL: 2, SAME_BUT_FOR_DETAILS: 1,
    }  # fmt: skip
    assert {reason: row.documents for reason, row in ledger.reasons("skipped").items()} == {"not UTF-8": 1}
    for split in ("train", "heldout"):
        rows = ledger.rows(split)
        for source in manifest.sources:
            own = [row for row in rows if row.group == source.name]
            info = source.split(split)
            assert sum(row.tokens for row in own) == info.tokens
            assert sum(row.documents for row in own) == info.documents
            assert sum(row.bytes for row in own) == info.bytes
    ledger.add("read", source="mine", num_bytes=3)
    with pytest.raises(DataError, match=r"'mine': 1 documents .3 bytes. are unaccounted"):
        ledger.balance()


def test_the_stream_of_a_built_corpus_is_in_its_vocabulary(built):
    corpus = Corpus.open(built[0])
    plan = quotas_for(corpus.manifest, 60, sequence_length=64, shuffle_block_tokens=64)
    batch = TokenStream(corpus, plan.mixture(), 64, 0, shuffle_block_tokens=64).read(range(60))
    assert batch.input_ids.max() < corpus.manifest.vocab_size == corpus.tokenizer.vocab_size
    text = corpus.manifest.source_index("prose")
    assert (batch.source_ids == text).sum() == 30
    # Literal sentinels in the C files are text: only ends of documents have their id.
    ends = sum(len(documents_of(corpus, i, "train")) for i in range(4))
    assert ends == sum(source.train.documents for source in corpus.manifest.sources)


def test_built_twice_is_the_same_corpus(raw, built, tmp_path):
    first = Corpus.open(built[0]).manifest
    second = build_corpus(config_of(raw, tmp_path / "again"), lambda line: None)
    assert first.manifest_hash == second.manifest_hash
    assert (tmp_path / "again" / "ledger.json").read_bytes() == (built[0] / "ledger.json").read_bytes()
    other = build_corpus(config_of(raw, tmp_path / "seed", seed=1), lambda line: None)
    assert other.manifest_hash != first.manifest_hash


def test_a_corpus_is_reused_never_replaced_unasked(raw, built, tmp_path):
    shutil.copytree(built[0], tmp_path / "corpus")
    lines = []
    build_corpus(config_of(raw, tmp_path / "corpus"), lines.append)
    assert len(lines) == 1
    assert "already built from the same configuration" in lines[0]
    with pytest.raises(DataError, match="holds a corpus with other vocab_size; name another folder, or overwrite=true"):
        build_corpus(config_of(raw, tmp_path / "corpus", vocab_size=300), lines.append)
    manifest = build_corpus(config_of(raw, tmp_path / "corpus", vocab_size=300, overwrite=True), lines.append)
    assert Corpus.open(tmp_path / "corpus").manifest.manifest_hash == manifest.manifest_hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="exists and is no corpus"):
        build_corpus(config_of(raw, tmp_path / "mine"), lines.append)


def test_an_interrupted_build_leaves_no_corpus_and_continues(raw, built, tmp_path, monkeypatch):
    config = config_of(raw, tmp_path / "corpus")

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_source", stopped)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(config, lambda line: None)
    assert not (tmp_path / "corpus").exists()
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(collect, "read_documents", stopped)  # the sources must not be read again
        manifest = build_corpus(config, lines.append)
    assert "read: the documents of the interrupted build are used" in lines
    assert manifest.manifest_hash == Corpus.open(built[0]).manifest.manifest_hash
    assert (tmp_path / "corpus" / "ledger.json").read_bytes() == (built[0] / "ledger.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == [
        "ledger.json", "manifest.json", "shards", "tokenizer.json",
    ]  # fmt: skip


def test_two_builds_of_one_corpus_do_not_mix(raw, tmp_path):
    folder = tmp_path / "corpus.building"
    folder.mkdir()
    held = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="another build is running"):
        build_corpus(config_of(raw, tmp_path / "corpus"), lambda line: None)
    os.close(held)


def test_the_cap_of_a_side_is_counted(raw, tmp_path):
    build_corpus(config_of(raw, tmp_path / "corpus", max_bytes_per_side=15_000), lambda line: None)
    ledger = Ledger.load(tmp_path / "corpus")
    ledger.balance()
    assert ledger.total("capped").documents > 0
    assert "prose: stopped at max_bytes_per_side" in str(ledger.notes) or ledger.total("capped", "prose").documents > 0
    kept = sum(row.bytes for stage in ("train", "heldout") for row in ledger.rows(stage, "mine"))
    assert 15_000 <= kept < 16_500


def test_an_imported_tokenizer_is_kept(raw, built, tmp_path):
    config = config_of(raw, tmp_path / "corpus", tokenizer_path=str(built[0] / "tokenizer.json"), vocab_size=9999)
    manifest = build_corpus(config, lambda line: None)
    assert manifest.tokenizer_hash == Corpus.open(built[0]).manifest.tokenizer_hash
    assert manifest.vocab_size == 400


def test_another_tokenizer_missing_or_damaged_files(built, tmp_path):
    folder = tmp_path / "corpus"
    with pytest.raises(DataError, match=r"no corpus there .* run `loopcoder data build`"):
        Corpus.open(folder)
    shutil.copytree(built[0], folder)
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer), indent=3), encoding="utf-8")
    Corpus.open(folder)  # only its white space differs
    (folder / "tokenizer.json").write_text(tokenizer.replace("<think>", "<thunk>"), encoding="utf-8")
    with pytest.raises(DataError, match="not the tokenizer that made the shards"):
        Corpus.open(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="tokenizer cannot be read"):
        Corpus.open(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"vocab_size": 400', '"vocab_size": 401', "does not match its hash"),
        ('"version": 1', '"version": 3', "version 3; this program reads"),
        ("{", "[", "not JSON"),
    ],
)
def test_a_damaged_manifest(built, tmp_path, old, new, message):
    shutil.copytree(built[0], tmp_path / "corpus")
    path = tmp_path / "corpus" / "manifest.json"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    with pytest.raises(DataError, match=message):
        Corpus.open(tmp_path / "corpus")


@pytest.mark.parametrize("file", ["/etc/passwd", "../x", "shards/../../x", "a\\b", ""])
def test_paths_stay_inside_the_corpus(built, tmp_path, file):
    manifest = Corpus.open(built[0]).manifest
    source = dataclasses.replace(manifest.sources[0])
    source.train = dataclasses.replace(source.train, shards=[dataclasses.replace(source.train.shards[0], file=file)])
    dataclasses.replace(manifest, sources=[source]).save(tmp_path)
    with pytest.raises(DataError, match="must be relative and stay inside"):
        Manifest.load(tmp_path)


def test_near_copies_are_on_the_same_side(raw, tmp_path):
    seen = SeenDocuments()
    assert seen.add("Copyright 2019 x  1.2.3\n")[1] is None
    assert seen.add("Copyright 2019 x  1.2.3\n")[1] == IDENTICAL
    assert seen.add("copyright 2024 X 1.10\n\n")[1] == SAME_BUT_FOR_DETAILS
    assert seen.add("copyright 2024 Y 1.10\n\n")[1] is None


def test_held_out_documents_that_overlap_training_go_back(raw, tmp_path):
    generator = random.Random(5)
    folder = tmp_path / "code"
    folder.mkdir()
    template = sentence(generator, 80)
    for number in range(40):  # two halves: templated files that share 80 words, and files of their own
        (folder / f"template{number}.py").write_text(f"{template} {sentence(generator, 4)}")
        (folder / f"own{number}.py").write_text(sentence(generator, 80))
    sources = [SourceConfig(name="mine", kind=SourceKind.folder, path=str(folder))]
    options = {"sources": sources, "min_heldout_documents": 8, "min_source_tokens": 0}
    heldout = {}
    for overlap in (0.3, 1.0):
        corpus_dir = tmp_path / f"corpus{overlap}"
        build_corpus(config_of(raw, corpus_dir, max_heldout_overlap=overlap, **options), lambda line: None)
        corpus = Corpus.open(corpus_dir)
        heldout[overlap] = all_documents(corpus, "heldout")
        assert len(all_documents(corpus, "train")) + len(heldout[overlap]) == 80
    assert any(text.startswith(template) for text in heldout[1.0])
    assert not any(text.startswith(template) for text in heldout[0.3])
    assert [text for text in heldout[1.0] if not text.startswith(template)] == heldout[0.3] != []


def test_a_document_that_went_back_counts_as_training(tmp_path):
    generator = random.Random(2)
    half = {name: sentence(generator, 80) for name in "abcd"}
    texts = [half["a"], f"{half['a']} {half['b']}", f"{half['b']} {half['c']}", half["d"]]  # only the first is training

    class Group:
        returned: ClassVar[list[int]] = []

        def read(self, folder):
            for number, text in enumerate(texts):
                yield StagedDocument(text=text, name="", source="", language="C", split_hash=number)

        def is_heldout(self, split_hash):
            return split_hash > 0

    return_overlapping([Group()], tmp_path, 0.3, Ledger(), lambda line: None)
    assert Group.returned == [1, 2]


def test_window_hashes_find_the_same_text_at_another_place():
    generator = random.Random(1)
    shared = sentence(generator, 200)
    first = set(window_hashes(sentence(generator, 50) + " " + shared).tolist())
    second = set(window_hashes(shared + " " + sentence(generator, 30)).tolist())
    alone = set(window_hashes(shared).tolist())
    assert len(alone) > 50
    assert len(alone & first & second) > 0.9 * len(alone)
    assert not alone & set(window_hashes(sentence(generator, 200)).tolist())
    assert window_hashes("x").size == window_hashes("").size == 1


def test_the_split_takes_the_fraction_the_floor_and_at_most_a_tenth():
    def heldout(count, size, fraction, floor):
        rule = HeldoutRule(fraction, floor)
        hashes = [split_hash(number, seed=0) for number in range(count)]
        for value in hashes:
            rule.add(value, size)
        bound = rule.threshold()
        return sum(value < bound for value in hashes)

    assert heldout(1000, 50, 0.02, 0) == 20
    assert heldout(1000, 50, 0.02, 35) == 35
    assert heldout(100, 50, 0.02, 35) == 10
    assert heldout(9, 50, 0.02, 35) == 0
    assert heldout(1000, 50, 0.0, 0) == 0


def test_describe_has_top_ten_and_others(built):
    text = describe(Corpus.open(built[0]), shuffle_block_tokens=64)
    for piece in ("python", "code-other", "100.0", "not UTF-8", IDENTICAL, "note: "):
        assert piece in text
    corpus = Corpus.open(built[0])
    extra = [dataclasses.replace(corpus.manifest.sources[1], name=f"l{number}") for number in range(12)]
    corpus.manifest = dataclasses.replace(corpus.manifest, sources=[*corpus.manifest.sources, *extra])
    lines = describe(corpus).splitlines()
    others = next(line for line in lines if line.startswith("Others"))
    assert "5 sources" in others


def test_a_text_source_cannot_be_named_like_a_language(raw, tmp_path):
    config = config_of(raw, tmp_path / "corpus")
    config.sources[1].name = "python"
    with pytest.raises(DataError, match="named like the language 'python'; rename it"):
        build_corpus(config, lambda line: None)


def test_config_is_an_omegaconf_structured_config():
    schema = OmegaConf.structured(BuildConfig)
    sources = [{"name": "a", "kind": "folder", "path": "x", "max_bytes": 5}]
    config = OmegaConf.to_object(OmegaConf.merge(schema, {"corpus_dir": "c", "sources": sources}))
    assert config.sources[0] == SourceConfig(name="a", kind=SourceKind.folder, path="x", max_bytes=5)


def test_the_default_configuration_is_valid():
    from importlib import resources

    path = resources.files("configs").joinpath("data_build/default.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BuildConfig), OmegaConf.load(str(path))))
    assert [source.kind for source in config.sources] == [SourceKind.environment_code, SourceKind.environment_text]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus_dir": ""}, "corpus_dir: is empty"),
        ({"vocab_size": 100}, "vocab_size=100: must be >= 280"),
        ({"heldout_fraction": 0.5}, "between 0 and 0.1"),
        ({"max_heldout_overlap": 2}, "between 0 and 1"),
        ({"shard_tokens": 0}, "shard_tokens=0: must be >= 1"),
        ({"max_bytes_per_side": 0}, "max_bytes_per_side=0: must be >= 1"),
        ({"sources": [SourceConfig(name="a", kind=SourceKind.environment_code)] * 2}, "'a' appears twice"),
    ],
)
def test_options(options, message):
    with pytest.raises(DataError, match=message):
        BuildConfig(**{"corpus_dir": "c", **options})


def test_no_sources(tmp_path):
    with pytest.raises(DataError, match="sources: none given"):
        build_corpus(BuildConfig(corpus_dir=str(tmp_path / "c")))

"""From documents to a corpus: nothing lost, nothing twice, the same every time."""

import dataclasses
import fcntl
import json
import os
import random
import shutil

import numpy as np
import pytest
from omegaconf import OmegaConf

from data_pipeline.errors import DataError
from data_pipeline.ledger import Ledger
from data_pipeline.manifest import Corpus, Manifest
from data_pipeline.prepare.build import build_corpus
from data_pipeline.prepare.build_config import BuildConfig
from data_pipeline.prepare.dedup import IDENTICAL, SAME_BUT_FOR_DETAILS, normalise
from data_pipeline.prepare.documents import SourceConfig, SourceKind
from data_pipeline.prepare.executor_config import ExecutorConfig, ExecutorKind
from data_pipeline.prepare.overlap import mark, overlapping, window_hashes
from data_pipeline.prepare.phases.exact import duplicates
from data_pipeline.prepare.phases.read import CONTENT_HASHES
from data_pipeline.prepare.split import lowest, split_hash, threshold
from data_pipeline.quotas import quotas_for
from data_pipeline.show import describe
from data_pipeline.stream import TokenStream
from tests.unit.data_pipeline.prepare.building import all_documents, config_of, documents_of, sentence


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "corpus"
    lines = []
    build_corpus(config_of(raw, folder), lines.append)
    return folder, lines


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
    assert sum(split.documents for split in (manifest.sources[3].train, manifest.sources[3].heldout)) == 4
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
            info = {"train": source.train, "heldout": source.heldout}[split]
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
        patch.setattr("data_pipeline.prepare.phases.tokenise.SplitWriter.add", stopped)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(config, lambda line: None)
    assert not (tmp_path / "corpus").exists()
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.prepare.sources.read_documents", stopped)  # must not be read again
        manifest = build_corpus(config, lines.append)
    assert "an interrupted build from the same options is continued" in lines[0]
    assert manifest.manifest_hash == Corpus.open(built[0]).manifest.manifest_hash
    assert (tmp_path / "corpus" / "ledger.json").read_bytes() == (built[0] / "ledger.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_other_options_do_not_continue_an_interrupted_build(raw, built, tmp_path):
    folder = tmp_path / "corpus.building"
    (folder / "documents").mkdir(parents=True)
    (folder / "documents" / "00000.json").write_text("of another build")
    (folder / "plan.json").write_text("{}")
    manifest = build_corpus(config_of(raw, tmp_path / "corpus"), lambda line: None)
    assert manifest.manifest_hash == Corpus.open(built[0]).manifest.manifest_hash


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


def test_duplicates_keep_the_lowest_number_and_tell_identical_ones():
    rows = np.array(
        [(9, 1, 5, 5, 0), (9, 1, 7, 7, 1), (9, 1, 5, 5, 2), (9, 2, 5, 5, 3), (3, 1, 1, 1, 4), (9, 1, 7, 7, 5)],
        dtype=CONTENT_HASHES,
    )
    dropped, identical = duplicates(rows, np.array([30, 11, 10, 2, 5, 40]))
    assert dropped.tolist() == [11, 30, 40]  # 10 is kept
    assert identical.tolist() == [False, True, True]


def test_copies_across_sources_and_tasks_are_dropped(raw, tmp_path):
    """The copy in the source that stands first stays, whichever tasks have read the two."""
    copies = tmp_path / "copied code"
    shutil.copytree(raw / "code", copies)
    for order in (["mine", "copies"], ["copies", "mine"]):
        paths = {"mine": raw / "code", "copies": copies}
        sources = [SourceConfig(name=name, kind=SourceKind.folder, path=str(paths[name])) for name in order]
        corpus_dir = tmp_path / f"{order[0]} first"
        build_corpus(config_of(raw, corpus_dir, sources=sources), lambda line: None)
        ledger = Ledger.load(corpus_dir)
        assert ledger.total("duplicate", order[1]).documents == ledger.total("read", order[1]).documents == 167
        assert ledger.total("duplicate", order[0]).documents == 3


def test_held_out_documents_that_overlap_training_go_back(raw, tmp_path):
    generator = random.Random(5)
    folder = tmp_path / "code"
    folder.mkdir()
    template = sentence(generator, 80)
    for number in range(40):  # two halves: templated files that share 80 words, and files of their own
        (folder / f"template{number}.py").write_text(f"{template} {sentence(generator, 4)}")
        (folder / f"own{number}.py").write_text(sentence(generator, 80))
    sources = [SourceConfig(name="mine", kind=SourceKind.folder, path=str(folder))]
    options = {"sources": sources, "min_heldout_documents": 8, "min_source_bytes": 0}
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


def test_a_document_that_went_back_counts_as_training():
    generator = random.Random(2)
    half = {name: sentence(generator, 80) for name in "abcd"}
    texts = [f"{half['a']} {half['b']}", f"{half['b']} {half['c']}", half["d"]]
    windows = [window_hashes(text) for text in texts]
    known = np.unique(np.concatenate(windows))
    marked = np.zeros(len(known), dtype=bool)
    mark(known, marked, window_hashes(half["a"]))  # the only training document
    assert overlapping(known, marked, windows, 0.3) == [0, 1]
    assert overlapping(known, marked, windows, 0.9) == []


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


def heldout_of(counts: list[int], size: int, fraction: float, floor: int) -> tuple[int, bool]:
    """Documents held out of tasks with so many documents of `size` bytes each; whether that is less than asked for."""
    total = sum(counts)
    hashes = np.array([split_hash(number, seed=0) for number in range(total)], dtype=np.uint64)
    parts = np.split(hashes, np.cumsum(counts)[:-1])
    lows = [lowest(part, np.full(len(part), size), fraction, floor) for part in parts]
    bound, is_less = threshold(lows, total, total * size, fraction, floor)
    return int((hashes < np.uint64(bound)).sum()), is_less


def test_the_split_takes_the_fraction_the_floor_and_at_most_a_tenth():
    assert heldout_of([1000], 50, 0.02, 0) == (20, False)
    assert heldout_of([1000], 50, 0.02, 35) == (35, False)
    assert heldout_of([100], 50, 0.02, 35) == (10, False)
    assert heldout_of([9], 50, 0.02, 35) == (0, False)
    assert heldout_of([1000], 50, 0.0, 0) == (0, False)


@pytest.mark.parametrize("counts", [[1000], [500, 500], [1, 999], [250, 250, 499, 1]])
def test_the_split_does_not_depend_on_the_tasks(counts):
    assert heldout_of(counts, 50, 0.02, 10) == (20, False)


def test_a_repository_is_held_out_whole_or_not_at_all():
    """Forty repositories of five files: the tenth of 200 files is four of them."""
    hashes = np.repeat(np.array([split_hash(number, seed=0) for number in range(40)], dtype=np.uint64), 5)
    low = lowest(hashes, np.full(200, 10), 0.02, 18)
    bound, _ = threshold([low], 200, 2000, 0.02, 18)
    assert int((hashes < np.uint64(bound)).sum()) == 20
    bound, _ = threshold([low], 200, 2000, 0.02, 21)  # the fifth would be more than a tenth
    assert int((hashes < np.uint64(bound)).sum()) == 20


def test_a_split_that_falls_short_says_so():
    """One task keeps a giant and few others: what it did not keep cannot be held out."""
    hashes = np.arange(1000, dtype=np.uint64)
    giant = lowest(hashes, np.where(hashes == 0, 10**6, 1), 0.01, 0)
    small = lowest(hashes + np.uint64(1), np.full(1000, 50), 0.01, 0)
    assert threshold([giant, small], 2000, 10**6 + 51_000, 0.5, 0)[1] is False  # a giant is more than a tenth
    even = lowest(hashes, np.full(1000, 1), 0.01, 0)
    bound, is_less = threshold([even, small], 2000, 51_000, 0.09, 0)
    assert is_less and bound == even.bound == 30


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


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_that_gives_nothing_is_an_error_with_reasons(raw, tmp_path, workers):
    empty = tmp_path / "empty"
    empty.mkdir()
    for name, content in {"a.py": b"\0", "b.py": b"\xff", "c.py": b"\xff\xfe"}.items():
        (empty / name).write_bytes(content)
    config = config_of(raw, tmp_path / "corpus", executor=ExecutorConfig(workers=workers))
    config.sources.append(SourceConfig(name="empty", kind=SourceKind.folder, path=str(empty)))
    with pytest.raises(DataError, match=r"source 'empty' .*: no documents \(2 not UTF-8, 1 binary"):
        build_corpus(config, lambda line: None)
    config.sources[-1].path = str(tmp_path / "none")
    with pytest.raises(DataError, match="none does not exist; correct its path"):
        build_corpus(config, lambda line: None)
    assert not (tmp_path / "corpus").exists()


def test_workers_do_not_change_the_corpus(raw, built, tmp_path):
    manifest = build_corpus(config_of(raw, tmp_path / "corpus", executor=ExecutorConfig(workers=2)), lambda line: None)
    assert manifest.manifest_hash == Corpus.open(built[0]).manifest.manifest_hash


def test_tasks_change_the_order_only(raw, built, tmp_path):
    build_corpus(config_of(raw, tmp_path / "corpus", tasks=7), lambda line: None)
    corpora = [Corpus.open(folder) for folder in (built[0], tmp_path / "corpus")]
    for split in ("train", "heldout"):
        # Of copies that differ in details another one may be the first.
        first, second = (sorted(map(normalise, all_documents(corpus, split))) for corpus in corpora)
        assert first == second != []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "executor.workers=0: must be >= 1"),
        ({"kind": ExecutorKind.slurm}, "executor.partition: is empty"),
        ({"partition": "cpu"}, "executor.partition=cpu: is an option of executor.kind=slurm"),
        ({"ray_address": "x:1"}, "executor.ray_address=x:1: is an option of executor.kind=ray"),
        ({"kind": ExecutorKind.slurm, "partition": "cpu", "sbatch_options": {"--x": "y"}}, "no long option of sbatch"),
    ],
)
def test_options_of_an_executor(options, message):
    with pytest.raises(DataError, match=message):
        ExecutorConfig(**options)

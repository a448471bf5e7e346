"""What becomes of documents on their way to tokens: fill-in-the-middle, prepared variants, packed repositories."""

import json
import random
import subprocess

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.ledger import Ledger
from data_pipeline.manifest import Corpus
from data_pipeline.prepare.build import build_corpus
from data_pipeline.prepare.documents import Packing, SourceConfig, SourceKind
from data_pipeline.prepare.fim import FimConfig
from data_pipeline.prepare.repositories import RepositoryConfig
from data_pipeline.quotas import quotas_for
from data_pipeline.stream import TokenStream
from tests.unit.data_pipeline.prepare.building import all_documents, config_of, sentence

PREFIX, MIDDLE, SUFFIX, REPOSITORY, FILE = (
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|repo_name|>",
    "<|file_sep|>",
)


def reassembled(text: str) -> str:
    """A document as it was before fill-in-the-middle."""
    if not text.startswith(PREFIX):
        return text
    before, after = text[len(PREFIX) :].split(SUFFIX, 1)
    suffix, rest = after.split(MIDDLE, 1)
    return f"{before}{rest}{suffix}"  # SPM has its prefix in the rest


def texts_of(corpus: Corpus, name: str, variant: int) -> list[str]:
    tokens = corpus.tokens(corpus.manifest.source_index(name), "train", variant)
    text = corpus.tokenizer.decode(tokens.read(0, tokens.num_tokens).tolist())
    return text.split("<|endoftext|>")[:-1]


@pytest.fixture(scope="module")
def plain(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "corpus"
    build_corpus(config_of(raw, folder), lambda line: None)
    return Corpus.open(folder)


@pytest.fixture(scope="module")
def with_fim(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fim") / "corpus"
    build_corpus(config_of(raw, folder, fim=FimConfig(rate=0.5), variants=3), lambda line: None)
    return Corpus.open(folder)


def test_every_variant_has_every_document_and_differs(plain, with_fim):
    source = with_fim.manifest.sources[with_fim.manifest.source_index("python")]
    assert len(source.variants) == 2
    variants = [texts_of(with_fim, "python", variant) for variant in range(3)]
    expected = texts_of(plain, "python", 0)
    for texts in variants:
        assert [reassembled(text) for text in texts] == expected
        assert 0.3 < np.mean([text.startswith(PREFIX) for text in texts]) < 0.7
    assert variants[0] != variants[1] != variants[2]
    assert source.train.tokens == with_fim.tokens(with_fim.manifest.source_index("python")).num_tokens


def test_text_and_held_out_documents_stay_as_they_are(plain, with_fim):
    assert all_documents(plain, "heldout") == all_documents(with_fim, "heldout")
    prose = with_fim.manifest.sources[with_fim.manifest.source_index("prose")]
    assert prose.variants == [] and texts_of(with_fim, "prose", 0) == texts_of(plain, "prose", 0)


def test_sentinels_are_counted(with_fim):
    ledger = Ledger.load(with_fim.directory)
    ledger.balance()
    texts = [text for text in all_documents(with_fim, "train") if text.startswith(PREFIX)]
    assert ledger.total("fim").documents == len(texts)
    assert ledger.total("fim").tokens == 3 * len(texts)
    assert set(ledger.reasons("fim")) == {"psm", "spm"}


def test_epochs_of_the_stream_read_the_variants(with_fim):
    plan = quotas_for(
        with_fim.manifest, 1200, sequence_length=64, shuffle_block_tokens=64, text_share=0.1, max_repeats=50
    )
    stream = TokenStream(with_fim, plan.mixture(), 64, 0, shuffle_block_tokens=64)
    batch = stream.read(range(1200))
    assert int(batch.input_ids.max()) < with_fim.manifest.vocab_size


def test_variants_without_fill_in_the_middle_are_refused(raw, tmp_path):
    with pytest.raises(DataError, match="variants=2: they differ by fill-in-the-middle"):
        config_of(raw, tmp_path / "corpus", variants=2)


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Twelve small repositories in which `main.py` needs `helper.py`."""
    root, generator = tmp_path_factory.mktemp("repositories"), random.Random(3)
    for number in range(12):
        folder = root / f"owner/repo{number}"
        folder.mkdir(parents=True)
        (folder / "main.py").write_text(f"import helper\nhelper.run({number})  # {sentence(generator, 9)}\n")
        (folder / "helper.py").write_text(f"def run(number):\n    return {number}  # {sentence(generator, 9)}\n")
        (folder / "README.md").write_text(f"# Repository {number}\n{sentence(generator, 9)}\n")
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-qm", "first")
    return root


def packed_config(raw, corpus_dir, source, **options):
    prose = SourceConfig(name="prose", kind=SourceKind.jsonl, path=str(raw / "prose.jsonl"))
    return config_of(raw, corpus_dir, sources=[source, prose], min_source_bytes=0, min_heldout_documents=1, **options)


def check_packed(corpus: Corpus) -> None:
    documents = texts_of(corpus, "repos", 0)
    for text in documents:
        name, *files = text.split(FILE)
        number = (
            name.removeprefix(f"{REPOSITORY}owner/repo") if "owner/" in name else name.removeprefix(f"{REPOSITORY}repo")
        )
        paths = [file.split("\n")[0] for file in files]
        assert paths == ["README.md", "helper.py", "main.py"]
        assert f"helper.run({number})" in text and f"Repository {number}\n" in text
    held_out = corpus.manifest.sources[corpus.manifest.source_index("repos")].heldout.documents
    assert len(documents) + held_out == 12 and held_out <= 1
    Ledger.load(corpus.directory).balance()


def test_git_repositories_are_packed_in_an_order_that_helps(raw, repositories, tmp_path):
    source = SourceConfig(name="repos", kind=SourceKind.git, path=str(repositories), packing=Packing.repository)
    build_corpus(packed_config(raw, tmp_path / "corpus", source), lambda line: None)
    corpus = Corpus.open(tmp_path / "corpus")
    check_packed(corpus)
    source = corpus.manifest.sources[corpus.manifest.source_index("repos")]
    ledger = Ledger.load(corpus.directory)
    assert ledger.total("train", "repos").documents + ledger.total("heldout", "repos").documents == 36
    assert ledger.total("train", "repos").tokens == source.train.tokens


def test_folders_and_rows_can_be_repositories(raw, repositories, tmp_path):
    folder = SourceConfig(
        name="repos", kind=SourceKind.folder, path=str(repositories / "owner"), packing=Packing.repository
    )
    build_corpus(packed_config(raw, tmp_path / "folders", folder), lambda line: None)
    check_packed(Corpus.open(tmp_path / "folders"))
    rows = tmp_path / "rows"
    rows.mkdir()
    for number, repository in enumerate(sorted((repositories / "owner").iterdir())):
        lines = [
            {"text": path.read_text(), "path": path.name, "repo": f"owner/{repository.name}"}
            for path in sorted(repository.glob("*.*"))
            if path.is_file()
        ]
        (rows / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"name_field": "path", "repository_field": "repo", "packing": Packing.repository}
    source = SourceConfig(name="repos", kind=SourceKind.jsonl, path=str(rows), **fields)
    build_corpus(packed_config(raw, tmp_path / "packed", source), lambda line: None)
    check_packed(Corpus.open(tmp_path / "packed"))
    with pytest.raises(DataError, match="has 12 files for tasks=13, packing=repository keeps"):
        build_corpus(packed_config(raw, tmp_path / "other", source, tasks=13), lambda line: None)


def test_a_file_larger_than_a_packed_document_may_be_is_told(raw, repositories, tmp_path):
    source = SourceConfig(name="repos", kind=SourceKind.git, path=str(repositories), packing=Packing.repository)
    options = {"repositories": RepositoryConfig(max_tokens=20)}
    build_corpus(packed_config(raw, tmp_path / "corpus", source, **options), lambda line: None)
    ledger = Ledger.load(tmp_path / "corpus")
    ledger.balance()
    corpus = Corpus.open(tmp_path / "corpus")
    assert any("files larger than repositories.max_tokens=20" in note for note in ledger.notes)
    info = corpus.manifest.sources[corpus.manifest.source_index("repos")].train
    assert info.documents > 12 and ledger.total("train", "repos").tokens == info.tokens


def test_repositories_need_a_source_that_has_them(raw):
    with pytest.raises(DataError, match="packing=repository needs kind git or folder, or rows with repository_field"):
        SourceConfig(name="a", kind=SourceKind.jsonl, path="x", packing=Packing.repository)


def test_no_repository_is_an_error(raw, tmp_path):
    (tmp_path / "empty").mkdir()
    source = SourceConfig(name="repos", kind=SourceKind.git, path=str(tmp_path / "empty"))
    with pytest.raises(DataError, match="no git repository in"):
        build_corpus(packed_config(raw, tmp_path / "corpus", source), lambda line: None)

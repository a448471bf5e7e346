"""The 103 languages, their shares to the last digit, and every way to write such a file wrongly."""

from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import languages
from data_pipeline.errors import DataError
from data_pipeline.language_manifest import DEFAULT_MANIFEST, load_manifest
from data_pipeline.manifest import Manifest, SourceInfo, SplitInfo
from data_pipeline.quotas import quotas_for

# The paper, in % of the code tokens.
PAPER = {
    "Java": 10.3, "Python": 10.1, "JavaScript": 9.4, "Markdown": 8.7, "TypeScript": 8.3, "C": 5.2, "C++": 5.0,
    "PHP": 4.7, "C#": 4.0, "HTML": 3.7,
}  # fmt: skip
MINE = {
    "name": "mine", "shares": {"Python": 40, "c++": 20}, "others_share": 40, "others": ["Rust", "golang"],
    "counted_as": {"Cuda": "C++"}, "max_repeats": {"rust": 2},
}  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """The manifest of some fields, of MINE with changes, or of the text of a file."""

    def load(text=None, **changes):
        path = tmp_path / "mine.yaml"
        fields = {name: value for name, value in {**MINE, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump(fields) if text is None else text)
        return load_manifest(str(path))

    return load


def corpus_manifest(sizes):
    """A corpus of one text source and code sources of `sizes` tokens."""
    kinds = {"prose": ("text", 10**12), **{name: ("code", size) for name, size in sizes.items()}}
    sources = [
        SourceInfo(name=name, kind=kind, language=name, train=SplitInfo(tokens=size))
        for name, (kind, size) in kinds.items()
    ]
    return Manifest(
        sources=sources, tokenizer_hash="0" * 64, tokenizer_file_sha256="0" * 64, vocab_size=100, end_of_document_id=0,
        dtype="uint16", block_tokens=16,
    )  # fmt: skip


def slugs(names):
    return [languages.slug(name) for name in names]


def test_the_default_is_the_papers():
    manifest = load_manifest(DEFAULT_MANIFEST)
    assert len(manifest.languages) == len(set(slugs(manifest.languages))) == 103
    assert {name: float(share) for name, share in manifest.shares.items()} == PAPER
    assert manifest.languages[:10] == tuple(PAPER)
    assert manifest.others_share == Fraction("30.5")
    assert all(languages.side_of(name) == "code" for name in manifest.languages)
    assert manifest.admits("Markdown")
    assert not manifest.admits("Text")
    assert not manifest.admits("COBOL")


def test_the_papers_shares_are_renormalised_and_it_is_said():
    manifest = load_manifest()
    found = manifest.shares_of(slugs(manifest.languages))
    assert found.shares == {
        languages.slug(name): Fraction(str(share)) / Fraction("99.9") for name, share in PAPER.items()
    }
    assert sum(found.shares.values()) + found.others == 1
    assert found.others == Fraction(305, 999)
    assert found.notes == ("code: shares add up to 99.9%, renormalised to 100%",)


def test_dialects_go_to_the_language_they_are_counted_as(load):
    manifest = load()
    assert manifest.languages == ("Python", "C++", "Rust", "Go")
    assert [manifest.source_of(name) for name in ("Cuda", "C++", "Go", "Java")] == ["cpp", "cpp", "go", None]
    assert manifest.admits("Cuda")
    assert not manifest.admits("Java")
    assert load_manifest().source_of("TSX") == "typescript"
    for dialect, language in load_manifest().counted_as.items():
        assert load_manifest().source_of(dialect) == languages.slug(language)


def test_absent_languages_leave_their_share_to_all_others(load):
    manifest = load()
    found = manifest.shares_of(["python", "rust", "code-other"])
    assert found.shares == {"python": Fraction(40, 80)}
    assert found.others == Fraction(40, 80)
    assert len(found.notes) == 2
    assert "C++: 20%" in found.notes[0]
    assert "80%" in found.notes[1]
    alone = manifest.shares_of(["python", "cpp"])
    assert (alone.shares, alone.others) == ({"python": Fraction(2, 3), "cpp": Fraction(1, 3)}, 0)
    assert "no other language" in alone.notes[0]
    assert manifest.shares_of(["code-other"]).others == 1
    assert load(shares=None, others_share=1, counted_as=None).shares_of(["rust"]).shares == {}


def test_a_corpus_without_code_has_no_shares(load):
    with pytest.raises(DataError, match="no code source"):
        load().shares_of([])
    with pytest.raises(DataError, match="others_share=0, but rust"):
        load(others=None, others_share=None, max_repeats=None).shares_of(["rust"])


ALL = [*slugs(load_manifest().languages), "code-other"]


@given(st.sets(st.sampled_from(ALL), min_size=1))
def test_shares_add_up_to_one_and_keep_their_proportions(present):
    found = load_manifest().shares_of(sorted(present))
    assert sum(found.shares.values()) + found.others == 1
    paper = {languages.slug(name): Fraction(str(share)) for name, share in PAPER.items()}
    assert set(found.shares) == present & set(paper)
    assert len({share / paper[source] for source, share in found.shares.items()}) <= 1
    assert (found.others > 0) == bool(present - set(paper))


@pytest.mark.parametrize("as_floats", [False, True])
def test_quotas_take_the_shares_as_they_are(as_floats):
    """Of 999,000 code sequences each of the ten gets its percentage of 999,000 / 99.9; the others divide 305,000."""
    sizes = {**{languages.slug(name): 10**12 for name in PAPER}, "rust": 10**12, "go": 3 * 10**12}
    shares = load_manifest().shares_of(sizes).shares
    given_shares = {name: float(share) if as_floats else share for name, share in shares.items()}
    plan = quotas_for(corpus_manifest(sizes), 1_998_000, sequence_length=4096, shares=given_shares)
    quotas = dict(zip(plan.names, plan.quotas, strict=True))
    expected = {languages.slug(name): round(share * 10_000) for name, share in PAPER.items()}
    assert quotas == {"prose": 999_000, **expected, "rust": 76_250, "go": 228_750}


def test_caps_of_single_languages(load):
    manifest = load()
    assert manifest.max_repeats == {"Rust": 2.0}
    assert manifest.repeats_of(["python", "rust"]) == {"rust": 2.0}
    assert manifest.repeats_of(["python"]) == {}


BAD = {
    "unknown language": ({"others": ["Rust", "Gp"]}, "others='Gp': not a known language"),
    "unknown among shares": ({"shares": {"Pythn": 1}}, "nearest: 'Python'"),
    "twice in others": ({"others": ["Rust", "Rust"]}, "Rust is there twice"),
    "in both": ({"others": ["Rust", "Python"]}, "Python is there twice"),
    "twice by an alias": ({"shares": {"Python": 40, "python3": 1}}, "is there twice"),
    "share of zero": ({"shares": {"Python": 0}}, "shares.Python=0: must be a finite number > 0"),
    "negative share": ({"shares": {"Python": -1}}, "must be a finite number > 0"),
    "share that is no number": ({"shares": {"Python": "much"}}, "must be a finite number > 0"),
    "share that is true": ({"shares": {"Python": True}}, "must be a finite number > 0"),
    "share that is infinite": ({"shares": {"Python": float("inf")}}, "must be a finite number > 0"),
    "others without a share": ({"others_share": None}, "others_share=0: must be a finite number > 0"),
    "a share for no others": ({"others": None}, "others lists no language"),
    "nothing": ({"shares": None, "others": None, "others_share": None}, "no languages"),
    "prose": ({"others": ["Rust", "Text"]}, "Text is prose"),
    "unknown field": ({"other": ["Rust"]}, "unknown field 'other'; nearest: 'others'"),
    "no name": ({"name": None}, "no name"),
    "others of the wrong type": ({"others": {"Rust": 1}}, "others must be a list"),
    "shares of the wrong type": ({"shares": ["Rust"]}, "shares must be a mapping"),
    "dialect that is listed": ({"counted_as": {"Rust": "C++"}}, "from an unlisted language to a listed one"),
    "dialect of what is not": ({"counted_as": {"Cuda": "Java"}}, "from an unlisted language to a listed one"),
    "dialect that is prose": ({"counted_as": {"Text": "C++"}}, "Text is prose"),
    "cap for a stranger": ({"max_repeats": {"Java": 2}}, "not one of the manifest's languages"),
    "cap of zero": ({"max_repeats": {"Rust": 0}}, "must be a finite number > 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_file_is_an_error_of_one_line(name, load):
    changes, message = BAD[name]
    with pytest.raises(DataError) as error:
        load(**changes)
    assert message in str(error.value)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nname: y\n", "a key is there twice"),
        ("name: x\nshares: {Python: 1, Python: 2}\n", "a key is there twice"),
        ("name: [x\n", "not valid YAML"),
        ("- Python\n", "must be a mapping"),
        ("", "must be a mapping"),
    ],
)
def test_a_file_that_is_no_mapping(text, message, load):
    with pytest.raises(DataError, match=message) as error:
        load(text)
    assert "\n" not in str(error.value)


def test_files_that_do_not_exist(tmp_path):
    with pytest.raises(DataError, match="no such manifest; nearest: 'loopcoder-103'"):
        load_manifest("loopcoder-13")
    with pytest.raises(DataError, match="no such file"):
        load_manifest(str(tmp_path / "x.yaml"))

"""Near duplicates: the same numbers as datatrove, the same clusters as a search through all pairs."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.prepare import near_dedup
from data_pipeline.prepare.near_dedup import MinHasher, NearDedupConfig, candidate_edges, clusters, merge_edges
from data_pipeline.prepare.shingles import shingle_hashes, split_unspaced, word_bytes

_TEXTS = [
    "def area(width, height):\n    return width * height  # 3.5 times 2\n",
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "Überraschung: naïve Ångström café — ﬁn №5 ①\u00a0\u2003x\u0301 y",
    "机器学习是人工智能的一个分支 with a little English, 日本語もある。",
    "Ελληνικά; \u1fef ΣΊΣΥΦΟΣ İstanbul ไทยไม่มีช่องว่าง",
    "{" * 30 + "a b c d e f g" * 3,
    "one two three",
    "",
    "\x00\x1c \x85 +-*/",
]


@pytest.fixture(scope="module")
def datatrove_step(tmp_path_factory):
    """datatrove's step with words at spaces; its own word tokenizers need spaCy or a download."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class AtSpaces(WordTokenizer):
        def word_tokenize(self, text):
            return text.split()

        sent_tokenize = span_tokenize = None

    config = MinhashConfig(norm_config=TextNormConfig(norm_numbers=False))
    return MinhashDedupSignature(str(tmp_path_factory.mktemp("signatures")), config, language=AtSpaces())


def random_texts(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    words = [f"w{number}" for number in range(500)]
    return [" ".join(generator.choices(words, k=generator.randrange(1, 400))) for _ in range(count)]


def test_signatures_are_datatroves(datatrove_step, monkeypatch):
    monkeypatch.setattr(near_dedup, "_BLOCK", 64)  # texts span blocks, and blocks hold several texts
    texts = _TEXTS + random_texts(40) + [" ".join(_TEXTS[:5]) * 20]
    ours = MinHasher(NearDedupConfig()).signatures(texts)
    compared = 0
    for text, row in zip(texts, ours, strict=True):
        shingles = datatrove_step.get_shingles(split_unspaced(text))
        if shingles.size:
            assert row.tolist() == list(itertools.chain(*datatrove_step.get_signature(shingles)))
            compared += 1
    assert compared >= 40


@pytest.mark.parametrize("value", [0, 1, 2**61 - 2, 2**61 - 1, 2**61 + 5, 2**62 - 2, 2**62 - 1, 2**64 - 9, 2**64 - 1])
def test_the_remainder_is_exact_at_multiples_of_the_prime(value, monkeypatch):
    hasher = MinHasher(NearDedupConfig(bands=1, rows=9, seed=3))
    multipliers, offsets = hasher._multipliers.tolist(), hasher._offsets.tolist()
    odd = next(number for number, multiplier in enumerate(multipliers) if multiplier % 2)
    shingle = (value - offsets[odd]) * pow(multipliers[odd], -1, 2**64) % 2**64  # whose multiple plus offset is `value`
    monkeypatch.setattr(MinHasher, "shingles", lambda self, text: np.array([shingle], dtype=np.uint64))
    expected = [(shingle * a + b) % 2**64 % (2**61 - 1) for a, b in zip(multipliers, offsets, strict=True)]
    assert expected[odd] == value % (2**61 - 1)
    assert hasher.signatures(["x"]).tolist() == [expected]


def test_characters_of_scripts_without_spaces_are_words():
    assert word_bytes("机器学习 in ไทย, カタ").decode().split() == [
        "机",
        "器",
        "学",
        "习",
        "in",
        "ไ",
        "ท",
        "ย",
        "カ",
        "タ",
    ]


@given(st.text(max_size=80))
@settings(max_examples=300)
def test_words_are_datatroves_simplified_text(text):
    from datatrove.utils.text import TextNormConfig, simplify_text

    simplified = simplify_text(split_unspaced(text), TextNormConfig(norm_numbers=False))
    try:
        expected = " ".join(simplified.split()).encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair; no document has one
    assert word_bytes(text) == expected


@given(st.lists(st.text(min_size=1, max_size=6), min_size=0, max_size=30), st.integers(1, 13))
def test_shingle_hashes_are_xxh64_of_joined_words(words, num_words):
    import xxhash

    words = word_bytes(" ".join(words)).split()
    expected = [
        xxhash.xxh64_intdigest(b" ".join(words[at : at + num_words])) for at in range(len(words) - num_words + 1)
    ]
    assert shingle_hashes(b" ".join(words), num_words).tolist() == expected


def test_short_texts_match_only_themselves():
    texts = ["a b", "a  b\n", "A b", "a b c", "+-", "++", "", "!", "a b c d e", "a b  c d e"]
    bands = MinHasher(NearDedupConfig()).band_hashes(texts)
    same = {(i, j) for i, j in itertools.combinations(range(len(texts)), 2) if (bands[i] == bands[j]).any()}
    assert same == {(0, 1), (8, 9)}


def test_tables_of_other_numbers_are_no_duplicates_but_a_changed_year_is_one():
    generator = random.Random(0)
    tables = [" ".join(f"{generator.random():.3f}," for _ in range(200)) for _ in range(2)]
    licence = random_texts(1, seed=5)[0] + " ".join(random_texts(6, seed=6))
    bands = MinHasher(NearDedupConfig()).band_hashes(
        [*tables, "Copyright 2019 " + licence, "copyright (c) 2024 " + licence]
    )
    assert not (bands[0] == bands[1]).any()
    assert (bands[2] == bands[3]).any()


def test_band_hashes_do_not_depend_on_the_batch():
    texts, hasher = random_texts(30), MinHasher(NearDedupConfig(bands=5, rows=3))
    together = hasher.band_hashes(texts)
    assert together.dtype == np.uint64
    assert together.shape == (30, 5)
    assert (together == np.concatenate([hasher.band_hashes([text]) for text in texts])).all()
    assert hasher.band_hashes([]).shape == (0, 5)
    other = MinHasher(NearDedupConfig(bands=5, rows=3, seed=2)).band_hashes(texts)
    assert not (together == other).any()


def planted(similarity_words: int, copies: int, seed: int) -> list[str]:
    """A text of 400 words and copies in which a run of `similarity_words` words in the middle is replaced."""
    generator = random.Random(seed)
    base = [f"v{generator.randrange(10**6)}" for _ in range(400)]
    texts = [" ".join(base)]
    for _ in range(copies):
        new = [f"n{generator.randrange(10**6)}" for _ in range(similarity_words)]
        texts.append(" ".join(base[:150] + new + base[150 + similarity_words :]))
    return texts


def jaccard(left: str, right: str) -> float:
    a, b = (set(shingle_hashes(word_bytes(text), 5).tolist()) for text in (left, right))
    return len(a & b) / len(a | b)


def test_found_as_often_as_the_s_curve_says():
    config = NearDedupConfig()
    assert config.probability(0.8) == pytest.approx(0.924, abs=1e-3)
    assert config.threshold == pytest.approx(0.719, abs=1e-3)
    hasher = MinHasher(config)
    for replaced in (30, 65, 110):
        pairs = [planted(replaced, 1, seed) for seed in range(300)]
        similarity = jaccard(*pairs[0])
        bands = hasher.band_hashes([text for pair in pairs for text in pair])
        found = (bands[::2] == bands[1::2]).any(axis=1).mean()
        expected = config.probability(similarity)
        # Four standard deviations of a mean of 300; 0.01 for permutations that are only pairwise independent.
        assert abs(found - expected) < 4 * (expected * (1 - expected) / 300) ** 0.5 + 0.01, similarity


def clusters_of_pairs(pairs, count: int) -> list[int]:
    """Root of every document, by repeated relabelling: slow and plain."""
    root = list(range(count))
    changed = True
    while changed:
        changed = False
        for left, right in pairs:
            low = min(root[left], root[right])
            if root[left] != low or root[right] != low:
                root[left] = root[right] = low
                changed = True
    return root


def roots_of(members, roots, count: int) -> list[int]:
    result = list(range(count))
    for member, root in zip(members.tolist(), roots.tolist(), strict=True):
        result[member] = root
    return result


def test_planted_clusters_are_found_and_datasketch_agrees():
    from datasketch import MinHash, MinHashLSH

    texts = [text for seed in range(12) for text in planted(8, 3, 1000 + seed)] + random_texts(40, seed=9)
    hasher = MinHasher(NearDedupConfig())
    bands = hasher.band_hashes(texts)
    forest = merge_edges(candidate_edges(bands[:, band]) for band in range(bands.shape[1]))
    ours = roots_of(*clusters(forest), len(texts))
    assert ours == [i - i % 4 if i < 48 else i for i in range(len(texts))]

    index, pairs = MinHashLSH(num_perm=112, params=(14, 8)), []
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=112)
        sketch.update_batch([int(shingle).to_bytes(8, "little") for shingle in hasher.shingles(text)])
        pairs += [(other, number) for other in index.query(sketch)]
        index.insert(number, sketch)
    assert clusters_of_pairs(pairs, len(texts)) == ours


def test_edges_of_a_band_chain_equal_hashes():
    band = np.array([7, 3, 7, 9, 3, 7], dtype=np.uint64)
    assert candidate_edges(band).tolist() == [[0, 2], [1, 4], [2, 5]]
    assert candidate_edges(np.array([], dtype=np.uint64)).shape == (0, 2)


_EDGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60)


@given(_EDGES, st.randoms(use_true_random=False), st.integers(1, 5))
def test_clusters_have_the_lowest_root_in_any_order_of_edges_and_parts(pairs, generator, num_parts):
    expected = clusters_of_pairs(pairs, 41)
    shuffled = [pair if generator.random() < 0.5 else pair[::-1] for pair in pairs]
    generator.shuffle(shuffled)
    edges = np.array(shuffled, dtype=np.int64).reshape(-1, 2)
    members, roots = clusters(edges)
    assert members.tolist() == sorted({number for pair in pairs for number in pair})
    assert roots_of(members, roots, 41) == expected
    forest = merge_edges(edges[part::num_parts] for part in range(num_parts))
    assert forest.dtype == np.int64
    assert forest[:, 1].tolist() == [number for number in range(41) if expected[number] != number]
    assert forest[:, 0].tolist() == [root for number, root in enumerate(expected) if root != number]


@given(st.lists(st.integers(0, 8), max_size=40))
def test_a_band_links_exactly_the_documents_of_equal_hash(hashes):
    band = np.array(hashes, dtype=np.uint64) + np.uint64(2**63)
    pairs = [(i, j) for i, j in itertools.combinations(range(len(hashes)), 2) if hashes[i] == hashes[j]]
    assert roots_of(*clusters(candidate_edges(band)), len(hashes)) == clusters_of_pairs(pairs, len(hashes))


@pytest.mark.parametrize("option", [{"bands": 0}, {"rows": 1.5}, {"ngram_words": True}, {"seed": -1}])
def test_impossible_options_are_one_line(option):
    name = next(iter(option))
    with pytest.raises(DataError, match=rf"^near_dedup.{name}=.*must be a whole number from \d+ to \d+$"):
        NearDedupConfig(**option)

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from loopcoder_train.config import UserError
from loopcoder_train.evaluation.baselines import BigramModel, training_sample, unigram_entropy
from tests.unit.evaluation.corpus import make_corpus

V = 7


def batches(seed: int, count: int) -> list[SimpleNamespace]:
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        ids = generator.integers(0, V - 1, (2, 9))  # the last id never occurs
        labels = np.where(generator.random((2, 9)) < 0.2, -100, np.roll(ids, -1, axis=1))
        made.append(SimpleNamespace(input_ids=ids, labels=labels))
    return made


def pairs(made) -> list[tuple[int, int]]:
    return [
        (int(x), int(y))
        for batch in made
        for x, y in zip(batch.input_ids.ravel(), batch.labels.ravel(), strict=True)
        if y != -100
    ]


def test_unigram_entropy_against_counting():
    made = batches(0, 4)
    counts = Counter(y for _, y in pairs(made))
    total = sum(counts.values())
    expected = -sum(n / total * math.log(n / total) for n in counts.values())
    assert unigram_entropy(made) == pytest.approx(expected, rel=1e-12)


def test_unigram_entropy_of_equal_shares():
    labels = np.array([[0, 1, 2, 3, -100]])
    assert unigram_entropy([SimpleNamespace(input_ids=labels, labels=labels)]) == pytest.approx(math.log(4))


def test_bigram_against_counting():
    train, test = batches(1, 6), batches(2, 3)
    train[0].input_ids[0, 0], train[0].labels[0, 0] = V - 2, V - 3
    seen = pairs(train)
    both, contexts, labels = Counter(seen), Counter(x for x, _ in seen), Counter(y for _, y in seen)

    def probability(x, y):
        unigram = (labels[y] + 1) / (len(seen) + V)
        types = len({b for a, b in both if a == x})
        return unigram if types == 0 else (both[x, y] + types * unigram) / (contexts[x] + types)

    expected = -sum(math.log(probability(x, y)) for x, y in pairs(test)) / len(pairs(test))
    model = BigramModel(train, V)
    assert model.loss(test) == pytest.approx(expected, rel=1e-12)
    unseen = np.array([V - 1])
    assert model.probabilities(unseen, unseen)[0] == pytest.approx(1 / (len(seen) + V))


@pytest.mark.parametrize("context", range(V))
def test_bigram_probabilities_sum_to_one(context):
    model = BigramModel(batches(1, 6), V)
    assert model.probabilities(np.full(V, context), np.arange(V)).sum() == pytest.approx(1.0, rel=1e-12)


def test_nothing_to_measure():
    empty = [SimpleNamespace(input_ids=np.zeros((1, 2), int), labels=np.full((1, 2), -100))]
    with pytest.raises(UserError):
        unigram_entropy(empty)
    with pytest.raises(UserError):
        BigramModel(empty, V)
    with pytest.raises(UserError):
        BigramModel(batches(0, 1), V).loss(empty)


def test_training_sample_has_the_runs_proportion_and_no_label_across_documents(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    sample = list(training_sample(corpus, 400, text_share=0.25))
    sizes = [row.labels.size + 1 for row in sample]
    assert sum(sizes) == pytest.approx(400, abs=4)
    assert sizes[2] == pytest.approx(100, abs=1)  # docs, the only text
    eod = corpus.manifest.end_of_document_id
    for row in sample:
        assert (row.labels[row.input_ids == eod] == -100).all()
        inner = row.input_ids[:, :-1] != eod
        assert (row.labels[:, :-1][inner] == row.input_ids[:, 1:][inner]).all()

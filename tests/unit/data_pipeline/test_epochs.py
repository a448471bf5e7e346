"""Prepared variants: epoch e of a source reads variant e mod V, each block of it once, in closed form."""

import dataclasses
import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.epochs import SourceEpochs
from data_pipeline.errors import DataError
from data_pipeline.manifest import MANIFEST_FILE, Corpus, Manifest, SourceInfo, SplitInfo
from data_pipeline.mixture import Mixture
from data_pipeline.quotas import quotas_for
from data_pipeline.stream import TokenStream


def source(sizes: list[int], name: str = "c") -> SourceInfo:
    train, *variants = [SplitInfo(tokens=size) for size in sizes]
    return SourceInfo(name=name, kind="code", language=name, train=train, variants=variants)


def spelled_out(sizes: list[int], block: int, num_tokens: int) -> list[tuple[int, int]]:
    """(epoch, variant) of each token, by counting epoch after epoch."""
    places, epoch = [], 0
    while len(places) < num_tokens:
        variant = epoch % len(sizes)
        places += [(epoch, variant)] * (sizes[variant] // block * block)
        epoch += 1
    return places[:num_tokens]


many_sizes = st.lists(st.integers(0, 60), min_size=1, max_size=5)


@given(many_sizes, st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_an_epoch_shows_every_block_of_its_variant_once(sizes, block, seed):
    epochs = SourceEpochs(source(sizes), block, seed)
    assert epochs.tail_tokens == sum(size % block for size in sizes)
    if not epochs.cycle_tokens:
        assert all(size < block for size in sizes)
        return
    count = 2 * epochs.cycle_tokens
    places = [epochs.place(offset) for offset in range(count)]
    assert [(place.epoch, place.variant) for place in places] == spelled_out(sizes, block, count)
    for epoch in range(2 * len(sizes)):
        tokens = [place.token for place in places if place.epoch == epoch]
        assert sorted(tokens) == list(range(sizes[epoch % len(sizes)] // block * block))
    assert all(place.left == block - place.token % block for place in places)


@given(many_sizes, st.integers(1, 12), st.fractions(0, 12))
@settings(max_examples=100, deadline=None)
def test_epochs_and_tokens_are_each_others_inverse(sizes, block, epochs):
    counted = SourceEpochs(source(sizes), block)
    tokens = counted.tokens_of(epochs)
    whole = sum(sizes[e % len(sizes)] // block * block for e in range(int(epochs)))
    begun = sizes[int(epochs) % len(sizes)] // block * block
    assert tokens == int(whole + (epochs - int(epochs)) * begun)
    if min(sizes) >= block:
        assert counted.epochs_of(tokens) - 1e-9 <= epochs <= counted.epochs_of(tokens + 1) + 1e-9
        assert counted.epochs_of(whole) == int(epochs)


def test_sizes_of_eighteen_trillion_tokens():
    epochs = SourceEpochs(source([9 * 10**12, 9 * 10**12 + 5000, 2**62]), 2048)
    place = epochs.place(epochs.cycle_tokens * 5 + 9 * 10**12)
    assert (place.epoch, place.variant) == (16, 1)
    assert epochs.epochs_of(epochs.tokens_of(Fraction(31, 2))) == pytest.approx(15.5)


def test_the_stream_reads_the_variants_in_turn(make_corpus):
    corpus = make_corpus(
        {"t": ("text", [9] * 20), "c": ("code", [7] * 20)}, variants={"c": [[7] * 23, [3] * 20]}, folder="variants"
    )
    block = 16
    mixture = Mixture(corpus.manifest.names, corpus.manifest.kinds, [0, 200])
    stream = TokenStream(corpus, mixture, block, 3, shuffle_block_tokens=block)
    offset = 0
    for epoch, variant in enumerate([0, 1, 2, 0, 1]):
        ids = corpus.tokens(1, "train", variant)
        blocks = ids.read(0, ids.num_tokens // block * block).reshape(-1, block)
        rows = stream.read(range(offset, offset + len(blocks))).input_ids
        assert sorted(rows.tolist()) == sorted(blocks.tolist()), epoch
        offset += len(blocks)


def test_caps_and_repeats_count_epochs_over_the_variants():
    sizes = [100, 120, 80]
    manifest = Manifest(
        sources=[source([10_000], "t"), source(sizes), source([10_000], "d")], tokenizer_hash="0" * 64,
        tokenizer_file_sha256="0" * 64, vocab_size=100, end_of_document_id=0, dtype="uint16", block_tokens=16,
    )  # fmt: skip
    manifest.sources[0].kind = "text"
    plan = quotas_for(
        manifest, 200, sequence_length=10, shuffle_block_tokens=10, max_repeats=4.5, shares={"c": 0.9, "d": 0.1}
    )
    assert plan.quotas[1] == (100 + 120 + 80 + 100 + 60) // 10
    assert plan.repeats[1] == pytest.approx(4.5)


def test_a_manifest_without_variants_is_the_one_it_was(make_corpus, tmp_path):
    corpus = make_corpus({"t": ("text", [9] * 20), "c": ("code", [7] * 20)})
    content = json.loads((tmp_path / "corpus" / MANIFEST_FILE).read_text())
    assert content["version"] == 1
    assert all("variants" not in entry for entry in content["sources"])
    assert Manifest.load(tmp_path / "corpus").manifest_hash == content["manifest_hash"] == corpus.manifest.manifest_hash


def test_a_manifest_with_variants_round_trips_and_checks_them(make_corpus, tmp_path):
    corpus = make_corpus({"c": ("code", [7] * 20)}, variants={"c": [[7] * 23]})
    again = Corpus.open(tmp_path / "corpus").manifest
    assert again == corpus.manifest
    assert again.manifest_hash == corpus.manifest.manifest_hash
    assert json.loads((tmp_path / "corpus" / MANIFEST_FILE).read_text())["version"] == 2
    source = again.sources[0]
    worse = dataclasses.replace(source, variants=[dataclasses.replace(source.variants[0], tokens=1)])
    dataclasses.replace(again, sources=[worse]).save(tmp_path / "corpus")
    with pytest.raises(DataError, match="do not add up"):
        Manifest.load(tmp_path / "corpus")


def test_another_variant_is_another_stream(make_corpus):
    ids = [
        make_corpus({"c": ("code", [7] * 20)}, variants={"c": [[7] * n]}, folder=f"v{n}").manifest.manifest_hash
        for n in (20, 21)
    ]
    assert len(set(ids)) == 2

"""The proof of tests/benchmarks/stream_18t.py at fewer prefixes, without its clock."""

import json
import tracemalloc

import pytest

from tests.benchmarks.stream_18t import BATCH, TOTAL_TOKENS, code_shares, open_stream, worst_deviations, write_manifest


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_manifest(folder)
    return open_stream(folder)


def test_shares_hold_at_ten_thousand_prefixes(stream):
    mixture = stream.segments[0].stream.mixture
    figures = worst_deviations(mixture, 10_000)
    assert 0.5 < figures.worst_source <= 1.7
    assert 0.4 < figures.worst_side <= 0.5
    assert len(mixture.names) == 104 and mixture.total * 4096 > 0.999999 * TOTAL_TOKENS
    shares = code_shares()
    for name, quota in zip(mixture.names[1:], mixture.quotas[1:], strict=True):
        assert quota == pytest.approx(mixture.total / 2 * shares[name] / sum(shares.values()), abs=1)


def test_starting_takes_little_memory_and_the_state_is_small(tmp_path):
    write_manifest(tmp_path)
    tracemalloc.start()
    stream = open_stream(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert len(json.dumps(stream.state(4_000_000))) < 1024


def test_what_any_language_consumed_needs_no_logs(stream):
    batch = 4_291_533
    consumed = stream.consumed_tokens(batch)
    assert sum(consumed.values()) == stream.tokens(batch) == batch * BATCH * 4096
    assert consumed["web"] * 2 == stream.tokens(batch)
    assert stream.count("python", batch) == consumed["python"]

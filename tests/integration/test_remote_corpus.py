"""A run whose corpus lies behind a URL, with damaged blocks, is the run of the same corpus on a disk."""

import json
import shutil

import pytest

from data_pipeline.shards import ShardLayout
from data_pipeline.substitutes import SUBSTITUTES_FILE
from tests.integration.conftest import BLOCK_TOKENS, losses, pretrain
from tests.unit.data_pipeline import faulty_server as faults
from tests.unit.data_pipeline.faulty_server import serving

ITEMSIZE = 2  # the corpus' vocabulary fits 16 bits
OPTIONS = ["engine=plain", "parallel.world_size=1", "data.on_bad_block=substitute"]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, corpus):
    """A copy of the corpus with a flipped bit in every second training block: even a short run meets some."""
    folder = tmp_path_factory.mktemp("remote") / "corpus"
    shutil.copytree(corpus, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for source in manifest["sources"]:
        for shard in source["train"]["shards"]:
            layout = ShardLayout(shard["num_tokens"], ITEMSIZE, BLOCK_TOKENS)
            content = bytearray((folder / shard["file"]).read_bytes())
            assert len(content) == layout.num_bytes
            for block in range(layout.num_blocks):
                if block % 2 == 0:
                    content[layout.body(block, block + 1)[0]] ^= 8
            (folder / shard["file"]).write_bytes(content)
    return folder


def test_a_url_and_a_disk_train_the_same_run_and_write_the_same_ledger(tmp_path, damaged):
    outcome = pretrain(tmp_path / "disk", damaged, *OPTIONS)
    assert outcome.code == 0, outcome.stderr
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    with serving(damaged.parent) as server:
        server.fault = lambda request: faults.status(503) if request.earlier == 0 and request.offset == 0 else None
        outcome = pretrain(tmp_path / "url", f"{server.url}/corpus", *OPTIONS, cache)
        assert outcome.code == 0, outcome.stderr
        assert losses(tmp_path / "url") == losses(tmp_path / "disk")
        ledgers = [(tmp_path / name / SUBSTITUTES_FILE).read_text() for name in ("disk", "url")]
        assert ledgers[0] and sorted(ledgers[0].splitlines()) == sorted(ledgers[1].splitlines())

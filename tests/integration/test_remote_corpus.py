"""A run whose corpus lies behind a URL, with damaged blocks, is the run of the same corpus on a disk."""

import json
import shutil

import pytest

from data_pipeline.shards import HEADER_BYTES
from data_pipeline.substitutes import SUBSTITUTES_FILE
from tests.integration.conftest import losses, pretrain
from tests.unit.data_pipeline import faulty_server as faults
from tests.unit.data_pipeline.faulty_server import serving

OPTIONS = ["engine=plain", "parallel.world_size=1", "data.on_bad_block=substitute"]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, corpus):
    """A copy of the corpus with one flipped byte in the first block of every training shard."""
    folder = tmp_path_factory.mktemp("remote") / "corpus"
    shutil.copytree(corpus, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for source in manifest["sources"]:
        for shard in source["train"]["shards"]:
            with (folder / shard["file"]).open("r+b") as file:
                file.seek(HEADER_BYTES + 4)
                byte = file.read(1)[0]
                file.seek(HEADER_BYTES + 4)
                file.write(bytes([byte ^ 8]))
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

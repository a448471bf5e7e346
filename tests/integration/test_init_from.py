"""`model.init_from` in real runs: from any layout into any layout, and only once."""

import dataclasses

import pytest

from loopcoder_train.config import Device, ParallelConfig
from loopcoder_train.evaluation.load import load_run
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from tests.integration.conftest import base_config, losses, run_in_turn, write_config

TP2 = ParallelConfig(tensor_parallel_size=2, sequence_parallel=True)
DP2 = ParallelConfig(world_size=2, distributed_optimizer=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus):
    """One loop for 8 steps in TP2; from its step 4 two loops in DP2 and in TP2; one of them stopped and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    base = base_config(folder, corpus, "training.precision=fp32", "training.num_steps=8")
    one_loop = dataclasses.replace(base.model, num_loops=1)
    two_loops = dataclasses.replace(base.model, init_from=f"{folder}/source@4")
    pause = dataclasses.replace(base.training, stop_after_step=4)
    paused = write_config(base, folder / "resumed", model=two_loops, parallel=DP2, training=pause)
    paused = paused.rename(folder / "paused.yaml")

    run_in_turn(
        2,
        write_config(base, folder / "source", model=one_loop, parallel=TP2),
        write_config(base, folder / "data parallel", model=two_loops, parallel=DP2),
        write_config(base, folder / "tensor parallel", model=two_loops, parallel=TP2),
        write_config(base, folder / "random", parallel=DP2),
        paused,
        f"remove:{folder}/source",
        write_config(base, folder / "resumed", model=two_loops, parallel=DP2),
    )
    return folder


def events(run_dir):
    return read_metrics(run_dir / METRICS_FILE, ["event"])


def test_it_starts_from_the_weights_in_every_layout(folder):
    data_parallel, tensor_parallel = losses(folder / "data parallel"), losses(folder / "tensor parallel")
    steps = range(1, 6)
    assert [data_parallel[step] for step in steps] == pytest.approx([tensor_parallel[s] for s in steps], abs=1e-5)
    assert data_parallel[1] < losses(folder / "random")[1] - 0.1, "four steps of training must show"
    origin = events(folder / "data parallel")[0]
    assert origin["event"] == "weights_from" and origin["checkpoint_step"] == 4
    assert origin["checkpoint"] == f"{folder}/source/checkpoints/step-00000004"
    assert "6 tensors of gates are new" in origin["message"]


def test_a_resumed_run_does_without_its_source(folder):
    assert not (folder / "source").exists()
    assert losses(folder / "resumed") == losses(folder / "data parallel")
    names = [(event["event"], event["step"]) for event in events(folder / "resumed")]
    assert names.count(("weights_from", 0)) == 1 and ("resumed", 4) in names
    assert load_run(str(folder / "resumed"), step=None, num_loops=None, device=Device.cpu).snapshot.training.step == 8

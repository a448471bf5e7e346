"""Process group without a launcher, log lines per rank, seeds."""

import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist

from loopcoder_train.runtime import determinism, distributed
from loopcoder_train.runtime.logging import setup_logging


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_launcher(alone):
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)
    distributed.init_process_group(torch.device("cpu"))
    try:
        tensor = torch.ones(2)
        dist.all_reduce(tensor)
        assert tensor.tolist() == [1, 1] and dist.get_backend() == "gloo"
    finally:
        distributed.destroy_process_group()
    assert not dist.is_initialized()
    distributed.destroy_process_group()


def test_rank_comes_from_the_launcher(alone, monkeypatch):
    launched = {
        "RANK": 3,
        "WORLD_SIZE": 4,
        "LOCAL_RANK": 1,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "x",
        "MASTER_PORT": 1,
    }
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    assert distributed.is_launched()
    assert (distributed.rank(), distributed.world_size()) == (3, 4)
    assert (distributed.local_rank(), distributed.local_world_size()) == (1, 2)


@pytest.fixture
def restored_logging():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    # A command that ran in this process before may have left warnings captured, by handlers that are gone.
    logging.captureWarnings(False)
    yield
    root.handlers[:], root.level = before
    logging.captureWarnings(False)


def speak():
    logging.getLogger("loopcoder_train.x").info("an event")
    logging.getLogger("some.package").info("chatter")
    logging.getLogger("some.package").warning("trouble")
    warnings.warn("this may be wrong", UserWarning, stacklevel=1)
    warnings.warn("Transformer Engine and Apex are not installed. Falling back", UserWarning, stacklevel=1)


def test_rank_0_logs_to_stdout_and_hides_only_known_warnings(restored_logging, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        setup_logging(0)
        speak()
    out, error = capsys.readouterr()
    assert error == ""
    for text, expected in (("an event", 1), ("chatter", 0), ("trouble", 1), ("may be wrong", 1), ("Apex", 0)):
        assert (text in out) == bool(expected), text


def test_other_ranks_log_warnings_to_stderr(restored_logging, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        setup_logging(2)
        speak()
    out, error = capsys.readouterr()
    assert out == "" and "an event" not in error
    assert "rank2 WARNING some.package: trouble" in error and "may be wrong" in error


def test_seeds():
    determinism.seed_everything(3)
    first = torch.rand(2)
    determinism.seed_everything(3)
    assert torch.equal(first, torch.rand(2))
    determinism.seed_everything(3, rank=1)
    assert not torch.equal(first, torch.rand(2))


def test_deterministic_algorithms_are_a_choice_for_cuda_only():
    program = (
        "import torch; from loopcoder_train.runtime.determinism import use_deterministic_algorithms as use; "
        "use(True, 'cpu'); a = torch.are_deterministic_algorithms_enabled(); "
        "use(True, 'cuda'); print(a, torch.are_deterministic_algorithms_enabled())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=True)
    assert result.stdout == "False True\n"

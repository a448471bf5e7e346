"""Snapshots of CUDA tensors go through pinned buffers. Needs a GPU.

pytest -m gpu tests/gpu
"""

import pytest
import torch

from loopcoder_train.checkpoint import take_snapshot
from loopcoder_train.checkpoint.snapshot import SnapshotBuffers
from loopcoder_train.model.state import TensorShard, whole

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_copies_are_complete_when_the_snapshot_returns_and_lie_in_pinned_memory():
    live, buffers = torch.zeros(4096, 4096, device="cuda"), SnapshotBuffers()
    for step in (1, 2, 3):
        live.fill_(step)
        part = TensorShard("part", (4096, 8192), (0, 4096), live.t())
        snapshot = take_snapshot(step, [whole("w", live), part], {}, None, buffers)
        live.zero_()  # queued behind the copies, and already at work on the device
        for copy in snapshot.tensors.values():
            assert copy.is_pinned() and copy.is_contiguous() and bool((copy == step).all())

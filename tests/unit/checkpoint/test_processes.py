"""Two real processes under gloo save and load together; one start, all cases."""

import json
import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from loopcoder_train.checkpoint import AsyncSaver, Ranks, SaveFailed, find_checkpoint, save_checkpoint
from loopcoder_train.checkpoint import save as save_module
from loopcoder_train.model.state import TensorShard, whole


def _save(run_dir, step, shards, rank):
    return save_checkpoint(
        run_dir, step, shards, {"step": step}, rank_state={"rank": rank}, keep_last=2, keep_every_steps=None
    )


def _row_shard(tensor, rank):
    return TensorShard("w", (4, 3), (2 * rank, 0), tensor[2 * rank : 2 * rank + 2])


def _cases(rank, run_dir):
    tensor = torch.arange(12.0).reshape(4, 3)
    outcomes = {}
    report = _save(run_dir, 1, [_row_shard(tensor, rank), whole("b", torch.ones(2), owner=rank == 1)], rank)
    outcomes["files"] = sorted(path.name for path in report.path.iterdir())
    found = find_checkpoint(run_dir)
    column = torch.zeros(4, 1)
    found.checkpoint.fill([TensorShard("w", (4, 3), (0, 1 + rank), column)])
    outcomes["column"] = column.flatten().tolist()
    outcomes["rank_state"] = found.checkpoint.rank_state(rank, 2)

    write = save_module.write_tensors
    if rank == 1:  # the disk is full for one rank only
        save_module.write_tensors = lambda path, tensors: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    try:
        _save(run_dir, 2, [_row_shard(tensor, rank)], rank)
    except SaveFailed as error:
        outcomes["failed"] = str(error)
    save_module.write_tensors = write

    try:
        _save(run_dir, 2, [whole("w", tensor)], rank)
    except AssertionError as error:
        outcomes["owned twice"] = str(error)

    _save(run_dir, 3, [_row_shard(tensor, rank)], rank)
    if rank == 1:
        file = run_dir / "checkpoints/step-00000003/tensors-00001-of-00002.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\7")
    dist.barrier()
    found = find_checkpoint(run_dir)
    outcomes["fell back to"], outcomes["rejected"] = found.checkpoint.step, found.rejected
    if rank == 0:
        outcomes["alone"] = find_checkpoint(run_dir, ranks=Ranks.alone()).checkpoint.step
    outcomes["in a thread"] = _save_in_a_thread(run_dir, tensor, rank)
    return outcomes


def _save_in_a_thread(run_dir, tensor, rank):
    """The main threads sum over the job's group while the saving threads talk over theirs, in another order."""
    write = save_module.write_tensors

    def slow_write(path, tensors):
        time.sleep(0.3 if rank == 1 else 0.0)
        return write(path, tensors)

    save_module.write_tensors = slow_write
    saver = AsyncSaver(run_dir, Ranks.for_a_thread(), keep_last=2, keep_every_steps=None)
    saver.start(5, [_row_shard(tensor, rank)], {"step": 5})
    sums_during_the_save, ended = 0, torch.zeros(1)
    while not ended:
        tensor += 1
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total == 2
        ended.fill_(saver.done())
        dist.all_reduce(ended, op=dist.ReduceOp.MIN)
        sums_during_the_save += 1
    saver.result()
    saved = find_checkpoint(run_dir).checkpoint
    return saved.step, saved.read_tensor("w").flatten().tolist(), sums_during_the_save


def _process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    (folder / f"{rank}.json").write_text(json.dumps(_cases(rank, folder / "run")))
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_processes(tmp_path):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_process, args=(tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    tensors = ["tensors-00000-of-00002.safetensors", "tensors-00001-of-00002.safetensors"]
    assert first["files"] == ["COMMIT", "index.json", "manifest.json", "state.json", *tensors]
    assert first["column"] == [1, 4, 7, 10] and second["column"] == [2, 5, 8, 11]
    assert first["rank_state"] == {"rank": 0} and second["rank_state"] == {"rank": 1}
    assert first["failed"] == second["failed"] and "rank 1: No space left on device" in first["failed"]
    assert first["owned twice"] == second["owned twice"] and "w: " in first["owned twice"]
    for outcomes in (first, second):
        assert outcomes["fell back to"] == 1 and len(outcomes["rejected"]) == 1
        assert "tensors-00001-of-00002.safetensors" in outcomes["rejected"][0]
    assert first["alone"] == 1
    for step, values, sums_during_the_save in (first["in a thread"], second["in a thread"]):
        assert step == 5 and values == list(range(12)) and sums_during_the_save > 10

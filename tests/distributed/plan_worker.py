"""Started by torchrun: counts memory and traffic of the cases of its world size; writes one JSON file.

torchrun --nproc-per-node 2 -m tests.distributed.plan_worker --output results.json
"""

import argparse
import gc
from dataclasses import asdict
from pathlib import Path

import torch
from torch import distributed

from loopcoder_train.config import RunConfig
from loopcoder_train.planning.memory import pass_memory, rest_memory, update_memory
from loopcoder_train.planning.rank import ranks_of
from loopcoder_train.planning.traffic import step_traffic
from tests.distributed.plan_cases import PlanCase, plan_cases, run_config
from tests.distributed.torchrun import work_through


def main() -> None:
    """One list of results, one per rank, for every case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="cases whose id contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    wanted = [c for c in plan_cases() if c.world_size == distributed.get_world_size() and arguments.only in c.id]
    import loopcoder_train.engines.megatron  # noqa: F401 - heavy; from now on the garbage collector leaves it alone

    gc.freeze()
    layouts = ("tensor", "pipeline", "context")  # process groups are rebuilt when one of them changes
    in_order = sorted(wanted, key=lambda case: [getattr(case, axis) for axis in layouts])
    work_through(in_order, on_every_rank, arguments.output)


def on_every_rank(case: PlanCase) -> list[dict | None]:
    """What each rank counted and planned."""
    gathered: list[dict | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, counted_and_planned(case))
    return gathered


def counted_and_planned(case: PlanCase) -> dict[str, dict[str, float]]:
    """Bytes by kind on this rank: counted on a real step, and planned."""
    from loopcoder_train.engines.megatron import MegatronEngine  # heavy

    config = run_config(case)
    engine = MegatronEngine(config, torch.device("cpu"))
    batches = [_batch(config, number) for number in range(case.micro_batches)]
    engine.train_step(batches, 1e-3)  # Adam's moments and Megatron's buffers are there from now on
    counted = _count(engine, batches)
    rank = ranks_of(config)[engine.mesh.stage_index]
    rest, passes, update, traffic = rest_memory(rank), pass_memory(rank), update_memory(rank), step_traffic(rank)
    at_rest = rest.weights + rest.gradients + rest.optimizer
    planned = {
        "weights": rest.weights,
        "gradients": rest.gradients,
        "optimizer": rest.optimizer,
        "passes": passes.total - at_rest,
        "update": update.workspace,
        "peak": max(passes.total, update.total),
        "sent": traffic.total,
    }
    return {"counted": counted, "planned": planned, "kinds": asdict(passes)}


def _count(engine, batches: list) -> dict[str, float]:
    """Bytes at rest by kind, what the passes and AdamW's step need beyond them, and what is sent."""
    from tests.distributed.peak_memory import PeakMemory, SentBytes

    gc.collect()
    mains = engine._state._mains
    weights = [parameter.data for parameter in engine.stage.parameters()]
    gradients = [buffer.grad_data for buffer in engine._ddp.buffers]
    states = [value for main in mains for value in engine._state._adam_state(main.tensor).values()]
    states += [main.tensor for main in mains]
    shared = {tensor.untyped_storage().data_ptr() for tensor in weights}
    optimizer = [tensor for tensor in states if tensor.untyped_storage().data_ptr() not in shared]
    rest = [*weights, *gradients, *optimizer]
    at_rest = _storage_bytes(rest)
    sent = SentBytes()
    with (passes := PeakMemory(rest)), sent:
        engine.forward_backward(batches)
    with (update := PeakMemory(rest)), sent:
        engine._optimizer.step()
    return {
        "weights": _storage_bytes(weights),
        "gradients": _storage_bytes(gradients),
        "optimizer": _storage_bytes(optimizer),
        "passes": passes.peak_bytes - at_rest,
        "update": update.peak_bytes - at_rest,
        "peak": max(passes.peak_bytes, update.peak_bytes),
        "sent": sent.total,
    }


def _storage_bytes(tensors: list[torch.Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _batch(config: RunConfig, number: int):
    from loopcoder_train.engines.engine import MicroBatch

    generator = torch.Generator().manual_seed(number)
    rows, length = config.training.micro_batch_size, config.data.sequence_length
    tokens = torch.randint(0, config.model.vocab_size, (rows, length + 1), generator=generator)
    documents = torch.zeros(rows, length, dtype=torch.int64)
    documents[:, length // 3 :] = 1
    return MicroBatch(tokens[:, :-1], tokens[:, 1:], documents, torch.zeros(rows, dtype=torch.int64))


if __name__ == "__main__":
    main()

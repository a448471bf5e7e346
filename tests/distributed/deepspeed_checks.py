"""The comparisons: each runs on every rank of a torchrun and returns plain numbers (the worst over ranks)."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, distributed

from loopcoder_train.checkpoint import find_checkpoint, save_checkpoint
from loopcoder_train.config import EngineKind, ParallelConfig
from loopcoder_train.engines.deepspeed import ZeroEngine
from loopcoder_train.engines.engine import Engine, MicroBatch, StepResult
from loopcoder_train.engines.fingerprint import combined, fingerprint
from loopcoder_train.engines.plain import PlainEngine
from loopcoder_train.model import IGNORE_INDEX
from loopcoder_train.model.state import FIRST_MOMENT_PREFIX, MODEL_PREFIX
from tests.distributed.deepspeed_cases import ZeroCase, without_mutation
from tests.distributed.deepspeed_mutations import mistake
from tests.distributed.deepspeed_refusals import infinite
from tests.distributed.deepspeed_setting import (
    CPU,
    own_share,
    plain_config,
    plain_engine,
    whole_batch,
    zero_config,
    zero_engine,
)
from tests.distributed.megatron_cases import layout_of
from tests.distributed.megatron_setting import (
    cut,
    gather_state,
    load,
    random_weight,
    randomize,
    weight_fingerprint_faults,
)

_RATES = (1e-3, 4e-4, 8e-4)
_RIGHT: dict[ZeroCase, dict[str, float]] = {}  # results without a mistake


def check(case: ZeroCase) -> dict[str, float]:
    """Run a case, with its mistake where it has one; errors by name."""
    function = {
        "parity": parity, "bf16": bf16, "state": state, "journey": journey, "memory": memory,
        "infinite": infinite,
    }[case.kind]  # fmt: skip
    right = without_mutation(case)
    if right not in _RIGHT:
        _RIGHT[right] = function(right)
    result = _RIGHT[right]
    if case.mutation:
        with mistake(case.mutation):
            wrong = function(case)
        result = {"right": max(result.values()), "wrong": max(map(_number, wrong.values()))}
    gathered = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, result)
    return {key: max(_number(other[key]) for other in gathered) for key in result}


def _number(value: float) -> float:
    return math.inf if math.isnan(value) else value


def parity(case: ZeroCase) -> dict[str, float]:
    """Three AdamW steps against the plain engine; then evaluation and telemetry.

    Before two of them this engine alone makes a step that is refused; then, once, one of a batch without labels.
    """
    plain, errors = plain_engine(case), {}
    with zero_engine(case) as engine:
        errors["weight_fingerprints"] = weight_fingerprint_faults(engine, plain)
        for step, rate in enumerate(_RATES):
            for labelled in (True, False)[: step + 1] if step < 2 else ():
                _worsen(errors, refused=_trace_of_a_refused_step(engine, case, labelled=labelled))
            result = engine.train_step(own_share(case, step), rate)
            reference = plain.train_step([whole_batch(case, step)], rate)
            _worsen(
                errors,
                tokens=abs(result.supervised_tokens - reference.supervised_tokens) + (not result.updated),
                loss=abs(result.loss / reference.loss - 1),
                grad_norm=abs(result.grad_norm / reference.grad_norm - 1),
            )
            if step == 0:  # a tenth of the clipped gradient
                errors["gradient"] = _state_error(engine, plain, FIRST_MOMENT_PREFIX)
                errors["weights"] = _state_error(engine, plain, MODEL_PREFIX)
                errors["fingerprints"] = _fingerprint_faults(engine, case, step)
        errors["weights_at_the_end"] = _state_error(engine, plain, MODEL_PREFIX)
        errors["moments"] = _state_error(engine, plain, "adam_")
        counted = engine.state_scalars() == plain.state_scalars() == {"optimizer_step": len(_RATES)}
        errors["steps_counted"] = float(not counted)  # a mistake may make a loss that is refused
        return errors | _evaluation_errors(engine, plain, case)


def _worsen(errors: dict[str, float], **found: float) -> None:
    for name, value in found.items():
        errors[name] = max(errors.get(name, 0.0), _number(value))


def _trace_of_a_refused_step(engine: ZeroEngine, case: ZeroCase, *, labelled: bool = True) -> float:
    """How far weights and moments are from where they were, or a gradient without labels from 0; 1: the loss misleads.

    Numbers and not assertions: a mistake that is felt here must not end the run.
    """
    before = [shard.data.clone() for shard in engine.state_shards(loading=False)]
    seen: list[StepResult] = []
    batches = own_share(case, step=7)
    if not labelled:
        batches = [replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX)) for batch in batches]
    result = engine.train_step(batches, 1e-2, accept=lambda given: bool(seen.append(given)))
    assert seen == [result] and not result.updated
    told = (result.supervised_tokens > 0) is math.isfinite(result.loss) is labelled
    after = [shard.data for shard in engine.state_shards(loading=False)]
    changes = [_number(float((a - b).abs().max())) for a, b in zip(after, before, strict=True)]
    return max(*changes, float(not told), 0.0 if labelled else _number(result.grad_norm))


def _fingerprint_faults(engine: ZeroEngine, case: ZeroCase, step: int) -> int:
    """Own gradients must come out twice alike and differ between ranks; replicas must be equal."""
    mine = own_share(case, step)
    first, second = (engine.own_gradient_fingerprint(mine) for _ in range(2))
    live = list(engine.replicated_tensors())
    weights = int(combined(fingerprint(tensor) for _, tensor in live)) if live else engine.replica_id
    told: list[tuple[int, int]] = [(0, 0)] * distributed.get_world_size()
    distributed.all_gather_object(told, (weights, first))
    copies = len(told) if case.stage == 3 else 1
    return (first != second) + (len({w for w, _ in told}) != copies) + (len({g for _, g in told}) != len(told))


def _state_error(engine: ZeroEngine, plain: PlainEngine, prefix: str) -> float:
    """Norm of the difference / norm of the reference, the worst of all whole tensors whose names begin so."""
    expected = {shard.name: shard.data for shard in plain.state_shards(loading=False)}
    tensors, owners = gather_state(engine)
    assert tensors.keys() == expected.keys()
    assert all(bool((count == 1).all()) for count in owners.values()), "an element is saved twice or not at all"
    return max(
        float((tensor - expected[name]).norm() / expected[name].norm())
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    )


def _evaluation_errors(engine: ZeroEngine, plain: PlainEngine, case: ZeroCase) -> dict[str, float]:
    """Per-loop losses, each rank's of its own rows, and telemetry."""
    batch, own = whole_batch(case, step=9), own_share(case, step=9)[0]
    ours, theirs = engine.token_losses(own), plain.token_losses(own)
    assert ours.shape == theirs.shape == (case.num_loops, *own.labels.shape) and ours.dtype == torch.float32
    values, reference = engine.loop_telemetry(batch), plain.loop_telemetry(batch)
    assert values.keys() == reference.keys()
    return {
        "token_losses": float((ours - theirs).norm() / theirs.norm()),
        "telemetry": max(abs(values[key] - reference[key]) / (1 + abs(reference[key])) for key in reference),
    }


def bf16(case: ZeroCase) -> dict[str, float]:
    """bf16 arithmetic on fp32 masters with fp32 sums: the plain engine on the same micro-batches does the same."""
    plain = plain_engine(case)
    with zero_engine(case) as engine:
        # now, as stage 3 has put its own linear product, rounded differently, into torch
        reference = plain.train_step(_micro_batches_of(whole_batch(case, 0), case.split[0]), 0.0)
        refused = _trace_of_a_refused_step(engine, case)
        masters = [shard for shard in engine.state_shards(loading=False) if shard.name.startswith(MODEL_PREFIX)]
        unrounded = [(s.data - cut(s, random_weight(s.name, s.global_shape))).abs().max() for s in masters]
        result = engine.train_step(own_share(case, 0), 0.0)
        return {
            "masters": float(max(unrounded)),
            "refused": refused,
            "loss": abs(result.loss / reference.loss - 1),
            "gradient": _state_error(engine, plain, FIRST_MOMENT_PREFIX),
        }


def _micro_batches_of(batch: MicroBatch, size: int) -> list[MicroBatch]:
    parts = zip(*(getattr(batch, name).split(size) for name in MicroBatch.__slots__), strict=True)
    return [MicroBatch(*part) for part in parts]


def state(case: ZeroCase) -> dict[str, float]:
    """Train, save, go on; load the saved state under `other_stage`, go on: the losses of both."""
    with zero_engine(case) as engine:
        _train(engine, case, range(3))
        (tensors, _), scalars = gather_state(engine), engine.state_scalars()
        expected = _train(engine, case, range(3, 6))
        after, _ = gather_state(engine)
    other_case = replace(case, stage=case.other_stage)
    other = ZeroEngine(zero_config(other_case), CPU)
    _train(other, other_case, range(8, 9))  # it must forget all of this
    other.token_losses(own_share(case, 9)[0])
    load(other.state_shards(loading=True), tensors)
    other.load_state_scalars(scalars)
    loaded, _ = gather_state(other)
    losses = _train(other, other_case, range(3, 6))
    after_other, _ = gather_state(other)
    other.close()
    return {
        "loaded": _largest_difference(tensors, loaded),
        "loss": max(abs(a - b) for a, b in zip(expected, losses, strict=True)),
        "tensors": _largest_difference(after, after_other),
    }


def _largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def _train(engine: Engine, case: ZeroCase, steps: range) -> list[float]:
    return [engine.train_step(own_share(case, step), 1e-3).loss for step in steps]


def journey(case: ZeroCase) -> dict[str, float]:
    """Two steps each on Megatron, under ZeRO and on the plain engine, through files, beside six plain ones."""
    from loopcoder_train.engines.megatron import MegatronEngine

    plain = plain_engine(case)
    expected = [plain.train_step([whole_batch(case, step)], 1e-3).loss for step in range(6)]
    config = plain_config(case)
    world_size, layout = layout_of(case.start)
    parallel = ParallelConfig(world_size=world_size, **layout)
    size = config.training.micro_batch_size // parallel.pipeline_parallel_size  # stages take turns on micro-batches
    training = replace(config.training, micro_batch_size=size)
    megatron = MegatronEngine(replace(config, engine=EngineKind.megatron, parallel=parallel, training=training), CPU)
    assert megatron.data_parallel_size == 1  # every rank reads the whole batch
    randomize(megatron)
    losses = [megatron.train_step(_micro_batches_of(whole_batch(case, n), size), 1e-3).loss for n in range(2)]
    with tempfile.TemporaryDirectory() as own_folder:
        folder = Path(_of_rank_0(own_folder))
        _save(folder, megatron, step=2)
        megatron.close()
        with zero_engine(case) as zero:
            _load(folder, zero)
            losses += [zero.train_step(own_share(case, step), 1e-3).loss for step in (2, 3)]
            _save(folder, zero, step=4)
        last = PlainEngine(config, CPU)
        _load(folder, last)
        distributed.barrier()
    losses += [last.train_step([whole_batch(case, step)], 1e-3).loss for step in (4, 5)]
    return {"loss": max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))}


def _of_rank_0(value: str) -> str:
    told = [value]
    distributed.broadcast_object_list(told, src=0)
    return told[0]


def _save(folder: Path, engine: Engine, step: int) -> None:
    shards = engine.state_shards(loading=False)
    save_checkpoint(folder, step, shards, engine.state_scalars(), keep_last=3, keep_every_steps=None)


def _load(folder: Path, engine: Engine) -> None:
    checkpoint = find_checkpoint(folder).checkpoint
    checkpoint.fill(engine.state_shards(loading=True))
    engine.load_state_scalars(checkpoint.state)


def memory(case: ZeroCase) -> dict[str, float]:
    """The largest share of the model that this rank has gathered at a time, in the third step."""
    config = zero_config(case)
    config.model = replace(config.model, num_layers=6)
    config.deepspeed = replace(config.deepspeed, gather_bucket_elements=2)
    engine = ZeroEngine(config, CPU)
    parameters = list(engine._names)
    total, most = sum(parameter.ds_numel for parameter in parameters), [0.0]
    offload = engine._engine.optimizer.parameter_offload

    def watched(fetch):
        def fetch_and_count(module) -> None:
            fetch(module)
            gathered = sum(p.ds_numel for p in parameters if p.ds_status is ZeroParamStatus.AVAILABLE)
            most[0] = max(most[0], gathered / total)

        return fetch_and_count

    for step in range(3):
        if step == 2:  # the order of modules was learnt
            offload.pre_sub_module_forward_function = watched(offload.pre_sub_module_forward_function)
            offload.pre_sub_module_backward_function = watched(offload.pre_sub_module_backward_function)
        engine.train_step(own_share(case, step), 1e-3)
    engine.close()
    return {"gathered": most[0]}

"""The comparisons: each runs on every rank of a torchrun and returns plain numbers (the worst over ranks)."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, distributed

from loopcoder_train.config import ModelConfig
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.fingerprint import combined, fingerprint
from loopcoder_train.engines.megatron import MegatronEngine, setup
from loopcoder_train.engines.megatron.loops import loop_outputs
from loopcoder_train.engines.megatron.pipeline import Pass
from loopcoder_train.engines.plain import PlainEngine
from loopcoder_train.model import IGNORE_INDEX, PLT
from loopcoder_train.model.loss import count_supervised, token_losses
from loopcoder_train.model.state import MODEL_PREFIX, TensorShard
from tests.distributed.kept_memory import KeptMemory
from tests.distributed.megatron_cases import AFTER_A_STEP_TOLERANCE, Case, without_mutation
from tests.distributed.megatron_mutations import mistake
from tests.distributed.megatron_setting import (
    cut,
    gather_state,
    load,
    micro_batches,
    random_weight,
    randomize,
    run_config,
    weight_fingerprint_faults,
)
from tests.distributed.pipeline_schedule import idle_share, live_pairs, peak_live_pairs

setup.GRAD_BUCKET_SIZE = 3000  # several buckets even for a tiny model, so that overlapped reductions are several
_CPU = torch.device("cpu")


def check(case: Case) -> dict[str, float]:
    """Run a case; errors by name."""
    result = _CHECKS[case.kind](case)
    gathered = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, result)
    return {key: _worst([other[key] for other in gathered]) for key in result}


def _worst(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def gradients(case: Case) -> dict[str, float]:
    """Loss and the worst relative gradient error (max|difference| / max|reference| per tensor) after a few passes.

    With overlapped reductions Megatron learns in the first pass which gradients to wait for: the second counts too.
    """
    engine = _engine(case)
    total = case.micro_batches * case.stages * engine.data_parallel_size
    batches = micro_batches(total, case.packed)
    for _ in range(2):
        loss, tokens = engine.forward_backward(_mine(engine, batches))
    reference_loss, reference = _plain_gradients(case, batches)
    names = set()
    worst = 0.0
    for shard in engine.gradient_shards():
        names.add(shard.name)
        worst = _worst([worst, _relative(shard, reference[shard.name])])
    _check_names(engine, names, set(reference))
    assert tokens == sum(int(count_supervised(batch.labels)) for batch in batches)
    return {"loss": abs(loss - reference_loss), "gradient": worst}


def _check_names(engine: MegatronEngine, names: set[str], expected: set[str]) -> None:
    """Nothing was left out of the comparison."""
    gathered: list[set[str]] = [set()] * distributed.get_world_size()
    distributed.all_gather_object(gathered, names)
    assert set().union(*gathered) == expected, set().union(*gathered) ^ expected


def mutation(case: Case) -> dict[str, float]:
    """The same comparison with and without a mistake."""
    right = gradients(without_mutation(case))
    with mistake(case.mutation):
        wrong = gradients(case)
    return {"right": max(right.values()), "wrong": max(wrong.values())}


def training(case: Case) -> dict[str, float]:
    """Evaluation, telemetry, then three AdamW steps against the plain engine: losses, norms, weights, moments.

    Before two of them this engine alone makes a step that is refused; then, once, one of a batch without labels.
    """
    engine, plain = _engine(case), _plain_engine(case)
    errors = _evaluation_errors(engine, plain, case)
    errors["weight_fingerprints"] = weight_fingerprint_faults(engine, plain)
    for step, learning_rate in enumerate((1e-3, 4e-4, 8e-4)):
        for labelled in (True, False)[: step + 1] if step < 2 else ():
            refused = _trace_of_a_refused_step(engine, case, labelled=labelled)
            errors["refused"] = max(errors.get("refused", 0.0), refused)
        batches = micro_batches(case.micro_batches * case.stages * engine.data_parallel_size, case.packed, step)
        result = engine.train_step(_mine(engine, batches), learning_rate)
        reference = plain.train_step(batches, learning_rate)
        assert result.supervised_tokens == reference.supervised_tokens
        assert reference.grad_norm > 0.5, "nothing was clipped"
        errors["loss"] = max(errors.get("loss", 0.0), abs(result.loss - reference.loss))
        relative = abs(result.grad_norm / reference.grad_norm - 1)
        errors["grad_norm"] = max(errors.get("grad_norm", 0.0), relative)
        errors["replicas"] = errors.get("replicas", 0) + _fingerprint_faults(engine, batches)
    assert engine.state_scalars() == plain.state_scalars() == {"optimizer_step": 3}
    return errors | _state_errors(engine, plain) | {"after_a_step": _evaluation_error_after_a_step(engine, plain, case)}


def _trace_of_a_refused_step(engine: MegatronEngine, case: Case, *, labelled: bool) -> float:
    """How far a step that is refused moves any weight, live or main, or moment."""
    engine.token_losses(*micro_batches(1, case.packed, step=9))  # overlapped gathering of weights waits for a pass
    before = [shard.data.clone() for shard in engine.state_shards(loading=True)]
    scalars = engine.state_scalars()
    batches = micro_batches(case.micro_batches * case.stages * engine.data_parallel_size, case.packed, step=7)
    if not labelled:
        batches = [replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX)) for batch in batches]
    result = engine.train_step(_mine(engine, batches), 1.0, lambda result: result.grad_norm < 0)
    assert not result.updated and (result.grad_norm > 0) is math.isfinite(result.loss) is labelled
    assert (result.supervised_tokens > 0) is labelled
    assert engine.state_scalars() == scalars
    after = [shard.data for shard in engine.state_shards(loading=True)]
    return max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True) if a.numel())


def _fingerprint_faults(engine: MegatronEngine, batches: list[MicroBatch]) -> int:
    """What fingerprints get wrong right after a step: equal replicas that differ, others that do not, and gradients.

    Own gradients must come out twice alike, differ between replicas, which see other batches or other parts of the
    rows, and leave the next step as it is.
    """
    weights = int(combined(fingerprint(tensor) for _, tensor in engine.replicated_tensors()))
    mine = _mine(engine, batches)
    first, second = (engine.own_gradient_fingerprint(mine) for _ in range(2))
    told: list[tuple[int, int, int]] = [(0, 0, 0)] * distributed.get_world_size()
    distributed.all_gather_object(told, (engine.replica_id, weights, first))
    copies = len({replica for replica, *_ in told})
    assert len(told) // copies == engine.mesh.replicas.size()
    weights_of, gradients_of = {(r, w) for r, w, _ in told}, {(r, g) for r, _, g in told}
    return (first != second) + (len(weights_of) != copies) + (len(gradients_of) != len(told))


def _evaluation_error_after_a_step(engine: MegatronEngine, plain: PlainEngine, case: Case) -> float:
    """Evaluation right after a step must see its weights, gathered or not: the step is large enough to tell."""
    (batch,) = micro_batches(1, case.packed, step=9)
    before = plain.token_losses(batch)
    batches = micro_batches(case.micro_batches * case.stages * engine.data_parallel_size, case.packed, step=4)
    for trained, own in ((engine, _mine(engine, batches)), (plain, batches)):
        trained.train_step(own, 1e-2)
    after = plain.token_losses(batch)
    assert float((after - before).abs().max()) > 100 * AFTER_A_STEP_TOLERANCE, "the step is too small to tell"
    return float((engine.token_losses(batch) - after).abs().max())


def _state_errors(engine: MegatronEngine, plain: PlainEngine) -> dict[str, float]:
    """Weights (absolute) and Adam's moments (relative to the tensor's largest)."""
    expected = {shard.name: shard.data for shard in plain.state_shards(loading=False)}
    errors = {"weights": 0.0, "moments": 0.0}
    for shard in engine.state_shards(loading=False):
        if shard.name.startswith(MODEL_PREFIX):
            error = float((shard.data - cut(shard, expected[shard.name])).abs().max())
            errors["weights"] = max(errors["weights"], error)
        else:
            errors["moments"] = max(errors["moments"], _relative(shard, expected[shard.name]))
    return errors


def _evaluation_errors(engine: MegatronEngine, plain: PlainEngine, case: Case) -> dict[str, float]:
    """Per-loop losses, also for a length that sequence parts do not divide, and telemetry."""
    errors = {}
    for length in (48, 31):
        (batch,) = micro_batches(1, case.packed, step=9, length=length)
        mine, reference = engine.token_losses(batch), plain.token_losses(batch)
        assert mine.shape == reference.shape == (case.num_loops, *batch.labels.shape)
        assert mine.dtype == torch.float32
        errors[f"token_losses_{length}"] = float((mine - reference).abs().max())
    values, reference = engine.loop_telemetry(batch), plain.loop_telemetry(batch)
    assert values.keys() == reference.keys()
    errors["telemetry"] = max(abs(values[key] - reference[key]) / (1 + abs(reference[key])) for key in reference)
    return errors


def bf16(case: Case) -> dict[str, float]:
    """bf16 arithmetic on fp32 masters, and the plain engine's own bf16, both against the plain fp32 gradients."""
    engine, plain = _engine(case), _plain_engine(case)
    batches = micro_batches(case.micro_batches * case.stages * engine.data_parallel_size, case.packed)
    loss, _ = engine.forward_backward(_mine(engine, batches))
    reference_loss, reference = _plain_gradients(case, batches)
    plain_loss = plain.train_step(batches, learning_rate=0.0).loss
    clipped = {MODEL_PREFIX + name: tensor.grad for name, tensor in plain.master.items()}
    scale = max(_norm(reference.values()) / _norm(clipped.values()), 1.0)  # undo the plain engine's clipping
    masters = [shard for shard in engine.state_shards(loading=False) if shard.name.startswith(MODEL_PREFIX)]
    assert all(shard.data.dtype == torch.float32 for shard in masters)
    unrounded = [(s.data - cut(s, random_weight(s.name, s.global_shape))).abs().max() for s in masters]
    return {
        "loss": abs(loss - reference_loss),
        "plain_loss": abs(plain_loss - reference_loss),
        "gradient": max(_relative(shard, reference[shard.name]) for shard in engine.gradient_shards()),
        "plain_gradient": max(
            float((scale * clipped[MODEL_PREFIX + name] - value).abs().max() / value.abs().max())
            for name, value in reference.items()
        ),
        "masters": float(max(unrounded)),
    }


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def state(case: Case) -> dict[str, float]:
    """Train, save, go on; load the saved state under `other_layout`, go on: the losses of both."""
    engine = _engine(case)
    _train(engine, case, range(3))
    tensors, owners = gather_state(engine)
    assert all(bool((count == 1).all()) for count in owners.values()), "an element is saved twice or not at all"
    scalars = engine.state_scalars()
    expected = _train(engine, case, range(3, 6))
    after, _ = gather_state(engine)
    other = MegatronEngine(run_config(case, case.other_layout), _CPU)
    load(other.state_shards(loading=True), tensors)
    other.load_state_scalars(scalars)
    assert other.state_scalars() == scalars == {"optimizer_step": 3}
    loaded, _ = gather_state(other)
    losses = _train(other, case, range(3, 6))
    after_other, _ = gather_state(other)
    assert after.keys() == after_other.keys()
    return {
        "loaded": max(float((tensors[name] - loaded[name]).abs().max()) for name in tensors),
        "loss": max(abs(a - b) for a, b in zip(expected, losses, strict=True)),
        "tensors": max(float((after[name] - after_other[name]).abs().max()) for name in after),
    }


def state_mutation(case: Case) -> dict[str, float]:
    """Going on from saved state, with and without a mistake in loading it."""
    right = state(replace(case, mutation=""))
    with mistake(case.mutation):
        wrong = state(case)
    return {"right": right["loss"], "wrong": wrong["loss"]}


def schedule(case: Case) -> dict[str, float]:
    """What the recorded passes of one step show, beside the formulas."""
    engine = _engine(case)
    pipeline, stage_index = engine._loops, engine.mesh.stage_index
    events: list[Pass] = []
    pipeline.on_pass = events.append
    batches = micro_batches(case.micro_batches * case.stages, case.packed)
    engine.forward_backward(batches)
    assert not pipeline.memory, "a microbatch was not forgotten"
    pipeline.on_pass = lambda _: None
    engine.token_losses(batches[0])
    assert not pipeline.memory, "a measuring pass left something"
    by_stage = [None] * case.stages
    distributed.all_gather_object(by_stage, events)
    return {
        "live_pairs": abs(peak_live_pairs(events) - live_pairs(case.num_loops, len(batches), case.stages, stage_index)),
        "idle": abs(idle_share(by_stage) - (case.stages - 1) / (case.num_loops * len(batches))),
    }


def saved_bytes(case: Case) -> dict[str, float]:
    """Bytes of a checkpoint's tensors beside those of R = 2, less the gates' that R = 1 has not: 0 for any R."""
    sizes = {}
    for num_loops in (1, 2, 3):
        engine = _engine(replace(case, num_loops=num_loops))
        owned = [shard for shard in engine.state_shards(loading=False) if shard.owner]
        own = torch.tensor(
            [sum(s.data.nbytes for s in owned), sum(s.data.nbytes for s in owned if ".plt_gate." in s.name)]
        )
        distributed.all_reduce(own)
        sizes[num_loops] = own.tolist()
    (without, no_gates), (two, gates), (three, _) = sizes[1], sizes[2], sizes[3]
    assert no_gates == 0 < gates < without
    return {"more_loops": abs(three - two), "gates": abs(two - gates - without)}


def memory(case: Case) -> dict[str, float]:
    """Numbers per local row and layer that a forward pass keeps, for every kind of recomputation."""
    kept = {}
    for recompute in ("none", "selective", "layer"):
        engine = _engine(replace(case, recompute=recompute))
        (batch,) = micro_batches(1, packed=False)
        counter = KeptMemory(list(engine.stage.parameters()))
        with counter:
            *_, hidden = loop_outputs(engine.stage, batch.input_ids, batch.document_ids)
            kept[recompute] = counter.alive_bytes() / hidden.element_size()
        kept[recompute] /= hidden.shape[0] * hidden.shape[1] * engine.config.model.num_layers
    return kept


def _train(engine: MegatronEngine, case: Case, steps: range) -> list[float]:
    losses = []
    for step in steps:
        batches = micro_batches(2 * case.micro_batches * case.stages, case.packed, step)
        losses.append(engine.train_step(_mine(engine, batches), 1e-3).loss)
    return losses


def _engine(case: Case) -> MegatronEngine:
    engine = MegatronEngine(run_config(case), _CPU)
    randomize(engine)
    return engine


def _plain_engine(case: Case) -> PlainEngine:
    plain = PlainEngine(run_config(case, "plain"), _CPU)
    randomize(plain)
    return plain


def _mine(engine: MegatronEngine, batches: list[MicroBatch]) -> list[MicroBatch]:
    """This data-parallel rank's share."""
    share = len(batches) // engine.data_parallel_size
    return batches[engine.data_parallel_rank * share :][:share]


def _plain_gradients(case: Case, batches: list[MicroBatch]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the plain fp32 model: masked sum / supervised tokens of all micro-batches.

    Rank 0 computes them, once for all layouts that meet the same model and batches.
    """
    model = run_config(case, "plain").model
    key = (str(model), case.packed, len(batches))
    if key not in _plain_results:
        result = [_compute_plain_gradients(model, batches) if distributed.get_rank() == 0 else None]
        distributed.broadcast_object_list(result, src=0)
        _plain_results[key] = result[0]
    return _plain_results[key]


_plain_results: dict[tuple, tuple[float, dict[str, Tensor]]] = {}


def _compute_plain_gradients(config: ModelConfig, batches: list[MicroBatch]) -> tuple[float, dict[str, Tensor]]:
    model = PLT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_weight(name, tuple(parameter.shape)))
    supervised = sum(int(count_supervised(batch.labels)) for batch in batches)
    total = 0.0
    for batch in batches:
        losses = token_losses(model(batch.input_ids, batch.document_ids), batch.labels)
        (losses.sum() / supervised).backward()
        total += float(losses.detach().double().sum())
    return total / supervised, {name: parameter.grad for name, parameter in model.named_parameters()}


def _relative(shard: TensorShard, reference: Tensor) -> float:
    """max|difference| over the shard / max|reference| over the whole tensor."""
    if shard.data.numel() == 0:
        return 0.0
    return float((shard.data - cut(shard, reference)).abs().max() / reference.abs().max())


_CHECKS = {
    "gradients": gradients,
    "mutation": mutation,
    "training": training,
    "bf16": bf16,
    "state": state,
    "memory": memory,
    "state_mutation": state_mutation,
    "schedule": schedule,
    "saved_bytes": saved_bytes,
}

"""The plain engine: loss per supervised token whatever the split, AdamW by the book, state that restores exactly."""

import math
from dataclasses import replace

import pytest
import torch

from loopcoder_train.config import DataConfig, LoopKind, OptimizerConfig, Precision, RunConfig, TrainingConfig
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.plain import PlainEngine
from loopcoder_train.model import IGNORE_INDEX, build_model
from loopcoder_train.model.loss import token_losses
from loopcoder_train.model.names import is_decayed
from tests.conftest import RELEASED_PRESET, small_model

CPU = torch.device("cpu")
RATES = [1e-2, 5e-3, 1e-3]


def run_config(micro_batch_size=4, precision=Precision.fp32, **optimizer):
    return RunConfig(
        run_dir="unused",
        model=small_model(num_loops=2, **RELEASED_PRESET),
        training=TrainingConfig(
            num_steps=10, global_batch_size=4, micro_batch_size=micro_batch_size, precision=precision
        ),
        data=DataConfig(sequence_length=12),
        optimizer=OptimizerConfig(**({"peak_lr": 1e-2, "clip_grad_norm": 0.5} | optimizer)),
    )


def batches(micro_batch_size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 61, (4, 13), generator=generator)
    labels = tokens[:, 1:].clone()
    labels[0, 3:] = IGNORE_INDEX  # rows with very different numbers of supervised tokens
    labels[3, :2] = IGNORE_INDEX
    documents = (torch.arange(12) >= 5).long().expand(4, -1)
    whole = MicroBatch(tokens[:, :-1], labels, documents, torch.zeros(4, dtype=torch.long))
    parts = [getattr(whole, name).split(micro_batch_size) for name in MicroBatch.__slots__]
    return [MicroBatch(*part) for part in zip(*parts, strict=True)]


def test_three_steps_equal_a_hand_written_adamw():
    engine, config = PlainEngine(run_config(), CPU), run_config()
    model = build_model(config.model, seed=config.seed).double()
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    for step, rate in enumerate(RATES, start=1):
        (batch,) = batches(seed=step)
        result = engine.train_step([batch], rate)
        loss = token_losses(model(batch.input_ids, batch.document_ids), batch.labels).sum()
        loss = loss / (batch.labels != IGNORE_INDEX).sum()
        model.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
        assert result.loss == pytest.approx(float(loss.detach()), rel=1e-5)
        assert result.grad_norm == pytest.approx(float(norm), rel=1e-4)
        with torch.no_grad():
            for name, p in model.named_parameters():
                gradient = p.grad * min(1.0, 0.5 / float(norm))
                first, second = moments[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.95).add_(0.05 * gradient * gradient)
                if is_decayed(name):
                    p.mul_(1 - rate * 0.1)
                bias1, bias2 = 1 - 0.9**step, 1 - 0.95**step
                p.sub_(rate * (first / bias1) / ((second / bias2).sqrt() + 1e-15))
    for name, p in model.named_parameters():
        if ".plt_gate." not in name:  # eps 1e-15 turns rounding of near-zero gate gradients into whole steps
            torch.testing.assert_close(engine.master[name].double(), p.detach(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_the_split_into_micro_batches_changes_nothing(micro_batch_size):
    together, split = PlainEngine(run_config(), CPU), PlainEngine(run_config(micro_batch_size), CPU)
    one = together.train_step(batches(), 0.0)
    many = split.train_step(batches(micro_batch_size), 0.0)
    assert many.loss == pytest.approx(one.loss, rel=1e-6)
    assert many.supervised_tokens == one.supervised_tokens == 37
    for name, master in together.master.items():
        scale = master.grad.abs().max()
        assert (split.master[name].grad - master.grad).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("precision", Precision)
def test_a_refused_step_leaves_no_trace(precision):
    straight, refusing = (PlainEngine(run_config(precision=precision), CPU) for _ in range(2))
    seen = []

    def refuse(result):
        seen.append(result)
        return False

    for step in range(3):
        straight.train_step(batches(seed=step), 1e-2)
        refused = refusing.train_step(batches(seed=77 + step), 10.0, refuse)
        assert refused is seen[-1] and not refused.updated and refused.grad_norm > 0
        assert refusing.state_scalars() == {"optimizer_step": step}
        assert refusing.train_step(batches(seed=step), 1e-2, lambda result: True).updated
    for ours, theirs in zip(refusing.state_shards(loading=True), straight.state_shards(loading=True), strict=True):
        assert torch.equal(ours.data, theirs.data), ours.name


def test_a_batch_without_a_label_has_no_loss_and_no_gradient():
    engine = PlainEngine(run_config(), CPU)
    unlabelled = [replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX)) for batch in batches()]
    result = engine.train_step(unlabelled, 1e-2, lambda result: math.isfinite(result.loss))
    assert math.isnan(result.loss) and not result.updated
    assert (result.supervised_tokens, result.grad_norm) == (0, 0.0)


@pytest.mark.parametrize("precision", Precision)
def test_restored_state_continues_bit_for_bit(precision):
    straight = PlainEngine(run_config(precision=precision), CPU)
    losses = [straight.train_step(batches(seed=step), 1e-2).loss for step in range(6)]
    first = PlainEngine(run_config(precision=precision), CPU)
    for step in range(3):
        first.train_step(batches(seed=step), 1e-2)
    saved = {shard.name: shard.data.clone() for shard in first.state_shards(loading=False)}
    assert all(value.dtype is torch.float32 for value in saved.values())
    second = PlainEngine(run_config(precision=precision), CPU)
    for shard in second.state_shards(loading=True):
        shard.data.copy_(saved[shard.name])
    second.load_state_scalars(first.state_scalars())
    assert [second.train_step(batches(seed=step), 1e-2).loss for step in range(3, 6)] == losses[3:]


def test_bf16_stays_near_fp32():
    exact, rounded = (PlainEngine(run_config(precision=precision), CPU) for precision in Precision)
    for step in range(5):
        expected, actual = (engine.train_step(batches(seed=step), 1e-2).loss for engine in (exact, rounded))
        assert actual == pytest.approx(expected, rel=2e-2)


def test_token_losses_of_the_last_loop_are_the_training_loss():
    engine = PlainEngine(run_config(), CPU)
    (batch,) = batches()
    losses = engine.token_losses(batch)
    assert losses.shape == (2, 4, 12) and not losses[:, batch.labels == IGNORE_INDEX].any()
    mean = float(losses[-1].double().sum() / 37)
    assert mean == pytest.approx(engine.train_step([batch], 0.0).loss, rel=1e-6)


def test_telemetry_of_a_fresh_model():
    engine = PlainEngine(run_config(), CPU)
    values = engine.loop_telemetry(batches()[0])
    assert values["loop2/gate_mean"] == values["loop2/layer1/gate_mean"] == 0.5
    assert values["loop2/input_rms_hidden"] == pytest.approx(0.3, rel=0.1)  # the norm makes it 1, b scales it
    assert values["loop2/output_kl"] > 0 and values["loop1/step_size"] > 0
    assert "loop1/output_kl" not in values


def test_telemetry_of_sequential_loops_has_no_sum_of_inputs():
    """They read h(r-1) alone, not a E + b shift(N(h(r-1)))."""
    config = run_config()
    config.model = small_model(num_loops=2, loop_kind=LoopKind.sequential)
    values = PlainEngine(config, CPU).loop_telemetry(batches()[0])
    assert {name for name in values if name.startswith("loop2/")} == {
        "loop2/step_size", "loop2/hidden_rms", "loop2/angular_change", "loop2/output_kl"
    }  # fmt: skip

"""Finds processes that hold other weights than their replicas, or get other gradients from the same data.

A broken machine may compute on without a sign: a bit of a weight flips, a core multiplies wrongly. Ranks that hold the
same weights compare fingerprints at an interval, and before every save, so that nothing unequal becomes a checkpoint.
A step may also be computed twice, because what goes wrong before gradients are summed reaches every replica alike.

Both end the run with an error of exit code 1: a restart goes on from the last checkpoint, when all was well.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopcoder_train.checkpoint import Ranks
from loopcoder_train.engines.fingerprint import combined, fingerprint
from loopcoder_train.training.across_ranks import Machines, gather_over_ranks
from loopcoder_train.training.batch import to_micro_batch
from loopcoder_train.training.loop import Hook, Run, Step

_NAMED_TENSORS = 3  # in a message; the others are counted


class SilentCorruptionError(RuntimeError):
    """Processes that must have the same bits have different ones: a machine is broken, or a bit has flipped."""


@dataclass(frozen=True, slots=True)
class Odd:
    """Ranks of one set of replicas that do not all hold the same. `wrong`: the minority; empty without a majority."""

    ranks: list[int]
    wrong: list[int]


def find_odd(rows: Sequence[tuple[int, int]]) -> list[Odd]:
    """The sets of replicas that disagree, from every rank's (replica id, fingerprint), in rank order."""
    replicas = defaultdict(list)
    for rank, (replica_id, _) in enumerate(rows):
        replicas[replica_id].append(rank)
    odd = []
    for ranks in replicas.values():
        ((usual, count), *others) = Counter(rows[rank][1] for rank in ranks).most_common()
        if others:
            outvoted = 2 * count > len(ranks)
            odd.append(Odd(ranks, [rank for rank in ranks if rows[rank][1] != usual] if outvoted else []))
    return odd


class ReplicaHook(Hook):
    """Compares replicas every `every_steps` steps, when a save is due and at the end; listed before whoever saves."""

    doing = "the comparison of replicas"

    def __init__(self, every_steps: int, *, save_every_steps: int) -> None:
        self._every_steps, self._save_every_steps = every_steps, save_every_steps
        self._compared_at: int | None = None

    def on_start(self, run: Run) -> None:
        """Learn who is whose replica and where."""
        self._ranks = Ranks.current()
        self._machines = Machines.of(self._ranks)
        replicas = self._ranks.gather(run.engine.replica_id)
        self._has_replicas = len(set(replicas)) < len(replicas)
        self._compared_at = run.state.step

    def after_step(self, run: Run, step: Step) -> None:
        """Compare when it is due."""
        due = any(step.number % every == 0 for every in (self._every_steps, self._save_every_steps))
        if due or step.number == run.last_step:
            self._compare(run)

    def on_stop(self, run: Run) -> None:
        """What is saved at the end was compared."""
        if self._compared_at != run.state.step:
            self._compare(run)

    def _compare(self, run: Run) -> None:
        self._compared_at = run.state.step
        if not self._has_replicas:
            return
        tensors = {name: fingerprint(tensor) for name, tensor in run.engine.replicated_tensors()}
        own = run.engine.replica_id, int(combined(tensors.values()))
        odd = find_odd([tuple(row) for row in gather_over_ranks(run.engine, self._ranks, own)])
        if odd:
            self._tell(run, odd, {name: int(value) for name, value in tensors.items()})

    def _tell(self, run: Run, odd: list[Odd], own: Mapping[str, int]) -> None:
        everybody = self._ranks.gather(dict(own))
        parts = [self._describe(group, everybody) for group in odd]
        message = (
            f"silent corruption found after step {run.state.step}: {'; '.join(parts)}. Nothing of it was saved: "
            "the same command goes on from the last checkpoint"
        )
        run.metrics.event(
            "replicas_differ",
            run.state.step,
            message,
            wrong_ranks=[rank for group in odd for rank in group.wrong],
            differing_ranks=[rank for group in odd for rank in group.ranks],
        )
        raise SilentCorruptionError(message)

    def _describe(self, group: Odd, everybody: list[dict[str, int]]) -> str:
        names = [name for name in everybody[group.ranks[0]] if len({everybody[rank][name] for rank in group.ranks}) > 1]
        more = f" and {len(names) - _NAMED_TENSORS} more" if len(names) > _NAMED_TENSORS else ""
        what = ", ".join(names[:_NAMED_TENSORS]) + more
        if group.wrong:
            others = len(group.ranks) - len(group.wrong)
            return f"{self._machines.called(group.wrong)} differ(s) from the other {others} replicas in {what}"
        return (
            f"{self._machines.called(group.ranks)} differ in {what}, and no majority says which is right (with "
            f"guards.recompute_every_steps=1 the steps after the last checkpoint name a rank that computes wrongly; a "
            f"bit that flipped once does not come back)"
        )


class RecomputeHook(Hook):
    """Every `every_steps` steps computes the gradients of the step's own micro-batches twice more and compares bits."""

    doing = "the recomputation"

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps

    def on_start(self, run: Run) -> None:
        """Learn where everybody is."""
        self._ranks = Ranks.current()
        self._machines = Machines.of(self._ranks)

    def after_step(self, run: Run, step: Step) -> None:
        """Recompute when it is due."""
        if step.number % self._every_steps:
            return
        batches = [to_micro_batch(batch) for batch in step.batches]
        first, second = (run.engine.own_gradient_fingerprint(batches) for _ in range(2))
        told = gather_over_ranks(run.engine, self._ranks, [first != second])
        wrong = [rank for rank, (differs,) in enumerate(told) if differs]
        if not wrong:
            return
        called = self._machines.called(wrong)
        message = (
            f"silent corruption found at step {step.number}: {called} got two different gradients from the same data "
            "and weights; take the machine out, and the same command goes on from the last checkpoint"
        )
        run.metrics.event("recomputation_differs", step.number, message, wrong_ranks=wrong)
        raise SilentCorruptionError(message)

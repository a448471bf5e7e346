"""A finished sweep in a folder: three real runs of the plain engine, evaluated and diagnosed, as its arms."""

from pathlib import Path

from loopcoder_train.config.commands import DiagnoseOptions, EvaluateOptions
from loopcoder_train.diagnostics.command import diagnose_run
from loopcoder_train.evaluation.command import evaluate_run
from loopcoder_train.sweep.arms import Arm, Sweep
from tests.unit.evaluation.trained_run import train


def make_sweep(root: Path) -> Path:
    """Arms R = 1, 2 and a reference arm; no tuning. The corpora are equal, at three places."""
    folder = root / "sweep"
    arms = []
    for name, loops, reference in (("num_loops=1", 1, None), ("num_loops=2", 2, None), ("reference-depth", 1, "depth")):
        layers = {"num_layers": 4} if reference else {}
        run_dir = train(root / f"of {name}", num_loops=loops, **layers)
        (folder / name).mkdir(parents=True)
        run_dir = run_dir.rename(folder / name / "pretrain")
        evaluate_run(EvaluateOptions(run_dir=str(run_dir)))
        if loops > 1:
            evaluate_run(EvaluateOptions(run_dir=str(run_dir), num_loops=4))
        diagnose_run(DiagnoseOptions(run_dir=str(run_dir), num_samples=6, min_sample_tokens=3))
        label = "R = 1, 2 x layers" if reference else f"R = {loops}"
        arms.append(Arm(name=name, label=label, value=loops, seed=0, reference=reference, changes={}))
    Sweep(axis="model.num_loops", arms=arms, tuned=False).write(folder)
    return folder

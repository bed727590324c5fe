"""What one row of a table of results shows: a run, the mean over seeds, or published figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from hpc_tumor.results.comparison import MAIN_SCORE, Group, RunResult, Scores, SeedMean
from hpc_tumor.results.published import PublishedResult
from hpc_tumor.results.statistics import Interval


@dataclass(frozen=True)
class Row:
    """One row: `name` says all, `label` is shorter where the row stands below the row of its model's seeds."""

    kind: Literal["run", "seeds", "published"]
    name: str
    label: str
    model: str
    run: str = ""
    seeds: tuple[int, ...] = ()
    parameters: int | None = None
    gpus: str = ""
    seconds: float | None = None
    gpu_hours: float | None = None
    samples_per_second: float | None = None
    peak_memory_gb: float | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    best: Scores = field(default_factory=dict)
    last: Scores = field(default_factory=dict)
    train: Scores = field(default_factory=dict)
    interval: Interval | None = None
    sd: float | None = None


def group_rows(group: Group) -> list[Row]:
    """Rows of one group, in the order of its runs; the mean over seeds stands above its runs."""
    means = {mean.runs[0].path: mean for mean in group.seeds}
    seeded = {run.path for mean in group.seeds for run in mean.runs}
    counted = Counter(model_name(run) for run in group.runs)
    rows = []
    for run in group.runs:
        name = model_name(run)
        if run.path in means:
            mean = means[run.path]
            rows.append(_mean_row(mean))
            rows += [_run_row(one, f"{name}, seed {one.seed}", f"  seed {one.seed}") for one in mean.runs]
        elif run.path not in seeded:
            if counted[name] > 1:  # told apart by the short id at the end of the run's name
                name = f"{name} {run.run.rpartition('-')[2][:8]}"
            rows.append(_run_row(run, name, name))
    return rows


def published_row(result: PublishedResult) -> Row:
    """The row of published figures, marked as such."""
    return Row(
        kind="published",
        name=f"{result.model}: published{' (leaking split)' if result.split_leaks else ''}",
        label="published",
        model=result.model,
        parameters=result.parameters,
        epochs=result.epochs,
        best=result.test,
        train=result.train,
    )


def model_name(run: RunResult) -> str:
    """The model, with its first filters where they were set."""
    return run.model if run.filters is None else f"{run.model}, {run.filters} filters"


def _run_row(run: RunResult, name: str, label: str) -> Row:
    return Row(
        kind="run",
        name=name,
        label=label,
        model=run.model,
        run=run.run,
        seeds=() if run.seed is None else (run.seed,),
        parameters=run.parameters,
        gpus=_gpus(run),
        seconds=run.seconds,
        gpu_hours=run.gpu_hours,
        samples_per_second=run.samples_per_second,
        peak_memory_gb=run.peak_memory_gb,
        epochs=run.epochs,
        best_epoch=run.best_epoch,
        best=run.best,
        last=run.last,
        train=run.last_train,
        interval=run.interval,
    )


def _mean_row(mean: SeedMean) -> Row:
    one = mean.runs[0]
    name = f"{model_name(one)}, {len(mean.seeds)} seeds"
    gpus = {_gpus(run) for run in mean.runs}
    return Row(
        kind="seeds",
        name=f"{name}: mean ± sd",
        label=name,
        model=one.model,
        seeds=mean.seeds,
        parameters=one.parameters,
        gpus=gpus.pop() if len(gpus) == 1 else "mixed",
        seconds=_mean(run.seconds for run in mean.runs),
        gpu_hours=_mean(run.gpu_hours for run in mean.runs),
        samples_per_second=_mean(run.samples_per_second for run in mean.runs),
        peak_memory_gb=_mean(run.peak_memory_gb for run in mean.runs),
        epochs=one.epochs,
        best=mean.best,
        last=mean.last,
        train=mean.last_train,
        sd=mean.best_sd.get(MAIN_SCORE[one.task]),
    )


def _gpus(run: RunResult) -> str:
    if run.gpus is None:
        return ""
    return f"{run.gpus} CPU" if run.device == "cpu" else str(run.gpus)


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    present = [value for value in known if value is not None]
    return sum(present) / len(present) if present and len(present) == len(known) else None

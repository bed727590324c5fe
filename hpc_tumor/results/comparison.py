"""What a comparison holds: finished runs in groups that may be compared, unfinished runs, and what was skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from hpc_tumor.results.published import PUBLISHED
from hpc_tumor.results.statistics import Interval, mean_and_sd

MAIN_SCORE = {"classification": "accuracy", "segmentation": "dice"}
CASES = {"classification": "images", "segmentation": "patients"}
Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class RunResult:
    """One finished run. Scores are fractions: `best` with the weights of the best epoch, `last` of the last."""

    run: str
    path: str
    task: str
    model: str
    filters: int | None
    seed: int | None
    split: str
    split_leaks: bool | None
    fold: int | None
    dataset: str | None
    store: str
    fingerprint: str | None
    parameters: int | None
    gpus: int | None
    nodes: int | None
    device: str | None
    precision: str | None
    epochs: int | None
    batch_size: int | None
    seconds: float | None
    gpu_hours: float | None
    restarts: int | None
    samples_per_second: float | None
    peak_memory_gb: float | None
    train_cases: int | None
    val_cases: int | None
    test_cases: int | None
    chosen_by: str | None
    best_epoch: int | None
    best: Scores
    last_epoch: int | None
    last: Scores
    last_train: Scores
    intervals: Mapping[str, Interval]  # of `best`, over test cases
    test_set: str | None  # hash of the test cases: equal where two runs were tested on the same ones
    settings: str  # hash of all that was set, but for the seed and what cannot change a score
    remarks: tuple[str, ...] = ()

    @property
    def score(self) -> float | None:
        """The main score of the best weights: mean Dice over the labels NCR, ED and ET, or accuracy."""
        return self.best.get(MAIN_SCORE[self.task])

    @property
    def interval(self) -> Interval | None:
        """The interval of the main score."""
        return self.intervals.get(MAIN_SCORE[self.task])


@dataclass(frozen=True)
class SeedMean:
    """Seeds of one model with the same settings on the same data: means, and standard deviations over the seeds."""

    runs: tuple[RunResult, ...]
    seeds: tuple[int, ...]
    best: Mapping[str, float]
    best_sd: Mapping[str, float]
    last: Mapping[str, float]
    last_train: Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """Finished runs that may stand in one table: same task, same data, same split. Runs in the order of the models."""

    task: str
    split: str
    split_leaks: bool | None
    fold: int | None
    dataset: str | None
    store: str
    fingerprint: str | None
    runs: tuple[RunResult, ...]
    seeds: tuple[SeedMean, ...]

    @property
    def title(self) -> str:
        """Task, data, split and whether it leaks, number of test cases."""
        known = sorted({run.test_cases for run in self.runs if run.test_cases is not None})
        counts = "–".join(f"{count:,}" for count in (known[:1] + known[-1:] if len(known) > 1 else known)) or "unknown"
        # Neither an image nor a near copy of it; other slices of its patient may be, since the data names no patients.
        clean = "no duplicates on two sides" if self.split == "deduplicated" else "does not leak"
        leak = {True: "leaks", False: clean, None: "not known whether it leaks"}[self.split_leaks]
        fold = "" if self.fold is None else f", fold {self.fold}"
        noun = CASES[self.task] if known != [1] else CASES[self.task].removesuffix("s")
        fingerprint = f" {self.fingerprint[:12]}" if self.fingerprint else ""
        store = PurePath(self.store).name or self.store
        data = (f"{self.dataset}, {store}" if self.dataset else store) + fingerprint
        return f"{self.task.capitalize()} · {data} · split {self.split}{fold} ({leak}) · {counts} test {noun}"


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without a result, as far as it came. `best` is a validation score, `heartbeat` seconds since 1970."""

    run: str
    path: str
    task: str | None
    model: str | None
    seed: int | None
    state: str
    reason: str | None
    epoch: int | None
    epochs: int | None
    best: float | None
    best_epoch: int | None
    heartbeat: float | None


@dataclass(frozen=True)
class SkippedFolder:
    """A folder that is no run, or whose result cannot be used, and why."""

    run: str
    path: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """All that was collected."""

    groups: tuple[Group, ...] = ()
    unfinished: tuple[UnfinishedRun, ...] = ()
    skipped: tuple[SkippedFolder, ...] = ()

    @property
    def results(self) -> list[RunResult]:
        """Every finished run, group by group."""
        return [run for group in self.groups for run in group.runs]


def group_runs(results: Sequence[RunResult]) -> tuple[Group, ...]:
    """Groups of comparable runs. Another task, store, split or fold is another group: never mixed."""
    members: dict[tuple[object, ...], list[RunResult]] = {}
    for result in sorted(results, key=_order):
        data = result.fingerprint or result.store
        key = (result.task, data, result.split, result.split_leaks, result.fold)
        members.setdefault(key, []).append(result)
    groups = []
    for runs in members.values():
        one = runs[0]
        groups.append(
            Group(
                task=one.task,
                split=one.split,
                split_leaks=one.split_leaks,
                fold=one.fold,
                dataset=one.dataset,
                store=one.store,
                fingerprint=one.fingerprint,
                runs=tuple(runs),
                seeds=tuple(_seed_means(runs)),
            )
        )
    groups.sort(
        key=lambda one: (one.task, one.store, one.fingerprint or "", one.split, -1 if one.fold is None else one.fold)
    )
    return tuple(groups)


def _seed_means(runs: Sequence[RunResult]) -> list[SeedMean]:
    same: dict[tuple[object, ...], dict[int, RunResult]] = {}
    for run in runs:
        if run.seed is not None:
            # A seed that was run again counts once, with its latest run.
            same.setdefault((run.model, run.filters, run.settings, run.precision), {})[run.seed] = run
    means = []
    for by_seed in same.values():
        if len(by_seed) < 2:
            continue
        chosen = [by_seed[seed] for seed in sorted(by_seed)]
        best, best_sd = mean_and_sd([run.best for run in chosen])
        last, _ = mean_and_sd([run.last for run in chosen])
        train, _ = mean_and_sd([run.last_train for run in chosen])
        means.append(SeedMean(tuple(chosen), tuple(sorted(by_seed)), best, best_sd, last, train))
    return means


def _order(result: RunResult) -> tuple[object, ...]:
    models = list(PUBLISHED)
    rank = models.index(result.model) if result.model in models else len(models)
    seed = -1 if result.seed is None else result.seed
    return rank, result.model, result.filters or 0, result.settings, seed, result.run, result.path

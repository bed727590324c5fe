"""One finished run, as recorded in its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_tumor.results.compare.measures import MAIN_SCORE
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.run_dir import Damage

Scores = Mapping[str, float | None]
# Settings that cannot change a score, or are part of a group's key: they do not distinguish entries.
NOT_SETTINGS = frozenset({
    "seed", "checkpoint_minutes", "keep_every", "profile", "tensorboard", "data.store", "data.split", "data.split_file",
    "data.test_source", "data.fold", "data.keep", "data.keep_gb", "hardware.channels_last", "hardware.threads",
    "hardware.timeout_minutes",
})  # fmt: skip


@dataclass(frozen=True)
class RunResult:
    """One finished run. Scores are fractions or mm: `best` with the weights of the best epoch, `last` of the last.

    Attributes:
        path: run directory as printable text; `place` is the actual path.
        leak_found: False if no copy and no known patient is in two parts; None if it was not recorded.
        split_leakage: sentence on the copies and patients that a split of images has in two parts.
        config: settings by dotted name.
        settings: hash of the settings without NOT_SETTINGS, equal for runs with equal settings.
        cases: scores of each test case, with the weights of the best epoch.
        weights_lost: damage to the weights of the best epoch; then `best` and `cases` are of the last epoch, and
            `best_epoch` is None.
        remarks: caveats of the run.
    """

    run: str
    path: str
    task: str
    model: str
    filters: int | None
    seed: int | None
    split: str
    split_leaks: bool | None
    split_leakage: str | None
    leak_found: bool | None
    split_seed: int | None
    fold: int | None
    folds: int | None
    dataset: str | None
    store: str
    fingerprint: str | None
    parameters: int | None
    gflop_per_sample: float | None
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
    weights_lost: Damage | None
    best: Scores
    last_epoch: int | None
    last: Scores
    last_train: Scores
    stopped_early: bool | None
    skipped_steps: int | None
    surfaces: str | None
    cleaning: Mapping[str, float | None] | None
    flips: bool | None
    settings: str
    place: Path = field(default_factory=Path, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    class_counts: Mapping[str, Mapping[str, int]] | None = field(default=None, repr=False)
    cases: TestCases = field(default_factory=TestCases, repr=False)
    remarks: tuple[str, ...] = ()

    @property
    def score(self) -> float | None:
        """The main score of the best weights: mean Dice over the labels NCR, ED and ET, or accuracy."""
        return self.best.get(MAIN_SCORE[self.task])

    @property
    def compute_hours(self) -> float | None:
        """GPU-hours, or process-hours on CPUs."""
        if self.gpu_hours or self.seconds is None:
            return self.gpu_hours
        return self.seconds / 3600 * (self.gpus or 1)


def mean_of(runs: Sequence[RunResult], name: str) -> float | None:
    """Return the mean of a field over runs, such as `seconds`; None if a run does not have it."""
    values = [getattr(run, name) for run in runs]
    return sum(values) / len(values) if values and None not in values else None

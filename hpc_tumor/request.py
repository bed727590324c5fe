"""What was asked for on the command line → the experiments that it means, each checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from hpc_tumor.config import Experiment
from hpc_tumor.errors import DataError, UsageError, unknown
from hpc_tumor.models import MODELS
from hpc_tumor.settings import JobFile, merge, parse_assignments, read_job_file, resolve

DEBUG_BATCHES = 3  # of each part, where --debug is not told otherwise


@dataclass(frozen=True)
class Request:
    """What `submit` was asked for. Several models or seeds, or a job file with a sweep, are many runs."""

    job: str | None = None
    models: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    stores: list[Path] = field(default_factory=list)
    gpus: int | None = None
    assignments: list[str] = field(default_factory=list)
    debug: bool = False


def make_experiments(request: Request) -> list[Experiment]:
    """The runs that `request` means: every combination of its models and seeds and of the job file's sweep.

    Raises:
        UsageError: an unknown model or setting, a value that is not allowed, or no model or no store named.
        DataError: a store that is not there, is of another task, or was written by a newer version.
    """
    for name in request.models:
        if name not in MODELS:
            raise unknown("model", name, MODELS)
    if request.gpus is not None and request.gpus < 1:
        raise UsageError(f"--gpus {request.gpus}: a run has at least 1, and where there is no GPU, 1 CPU process.")
    job = read_job_file(Path(request.job)) if request.job else None
    combinations = list(_combinations(request, job))
    tasks = _Tasks()
    stores = _by_task(request.stores, tasks)
    where = str(job.path) if job else "settings"
    experiments: dict[str, Experiment] = {}
    for flags, variant in combinations:
        experiment = resolve(_with_store(flags, variant, stores), variant, where=where)
        _check(experiment, tasks)
        experiments[experiment.model_dump_json()] = experiment  # a variable may have made two of them equal
    return list(experiments.values())


def _combinations(request: Request, job: JobFile | None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(settings from flags, settings from the job file) of each run. A flag takes the place of the file's own list."""
    given = parse_assignments(request.assignments)
    if request.gpus is not None:
        given = merge(given, {"hardware": {"gpus": request.gpus}})
    if request.debug:
        given = merge({"recipe": {"epochs": 1}, "limit_batches": DEBUG_BATCHES, "hardware": {"gpus": 1}}, given)
    models = [{"model": {"name": name}} for name in request.models] or [{}]
    seeds = [{"seed": seed} for seed in request.seeds] or [{}]
    for model, seed in product(models, seeds):
        flags = merge(given, model, seed)
        if job is None:
            yield flags, {}
            continue
        kept = {key: values for key, values in job.sweep.items() if not _holds(flags, key)}
        for variant in job.model_copy(update={"sweep": kept}).variants():
            yield flags, variant


def _holds(values: dict[str, Any], dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


class _Tasks(dict[Path, str]):
    """What each store is for; every store is opened once."""

    def __missing__(self, store: Path) -> str:
        from hpc_tumor.data.store import Store  # here, because --help of the commands should not wait for TensorStore

        self[store] = Store.open(store).task
        return self[store]


def _by_task(stores: list[Path], tasks: _Tasks) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for store in stores:
        task = tasks[store]
        if task in found:
            raise UsageError(f"--data {found[task]} and --data {store} are both for {task}: name one store per task.")
        found[task] = store.resolve()
    return found


def _with_store(flags: dict[str, Any], job: dict[str, Any], stores: dict[str, Path]) -> dict[str, Any]:
    """`flags` with the store that fits the network's task, where stores were named."""
    if not stores:
        return flags
    name = merge(job, flags).get("model", {}).get("name")
    if name not in MODELS:
        return merge(flags, {"data": {"store": str(next(iter(stores.values())))}})
    task = MODELS[name].task
    if task not in stores:
        named = ", ".join(f"{store} is for {kind}" for kind, store in stores.items())
        raise DataError(f"{name} does {task}, but {named}. Name a store for {task} with --data.")
    return merge(flags, {"data": {"store": str(stores[task])}})


def _check(experiment: Experiment, tasks: _Tasks) -> None:
    """Refuse what the settings alone cannot see."""
    name, store = experiment.model.name, experiment.data.store
    if (task := tasks[store]) != experiment.task:
        raise DataError(f"{name} does {experiment.task}, but {store} is for {task}. Name another store with --data.")
    if experiment.model.filters is not None and "filters" not in MODELS[name].options:
        takers = ", ".join(key for key, spec in MODELS.items() if "filters" in spec.options)
        raise UsageError(f"model.filters = {experiment.model.filters} is not for {name}: only {takers} take it.")

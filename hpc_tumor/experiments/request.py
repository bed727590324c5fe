"""Requests of the command line → the experiments that they mean, each checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_tumor.config import CLASSIFICATION_SIZE, Experiment
from hpc_tumor.console import out
from hpc_tumor.errors import DataError, UsageError, unknown
from hpc_tumor.experiments.job_file import JobFile, read_job_file
from hpc_tumor.models import MODELS
from hpc_tumor.settings import holds, merge, parse_assignments, resolve
from hpc_tumor.training.outputs.mirror import check_tensorboard

if TYPE_CHECKING:
    from hpc_tumor.data.store.store import Store

DEBUG_BATCHES = 3  # of each part, where --debug is not told otherwise
# One short epoch, in which a warm-up of several could not end.
_DEBUG = {"recipe": {"epochs": 1, "warmup_epochs": 0}, "limit_batches": DEBUG_BATCHES, "hardware": {"gpus": 1}}
# The same batch in each step is the same for the network, too, and nothing keeps it from learning it by heart.
_OVERFIT = {"recipe": {"augment": False, "schedule": "none", "warmup_epochs": 0, "weight_decay": 0.0}}


@dataclass(frozen=True)
class Request:
    """Request of `submit`. Several models or seeds, or a job file with a sweep, are many runs."""

    job: str | None = None
    models: Sequence[str] = ()
    seeds: Sequence[int] = ()
    stores: Sequence[Path] = ()
    gpus: int | None = None
    assignments: Sequence[str] = ()
    debug: bool = False
    accumulate: int | None = None
    profile: bool = False
    overfit: int | None = None

    def flag(self, name: str) -> str:
        """The option by which the setting of that dotted name was given."""
        return next((option for option, (key, _) in self._given.items() if key == name), "--set")

    @property
    def _given(self) -> dict[str, tuple[str, Any]]:
        """Those of the options that were given."""
        return {
            option: (name, value)
            for option, (name, value) in self._options.items()
            if value or (value == 0 and value is not False)  # 0 was given
        }

    @property
    def _options(self) -> dict[str, tuple[str, Any]]:
        """Option → the setting that it stands for, and what was given."""
        return {
            "--model": ("model.name", self.models),
            "--data": ("data.store", self.stores),
            "--seed": ("seed", self.seeds),
            "--gpus": ("hardware.gpus", self.gpus),
            "--accumulate": ("hardware.accumulate", self.accumulate),
            "--profile": ("profile", self.profile),
        }

    def assigned(self) -> dict[str, Any]:
        """Settings of --set and of the options that each stand for one setting of all runs.

        Raises UsageError where --set and an option of its own give the same setting.
        """
        values = parse_assignments(self.assignments)
        for option, (name, value) in self._given.items():
            if holds(values, name):
                raise UsageError(f"{option} and --set {name} say the same thing twice: leave out one of them.")
            section, _, last = name.rpartition(".")
            if not isinstance(value, Sequence):
                values = merge(values, {section: {last: value}} if section else {last: value})
        return values


def make_experiments(request: Request) -> list[Experiment]:
    """The runs that `request` means: every combination of its models and seeds and of the job file's sweep.

    Raises:
        UsageError: an unknown model or setting, a value that is not allowed, or no model or no store named.
        DataError: a store that is not there, is of another task, was written by a newer version, or cannot be split.
    """
    for name in request.models:
        if name not in MODELS:
            raise unknown("model", name, MODELS)
    if request.gpus is not None and request.gpus < 1:
        raise UsageError(f"--gpus {request.gpus}: a run has at least 1, and where there is no GPU, 1 CPU process.")
    job = read_job_file(Path(request.job)) if request.job else None
    combinations = list(_combinations(request, job))
    opened = Stores()
    stores = _by_task(request.stores, opened)
    where = str(job.path) if job else "job file"
    experiments: dict[str, Experiment] = {}
    for flags, variant in combinations:
        experiment = resolve(_with_store(flags, variant, stores), variant, where, request.flag)
        check_experiment(experiment, opened)
        experiments[experiment.model_dump_json()] = experiment  # a variable may have made two of them equal
    return list(experiments.values())


def _combinations(request: Request, job: JobFile | None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(settings from flags, settings from the job file) of each run. A flag takes the place of the file's own list."""
    given = merge(_DEBUG if request.debug else {}, request.assigned(), _OVERFIT if request.overfit else {})
    models = [{"model": {"name": name}} for name in request.models] or [{}]
    seeds = [{"seed": seed} for seed in request.seeds] or [{}]
    for model, seed in product(models, seeds):
        flags = merge(given, model, seed)
        if job is None:
            yield flags, {}
            continue
        for variant in job.without({name for name in job.many if holds(flags, name)}).variants():
            yield flags, variant


class Stores(dict[Path, "Store"]):
    """The stores, each opened once, and which splits of them were tried."""

    def __init__(self) -> None:
        self.split: set[tuple[Any, ...]] = set()

    def __missing__(self, path: Path) -> Store:
        from hpc_tumor.data.store.store import (
            Store,  # here, because --help of the commands should not wait for what reads stores
        )

        self[path] = self[path.resolve()] = store = Store.open(path)
        return store


def _by_task(paths: Sequence[Path], opened: Stores) -> dict[str, Path]:
    stores: dict[str, Path] = {}
    for path in paths:
        task = opened[path].task
        if task in stores:
            raise UsageError(f"--data {stores[task]} and --data {path} are both for {task}: name one store per task.")
        stores[task] = path.resolve()
    return stores


def _with_store(flags: dict[str, Any], job: dict[str, Any], stores: dict[str, Path]) -> dict[str, Any]:
    """`flags` with the store that fits the network's task, where stores were named."""
    if not stores:
        return flags
    name = merge(job, flags).get("model", {}).get("name")
    if not isinstance(name, str) or name not in MODELS:
        return merge(flags, {"data": {"store": str(next(iter(stores.values())))}})
    task = MODELS[name].task
    if task not in stores:
        named = ", ".join(f"{store} is for {kind}" for kind, store in stores.items())
        raise DataError(f"{name} does {task}, but {named}. Name a store for {task} with --data.")
    return merge(flags, {"data": {"store": str(stores[task])}})


def check_experiment(experiment: Experiment, opened: Stores) -> None:
    """Refuse what the settings alone cannot see: a store that is not there, or does not fit them; a split as well.

    Raises UsageError or DataError.
    """
    name, path = experiment.model.name, experiment.data.store
    store = opened[path]
    if store.task != experiment.task:
        raise DataError(
            f"{name} does {experiment.task}, but {path} is for {store.task}. Name another store with --data."
        )
    if experiment.model.filters is not None and "filters" not in MODELS[name].options:
        takers = ", ".join(key for key, spec in MODELS.items() if "filters" in spec.options)
        raise UsageError(f"model.filters = {experiment.model.filters} is not for {name}: only {takers} take it.")
    if experiment.tensorboard:
        check_tensorboard()
    for side in _sides(experiment, store):
        MODELS[name].check_image_size(side)
    if experiment.task == "classification":
        _check_classes(store)
        experiment.check_classes(store.classes)
    _check_split(experiment, store, opened)


def _check_classes(store: Store) -> None:
    """Refuse a store whose images are all of one class."""
    there = sorted({store.classes[label] for label in store.label.tolist()})
    if len(there) < 2:
        raise DataError(
            f"{store.path} holds images of one class only, {', '.join(there)}: there is nothing to tell apart. Convert"
            " a folder that holds a folder for each class."
        )


def _sides(experiment: Experiment, store: Store) -> set[int]:
    """Pixels per side that the network will be given."""
    if experiment.data.image_size:
        return {experiment.data.image_size}
    return {CLASSIFICATION_SIZE} if experiment.task == "classification" else set(store.slice_shape)


def _check_split(experiment: Experiment, store: Store, opened: Stores) -> None:
    """Refuse a store that has too little for the split, as training would."""
    from hpc_tumor.data.splits.splits import split_of

    key = (experiment.split, experiment.data)
    if key not in opened.split:
        split = split_of(experiment, store)
        opened.split.add(key)
        if split.leaks:
            out.warning(f"split {split.kind} of {store.path.name} leaks: every score of it is too good, and marked so")


def experiment_for(store: Store, assignments: Sequence[str]) -> Experiment:
    """The settings that a run on `store` would have, for what is of its data alone. Raises UsageError as --set does."""
    name = next(name for name, spec in MODELS.items() if spec.task == store.task)
    given = merge(parse_assignments(assignments), {"data": {"store": str(store.path)}})
    return resolve(merge({"model": {"name": name}}, given), {}, "job file")

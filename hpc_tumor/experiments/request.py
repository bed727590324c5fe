"""Turn the options of `submit` into experiments, and check each of them before anything is written."""

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

DEBUG_BATCHES = 3  # default of --debug, per split part
_DEBUG = {"recipe": {"epochs": 1, "warmup_epochs": 0}, "limit_batches": DEBUG_BATCHES, "hardware": {"gpus": 1}}
# Without augmentation and regularisation, the network can memorise the batch.
_OVERFIT = {"recipe": {"augment": False, "schedule": "none", "warmup_epochs": 0, "weight_decay": 0.0}}


@dataclass(frozen=True)
class Request:
    """Options of `submit`; several models, seeds or a job file with a sweep make several runs."""

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
        """Return the option that set the setting `name`, which is dotted."""
        return next((option for option, (key, _) in self._given.items() if key == name), "--set")

    @property
    def _given(self) -> dict[str, tuple[str, Any]]:
        """Return the options that were given; 0 is a value, False is not."""
        return {
            option: (name, value)
            for option, (name, value) in self._options.items()
            if value or (value == 0 and value is not False)
        }

    @property
    def _options(self) -> dict[str, tuple[str, Any]]:
        """Map options to the names and values of their settings."""
        return {
            "--model": ("model.name", self.models),
            "--data": ("data.store", self.stores),
            "--seed": ("seed", self.seeds),
            "--gpus": ("hardware.gpus", self.gpus),
            "--accumulate": ("hardware.accumulate", self.accumulate),
            "--profile": ("profile", self.profile),
        }

    def assigned(self) -> dict[str, Any]:
        """Return the settings of --set and of options with a single value.

        Raises UsageError if --set and an option set the same setting.
        """
        values = parse_assignments(self.assignments)
        for option, (name, value) in self._given.items():
            if holds(values, name):
                raise UsageError(f"{option} and --set {name} set the same thing: leave out one of them.")
            section, _, last = name.rpartition(".")
            if not isinstance(value, Sequence):
                values = merge(values, {section: {last: value}} if section else {last: value})
        return values


def make_experiments(request: Request) -> list[Experiment]:
    """Return an experiment for every combination of models, seeds and the job file's values.

    Raises:
        UsageError: a model, setting or value is invalid, or the model or the store is missing.
        DataError: a store does not exist, has another task or a newer schema, or cannot be split.
    """
    for name in request.models:
        if name not in MODELS:
            raise unknown("model", name, MODELS)
    if request.gpus is not None and request.gpus < 1:
        raise UsageError(f"--gpus {request.gpus}: choose at least 1 (without GPUs, one CPU process).")
    job = read_job_file(Path(request.job)) if request.job else None
    combinations = list(_combinations(request, job))
    opened = Stores()
    stores = _by_task(request.stores, opened)
    where = str(job.path) if job else "job file"
    experiments: dict[str, Experiment] = {}
    for flags, variant in combinations:
        experiment = resolve(_with_store(flags, variant, stores), variant, where, request.flag)
        check_experiment(experiment, opened)
        experiments[experiment.model_dump_json()] = experiment  # an environment variable may make two of them equal
    return list(experiments.values())


def _combinations(request: Request, job: JobFile | None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the settings from options and from the job file of each run; options override varied settings."""
    assigned = merge(_DEBUG if request.debug else {}, request.assigned(), _OVERFIT if request.overfit else {})
    models = [{"model": {"name": name}} for name in request.models] or [{}]
    seeds = [{"seed": seed} for seed in request.seeds] or [{}]
    for model, seed in product(models, seeds):
        flags = merge(assigned, model, seed)
        if job is None:
            yield flags, {}
            continue
        for variant in job.without({name for name in job.varied if holds(flags, name)}).variants():
            yield flags, variant


class Stores(dict[Path, "Store"]):
    """Cache of opened stores and of splits that were checked."""

    def __init__(self) -> None:
        self.split: set[tuple[Any, ...]] = set()

    def __missing__(self, path: Path) -> Store:
        from hpc_tumor.data.store.store import Store  # slow to import, and not needed for --help

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
    """Return `flags` with the store for the network's task, if stores were given."""
    if not stores:
        return flags
    name = merge(job, flags).get("model", {}).get("name")
    if not isinstance(name, str) or name not in MODELS:
        return merge(flags, {"data": {"store": str(next(iter(stores.values())))}})
    task = MODELS[name].task
    if task not in stores:
        available = ", ".join(f"{store} is for {other}" for other, store in stores.items())
        raise DataError(f"{name} does {task}, but {available}. Name a store for {task} with --data.")
    return merge(flags, {"data": {"store": str(stores[task])}})


def check_experiment(experiment: Experiment, opened: Stores) -> None:
    """Raise UsageError or DataError if the store or its split does not fit the settings."""
    name, path = experiment.model.name, experiment.data.store
    store = opened[path]
    if store.task != experiment.task:
        raise DataError(
            f"{name} does {experiment.task}, but {path} is for {store.task}. Name another store with --data."
        )
    if experiment.model.filters is not None and "filters" not in MODELS[name].options:
        others = ", ".join(key for key, spec in MODELS.items() if "filters" in spec.options)
        raise UsageError(f"model.filters = {experiment.model.filters} is not for {name}, only for {others}.")
    if experiment.tensorboard:
        check_tensorboard()
    for side in _sides(experiment, store):
        MODELS[name].check_image_size(side)
    if experiment.task == "classification":
        _check_classes(store)
        experiment.check_classes(store.classes)
    _check_split(experiment, store, opened)


def _check_classes(store: Store) -> None:
    classes = sorted({store.classes[label] for label in store.label.tolist()})
    if len(classes) < 2:
        raise DataError(
            f"{store.path} holds images of one class only ({', '.join(classes)}): classification needs at least two."
            " Convert a folder with a subfolder per class."
        )


def _sides(experiment: Experiment, store: Store) -> set[int]:
    """Return the possible sides of the network's input, in pixels."""
    if experiment.data.image_size:
        return {experiment.data.image_size}
    return {CLASSIFICATION_SIZE} if experiment.task == "classification" else set(store.slice_shape)


def _check_split(experiment: Experiment, store: Store, opened: Stores) -> None:
    """Raise DataError if the store has too few cases for the split."""
    from hpc_tumor.data.splits.splits import split_of

    key = (experiment.split, experiment.data)
    if key not in opened.split:
        split = split_of(experiment, store)
        opened.split.add(key)
        if split.leaks:
            found = f" ({split.leakage.describe()})" if split.leakage else ""
            out.warning(
                f"split {split.kind} of {store.path.name} leaks{found}: its scores are inflated, and marked as such"
            )


def experiment_for(store: Store, assignments: Sequence[str]) -> Experiment:
    """Return an experiment on `store` for its data settings; the model is any of its task. Raises UsageError."""
    name = next(name for name, spec in MODELS.items() if spec.task == store.task)
    values = merge(parse_assignments(assignments), {"data": {"store": str(store.path)}})
    return resolve(merge({"model": {"name": name}}, values), {}, "job file")

"""Which runs a comparison is of, what makes one entry of it, and in which order entries stand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpc_tumor.errors import UsageError, unknown
from hpc_tumor.models import MODELS
from hpc_tumor.results.compare.measures import OF_IMAGES, OF_STRUCTURES, measure
from hpc_tumor.results.read.run_result import mean_of
from hpc_tumor.settings import full_name
from hpc_tumor.vocabulary import STRUCTURES

if TYPE_CHECKING:
    from hpc_tumor.results.compare.entries import Entry

# What entries may be sorted by beside their name and scores, by the fields of runs.
_COSTS = {
    "parameters": "parameters", "gflop": "gflop_per_sample", "gpu-hours": "compute_hours", "time": "seconds",
    "memory": "peak_memory_gb", "samples/s": "samples_per_second",
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """What the user asks of a comparison.

    Attributes:
        models: networks; none: all of them.
        where: settings by dotted name, with the value that a run must have, as it was typed.
        by: settings that make an entry; none: all of them.
        sort: a score, name, parameters, gflop, gpu-hours, time, memory or samples/s; None: in the order of the models.
    """

    models: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    by: tuple[str, ...] = ()
    sort: str | None = None

    def matches(self, model: str | None, config: Mapping[str, Any]) -> bool:
        """Return True if a run of this network with these settings is among those asked for."""
        if self.models and model not in self.models:
            return False
        return all(_same(config.get(name), value) for name, value in self.where)

    def order(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """The entries in the order asked for; those without a value last."""
        if self.sort is None:
            return entries
        return tuple(sorted(entries, key=self._key))

    def _key(self, entry: Entry) -> tuple[bool, Any]:
        assert self.sort is not None
        if self.sort == "name":
            return False, entry.name
        if self.sort in _COSTS:
            value, largest_first = mean_of(entry.runs, _COSTS[self.sort]), self.sort == "samples/s"
            value = value * len(entry.runs) if value is not None and self.sort == "gpu-hours" else value
        else:
            value, largest_first = entry.value(self.sort), measure(entry.task, self.sort).larger_is_better
        return value is None, (0 if value is None else -value if largest_first else value)


EVERYTHING = Selection()


def make_selection(models: Sequence[str], where: Sequence[str], by: Sequence[str], sort: str | None) -> Selection:
    """What was typed, checked.

    Raises:
        UsageError: there is no such network, setting or score, or a wish has no value.
    """
    for model in models:
        if model not in MODELS:
            raise unknown("model", model, MODELS)
    wanted = []
    for text in where:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--where {text!r} has no value: write it as KEY=VALUE, for example loss=dice-bce.")
        wanted.append((full_name(key.strip(), "--where"), value.strip()))
    known = {*OF_IMAGES, *OF_STRUCTURES, *_COSTS, "name", "loss"}
    parts = {f"{score}_{part}" for score in OF_STRUCTURES for part in STRUCTURES}
    of_class = sort is not None and sort.partition("_")[0] in ("precision", "recall", "f1", "auroc")
    if sort is not None and sort not in known | parts and not of_class:
        raise UsageError(f"--sort: {unknown('score', sort, sorted(known | parts))}")
    return Selection(tuple(models), tuple(wanted), tuple(full_name(key, "--by") for key in by), sort)


def _same(value: Any, typed: str) -> bool:
    """Return True where a run's value is the one typed. The run's own decides: of texts, `1e5` is not `100000.0`."""
    try:
        wanted = json.loads(typed)
    except ValueError:
        wanted = typed
    if isinstance(value, str) and not isinstance(wanted, str):
        return value == typed
    return bool(value == wanted) or str(value) == typed

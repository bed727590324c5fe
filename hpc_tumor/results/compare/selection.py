"""Selection of runs, grouping into entries, and order of entries, as given on the command line."""

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

_COSTS = {  # sort key → field of a run
    "parameters": "parameters", "gflop": "gflop_per_sample", "gpu-hours": "compute_hours", "time": "seconds",
    "memory": "peak_memory_gb", "samples/s": "samples_per_second",
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Selection, grouping and order of a comparison.

    Attributes:
        models: networks; empty: all.
        where: dotted names of settings with their required values, as typed.
        by: settings that distinguish entries; empty: all.
        sort: a score, name, parameters, gflop, gpu-hours, time, memory or samples/s; None: order of the models.
    """

    models: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    by: tuple[str, ...] = ()
    sort: str | None = None

    def matches(self, model: str | None, config: Mapping[str, Any]) -> bool:
        """Return True if a run of this network with these settings is selected."""
        if self.models and model not in self.models:
            return False
        return all(_same(config.get(name), value) for name, value in self.where)

    def order(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Sort the entries; those without a value come last."""
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
    """Parse and check the options of a selection.

    Raises:
        UsageError: unknown network, setting or score, or a condition without a value.
    """
    for model in models:
        if model not in MODELS:
            raise unknown("model", model, MODELS)
    conditions = []
    for text in where:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--where {text!r} has no value: write it as KEY=VALUE, for example loss=dice-bce.")
        conditions.append((full_name(key.strip(), "--where"), value.strip()))
    known = {*OF_IMAGES, *OF_STRUCTURES, *_COSTS, "name", "loss"}
    parts = {f"{score}_{part}" for score in OF_STRUCTURES for part in STRUCTURES}
    of_class = sort is not None and sort.partition("_")[0] in ("precision", "recall", "f1", "auroc")
    if sort is not None and sort not in known | parts and not of_class:
        raise UsageError(f"--sort: {unknown('score', sort, sorted(known | parts))}")
    return Selection(tuple(models), tuple(conditions), tuple(full_name(key, "--by") for key in by), sort)


def _same(value: Any, text: str) -> bool:
    """Return True if a run's value equals the typed one; strings are compared as text: `1e5` is not `100000.0`."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = text
    if isinstance(value, str) and not isinstance(parsed, str):
        return value == text
    return bool(value == parsed) or str(value) == text

"""Job files: settings for many runs, with every combination of some values, or values drawn at random."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hpc_tumor.errors import UsageError
from hpc_tumor.settings import full_name, merge, put, read_toml, settings_in, shipped
from hpc_tumor.validation import Settings, build


class Range(Settings):
    """Range that a value is drawn from, evenly or evenly in the logarithm: whole numbers where both ends are."""

    low: int | float
    high: int | float
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high or (self.scale == "log" and self.low <= 0):
            raise ValueError(f"low = {self.low!r} is not below high = {self.high!r}, or not above 0 for a log scale")
        return self

    def draw(self, source: random.Random) -> int | float:
        """A value, of four digits, so that it can be read and typed again."""
        if self.scale == "log":
            value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = source.uniform(self.low, self.high + isinstance(self.low, int) * isinstance(self.high, int))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return min(self.high, int(value))
        return min(max(float(f"{value:.4g}"), self.low), self.high)


class Draws(Settings):
    """Runs that get values drawn at random, from ranges or lists; the same seed draws the same."""

    runs: int = Field(ge=1, le=10_000)
    seed: int = 0
    values: dict[str, Range | list[Any]]

    def draw(self, number: int) -> dict[str, Any]:
        """The values of one of the runs: they stay the same when settings are added or more runs asked for."""
        drawn = {}
        for name, choices in self.values.items():
            source = random.Random(f"{self.seed} {number} {name}")
            drawn[name] = choices.draw(source) if isinstance(choices, Range) else source.choice(choices)
        return drawn


class JobFile(Settings):
    """A job file: settings for all of its runs, the `sweep` of values that makes many of them, and values drawn."""

    path: Path
    settings: dict[str, Any]
    sweep: dict[str, list[Any]]
    random: Draws | None = None

    def without(self, names: set[str]) -> JobFile:
        """The file without what it says of these settings in `[sweep]` and `[random]`: something goes before it."""
        sweep = {name: values for name, values in self.sweep.items() if name not in names}
        if self.random is None:
            return self.model_copy(update={"sweep": sweep})
        values = {name: choices for name, choices in self.random.values.items() if name not in names}
        draws = self.random.model_copy(update={"values": values}) if values else None
        return self.model_copy(update={"sweep": sweep, "random": draws})

    @property
    def many(self) -> set[str]:
        """The settings that the file gives many values."""
        return {*self.sweep, *(self.random.values if self.random else ())}

    def variants(self) -> Iterator[dict[str, Any]]:
        """The settings of each run: one per combination of the sweep's values, and of each draw."""
        draws = [self.random.draw(number) for number in range(self.random.runs)] if self.random else [{}]
        for combination in product(*self.sweep.values()):
            for drawn in draws:
                values = merge(self.settings)
                for key, value in [*zip(self.sweep, combination, strict=True), *drawn.items()]:
                    put(values, key, value)
                yield values


def read_job_file(path: Path) -> JobFile:
    """A job file, by its path or by the name of a preset.

    `[sweep]` maps settings to lists of values; `[random]` has the number of `runs`, a `seed`, and settings with a list
    or a range, `{ low = 1e-5, high = 1e-2, scale = "log" }`.
    """
    if (
        not path.exists()
        and (shipped("jobs") / f"{path.stem}.toml").is_file()
        and path.parent in (Path(), Path("jobs"))
    ):
        path = shipped("jobs") / f"{path.stem}.toml"
    contents = read_toml(path)
    sweep, drawn = _section(contents, "sweep", path), _section(contents, "random", path)
    lists: dict[str, list[Any]] = {}
    for key, values in sweep.items():
        name = _name(key, f"{path}, sweep")
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: sweep.{key} = {values!r} is not a list of values; write {key} = [..., ...].")
        lists[name] = values
    draws = _draws(drawn, path) if drawn else None
    if draws is not None and (twice := sorted(lists.keys() & draws.values.keys())):
        raise UsageError(f"{path}: {twice[0]} stands in [sweep] and in [random]: leave it out of one of them.")
    return JobFile(path=path, settings=settings_in(contents, str(path)), sweep=lists, random=draws)


def _draws(drawn: dict[str, Any], path: Path) -> Draws:
    where = f"{path}, random"
    values: dict[str, Any] = {}
    # `runs` is how many; a `seed` that is a number is where the draws begin, another one is a setting like the rest.
    own: dict[str, Any] = {
        key: drawn[key] for key in ("runs", "seed") if key in drawn and not isinstance(drawn[key], list | dict)
    }
    for key, choices in drawn.items():
        if key in own:
            continue
        if isinstance(choices, list) and choices:
            values[_name(key, where)] = choices
        elif isinstance(choices, dict):
            values[_name(key, where)] = build(Range, choices, where=f"{where}, {key}")
        else:
            raise UsageError(
                f"{path}: random.{key} = {choices!r} is neither a list nor a range; write {key} = [..., ...], or"
                f" {key} = {{ low = ..., high = ... }}."
            )
    if not values:
        raise UsageError(
            f"{path}: [random] names no setting to draw: write learning_rate = {{ low = ..., high = ... }}."
        )
    return build(Draws, {**own, "values": values}, where=where)


def _name(key: str, where: str) -> str:
    return "model.name" if key == "model" else full_name(key, where)


def _section(contents: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = contents.pop(name, {})
    if not isinstance(section, dict):
        raise UsageError(f"{path}: {name} = {section!r} is not a section: write [{name}] with its values below it.")
    return section

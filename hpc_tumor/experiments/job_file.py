"""Read job files: settings for many runs, with grids of values or random draws."""

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
    """Range for uniform or log-uniform draws; if both ends are integers, so are the values."""

    low: int | float
    high: int | float
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high or (self.scale == "log" and self.low <= 0):
            raise ValueError(f"low = {self.low!r} is not below high = {self.high!r}, or not above 0 for a log scale")
        return self

    def draw(self, source: random.Random) -> int | float:
        """Draw a value, rounded to four significant digits."""
        if self.scale == "log":
            value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = source.uniform(self.low, self.high + isinstance(self.low, int) * isinstance(self.high, int))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return min(self.high, int(value))
        return min(max(float(f"{value:.4g}"), self.low), self.high)


class Draws(Settings):
    """Random search over ranges and lists; the same seed gives the same values."""

    runs: int = Field(ge=1, le=10_000)
    seed: int = 0
    values: dict[str, Range | list[Any]]

    def draw(self, number: int) -> dict[str, Any]:
        """Draw the values of run `number`; adding settings or runs does not change them."""
        drawn = {}
        for name, choices in self.values.items():
            source = random.Random(f"{self.seed} {number} {name}")
            drawn[name] = choices.draw(source) if isinstance(choices, Range) else source.choice(choices)
        return drawn


class JobFile(Settings):
    """Settings for all runs of a job file, its `sweep` over lists of values, and its random draws."""

    path: Path
    settings: dict[str, Any]
    sweep: dict[str, list[Any]]
    random: Draws | None = None

    def without(self, names: set[str]) -> JobFile:
        """Return the job file without these settings in `[sweep]` and `[random]`, which options override."""
        sweep = {name: values for name, values in self.sweep.items() if name not in names}
        if self.random is None:
            return self.model_copy(update={"sweep": sweep})
        values = {name: choices for name, choices in self.random.values.items() if name not in names}
        draws = self.random.model_copy(update={"values": values}) if values else None
        return self.model_copy(update={"sweep": sweep, "random": draws})

    @property
    def varied(self) -> set[str]:
        """Names of the settings in `[sweep]` and `[random]`."""
        return {*self.sweep, *(self.random.values if self.random else ())}

    def variants(self) -> Iterator[dict[str, Any]]:
        """Yield the settings of each run: every combination of the sweep's values with every draw."""
        draws = [self.random.draw(number) for number in range(self.random.runs)] if self.random else [{}]
        for combination in product(*self.sweep.values()):
            for drawn in draws:
                values = merge(self.settings)
                for key, value in [*zip(self.sweep, combination, strict=True), *drawn.items()]:
                    put(values, key, value)
                yield values


def read_job_file(path: Path) -> JobFile:
    """Read a job file by its path, or a preset by its name.

    `[sweep]` maps settings to lists of values. `[random]` has the number of `runs`, a `seed`, and maps settings to
    lists or ranges such as `{ low = 1e-5, high = 1e-2, scale = "log" }`.
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
    if draws is not None and (both := sorted(lists.keys() & draws.values.keys())):
        raise UsageError(f"{path}: {both[0]} is in both [sweep] and [random]: remove it from one of them.")
    return JobFile(path=path, settings=settings_in(contents, str(path)), sweep=lists, random=draws)


def _draws(drawn: dict[str, Any], path: Path) -> Draws:
    where = f"{path}, random"
    values: dict[str, Any] = {}
    # `runs` and a scalar `seed` configure the draws; a list or range for `seed` draws the setting of that name.
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
            f"{path}: [random] has no settings to draw: add, say, learning_rate = {{ low = ..., high = ... }}."
        )
    return build(Draws, {**own, "values": values}, where=where)


def _name(key: str, where: str) -> str:
    return "model.name" if key == "model" else full_name(key, where)


def _section(contents: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = contents.pop(name, {})
    if not isinstance(section, dict):
        raise UsageError(f"{path}: {name} = {section!r} is not a section: write [{name}] with its values below.")
    return section

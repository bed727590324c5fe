"""Mappings whose values are computed on first access: tables show few of the scores of a thousand runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LazyMapping(Mapping[str, Value], Generic[Value]):
    """A mapping of names to the results of functions, in their order; listing the names computes nothing."""

    def __init__(self, make: Mapping[str, Callable[[], Value]]):
        self._make = dict(make)
        self._made: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        if name not in self._made:
            self._made[name] = self._make[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._make

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


class LazyPresent(Mapping[str, Value], Generic[Value]):
    """A `LazyMapping` without the names whose functions return None; iterating computes all values."""

    def __init__(self, make: Mapping[str, Callable[[], Value | None]]):
        self._all: LazyMapping[Value | None] = LazyMapping(make)

    def __getitem__(self, name: str) -> Value:
        value = self._all[name]
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name, value in self._all.items() if value is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

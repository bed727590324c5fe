"""Values by name, each of them worked out when it is first asked for: of a thousand runs, a table shows a little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

Value = TypeVar("Value")


class WhenAsked(Mapping[str, Value], Generic[Value]):
    """A mapping of what functions give, in the order of their names; a name whose function gives None is not in it."""

    def __init__(self, make: Mapping[str, Callable[[], Value | None]]):
        self._make = dict(make)
        self._made: dict[str, Value | None] = {}

    def __getitem__(self, name: str) -> Value:
        if name not in self._made:
            self._made[name] = self._make[name]()
        value = self._made[name]
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._make if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

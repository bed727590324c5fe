"""Reads under way: handed to threads, waited for where their result is wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

_LEAST_PER_THREAD = 4  # handing over fewer costs more than it gains
T = TypeVar("T", covariant=True)


class Pending(Generic[T]):
    """A read that was started. `result()` waits for it; DataError where the store is damaged."""

    def __init__(self, value: T, parts: Sequence[Future[None]]):
        self._value = value
        self._parts = parts

    def result(self) -> T:
        for part in self._parts:
            part.result()
        return self._value


class ReadingThreads:
    """Threads that read and unpack. They are started with the first read, and anew in a process that was forked."""

    def __init__(self, count: int):
        self._count = count
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def start(self, read: Callable[..., None], n: int, *items: Any) -> list[Future[None]]:
        """Call `read(*items)`, each of length `n`, a portion to each thread that it pays to share them with."""
        if self._pool is None or self._pool[0] != os.getpid():  # threads do not live on in a forked process
            self._pool = os.getpid(), ThreadPoolExecutor(self._count, thread_name_prefix="store")
        portion = max(_LEAST_PER_THREAD, -(-n // self._count))
        submit = self._pool[1].submit
        return [submit(read, *(item[start : start + portion] for item in items)) for start in range(0, n, portion)]

"""Handle termination signals like Ctrl-C, or delay them while a submitted job is being recorded."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from hpc_tumor.console import out
from hpc_tumor.errors import HpcTumorError

# Ctrl-C, `kill` and a closed terminal or ssh connection; by default, the last two end Python without cleanup.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise KeyboardInterrupt for each of these signals, so that cleanup runs."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Delay the KeyboardInterrupt for a signal until the block ends.

    Yields a function that raises it earlier, to be called where that is safe. The first signal prints a line on
    standard error. An error of the block is printed if the KeyboardInterrupt replaces it.
    """
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if not received:
            with suppress(OSError):  # not through sys.stderr, which is not reentrant
                os.write(2, b"interrupted: recording or cancelling the jobs being submitted first\n")
        received.append(number)

    def raise_if_interrupted() -> None:
        if received:
            raise KeyboardInterrupt

    try:
        with _handled(note):
            yield raise_if_interrupted
    except HpcTumorError as error:
        if received:
            out.error(str(error))
            raise KeyboardInterrupt from error
        raise
    raise_if_interrupted()


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Install `handler`, in the main thread only, for the signals that are not ignored (as under nohup)."""
    numbers = ENDING if threading.current_thread() is threading.main_thread() else ()
    before = {number: old for number in numbers if (old := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)

"""Signals that ask a command to end: taken as Ctrl-C is, or held back where a job must be written down first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from hpc_tumor.console import out
from hpc_tumor.errors import HpcTumorError

# Ctrl-C, `kill`, and a terminal or an ssh connection that closes: by default, the last two end Python on the spot.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise KeyboardInterrupt for each of these signals, so that what is to be done at the end is done."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Let the block end first: the KeyboardInterrupt for a signal that came meanwhile is raised behind it.

    Gives a function that raises it earlier, at a place where nothing is lost by that. The first signal is answered with
    a line on standard error. An error that ends the block is printed where the KeyboardInterrupt takes its place.
    """
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if not came:
            with suppress(OSError):  # below Python's own streams, which may be at work at this moment
                os.write(2, b"interrupted: what is being submitted is written down first, or taken back\n")
        came.append(number)

    def interrupt_if_asked() -> None:
        if came:
            raise KeyboardInterrupt

    try:
        with _handled(note):
            yield interrupt_if_asked
    except HpcTumorError as error:
        if came:
            out.error(str(error))  # nobody else will say it
            raise KeyboardInterrupt from error
        raise
    interrupt_if_asked()


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let `handler` take these signals, but for those that are ignored, as under nohup; the main thread alone may."""
    numbers = ENDING if threading.current_thread() is threading.main_thread() else ()
    before = {number: old for number in numbers if (old := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)

"""End a conversion at its k-th change on disk, for each k or for a sample, and run it again.

Run as `python killing.py KIND WHICH SOURCE CHANGED FOLDER HOW=WHAT ...`. WHAT is `kill` (kill -9 right before the
change), or an error such as ENOSPC that all changes raise from there on; of several, `ENOSPC,EIO`, each is used in
turn. WHICH is `all`, or `sample`: one change of each kind, that is of each system call in each function. KIND is
`patients`, `images`, or `several`: images of two sources, of which an update gets one. Prints the number of ended
conversions. It is a separate process because it forks and must not have opened a store before.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from earlier_stores import make_schema_1
from raw_samples import tree

import hpc_tumor
from hpc_tumor.data.convert.prepare import inspect_sources, prepare_dataset, prepare_sources
from hpc_tumor.data.patients.recognise import recognise
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.cheng import ChengReader
from hpc_tumor.errors import DataError

CALLS = ("rename", "replace", "mkdir", "rmdir", "unlink", "fsync", "ftruncate")
CLEAR = r"[^\n]* could not be stored in |[^\n]* cannot be (created|locked)"
REFUSED = 3 << 8  # exit code 3, as os.waitpid gives it
PACKAGE = Path(hpc_tumor.__file__).parent
SHIFTS = 5  # plans in a row that take different steps of a kind


def before_each_change(act: Callable[[str], None]) -> None:
    """Make this process call `act` with the name of the system call right before each of its changes on disk.

    Opening a file for writing counts: `act` is called when the file exists but is empty.
    """

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            act(name)
            return real(*args, **kwargs)

        return call

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        made = real_open(file, mode, *args, **kwargs)
        if any(sign in mode for sign in "wxa"):
            act("open")
        return made

    for name in CALLS:
        setattr(os, name, watched(name, getattr(os, name)))
    real_open = io.open
    io.open = builtins.open = opened  # type: ignore[assignment]


def arm(step: int, what: str) -> None:
    """Make this process end at, or the disk fail from, its `step`-th change on disk."""
    left = [step]

    def fail(_: str) -> None:
        left[0] -= 1
        if left[0] == 0 and what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if left[0] <= 0:
            raise OSError(getattr(errno, what), os.strerror(getattr(errno, what)))

    before_each_change(fail)


def write_kinds(path: Path) -> None:
    """Make this process write the kind of each of its changes on disk to a file, a line each."""
    file = path.open("a", encoding="utf-8")

    def write(call: str) -> None:
        frame = sys._getframe(2)  # noqa: SLF001 - the only way in Python
        while frame.f_back and PACKAGE not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        print(call, frame.f_code.co_filename, frame.f_code.co_qualname, file=file, flush=True)

    before_each_change(write)


def one_of_each(kinds: list[str], shift: int) -> list[int]:
    """Return steps, counted from 1, one of each kind; `shift` selects among the steps of a kind."""
    steps: dict[str, list[int]] = {}
    for step, kind in enumerate(kinds, 1):
        steps.setdefault(kind, []).append(step)
    return sorted(same[(shift * len(same) // SHIFTS) % len(same)] for same in steps.values())


def in_child(action: Callable[[], object]) -> int:
    """Return the exit status of a fork that does this: 0, REFUSED, or other."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 0
    try:
        action()
    except DataError as error:
        code = 3 if re.match(CLEAR, str(error)) else 1
        if code == 1:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def main(kind: str, which: str, source: Path, changed: Path, folder: Path, plans: list[tuple[str, str]]) -> None:
    readers = {"masks": ChengReader(size=32), "patients": BraTSReader()}
    reader = readers.get(kind, BrainMRIReader(size=32))
    fresh, old, store, kinds = (folder / name for name in ("fresh", "old", "store", "kinds"))

    alone = False  # of two sources, only one is given in updates

    def convert(store: Path, source: Path, overwrite: bool = False, before: Callable[[], None] = lambda: None) -> None:
        before()
        if kind == "several":
            given = [f"raw={source}"] if alone and store != fresh else [f"raw={source}", f"kept={folder / 'kept'}"]
            prepare_sources(inspect_sources(given, store), store, workers=1, overwrite=overwrite)
        else:
            prepare_dataset(reader, source, store, workers=1, overwrite=overwrite)

    def begin(how: str) -> None:
        shutil.rmtree(store, ignore_errors=True)
        if how != "new":
            shutil.copytree(old, store)
        if how == "earlier":
            make_schema_1(store)

    if kind != "patients":
        recognise(*np.random.default_rng(0).integers(0, 255, (2, 9, 32, 32), np.uint8))  # makes what the forks inherit
    assert in_child(partial(convert, old, source)) == 0
    ended = 0
    for shift, (how, what) in enumerate(plans):
        alone = how == "update"
        final, overwrite = source if how == "new" else changed, how == "overwrite"
        shutil.rmtree(fresh, ignore_errors=True)
        assert in_child(partial(convert, fresh, final)) == 0
        wanted = tree(fresh)
        begin(how)
        kinds.unlink(missing_ok=True)
        assert in_child(partial(convert, store, final, overwrite, partial(write_kinds, kinds))) == 0
        assert tree(store) == wanted, how
        steps = kinds.read_text(encoding="utf-8").splitlines()
        for number, step in enumerate(one_of_each(steps, shift) if which == "sample" else range(1, len(steps) + 1)):
            fault = what.split(",")[number % (what.count(",") + 1)]
            where = f"{how}, {fault} at step {step} of {len(steps)}, {steps[step - 1]}"
            begin(how)
            outcome = in_child(partial(convert, store, final, overwrite, partial(arm, step, fault)))
            if outcome == 0 and fault != "kill":  # the next run removes its leftovers, such as its lock
                left = {name: data for name, data in tree(store).items() if not name.startswith(".")}
                assert left == wanted, f"{where}: {sorted(dict(left.items() ^ wanted.items()))}"
            else:
                assert outcome == (signal.SIGKILL if fault == "kill" else REFUSED), f"{where}: ended with {outcome}"
            # A conversion started with --overwrite may be completed without it.
            assert in_child(partial(convert, store, final, overwrite and step % 2 == 0)) == 0, where
            found = tree(store)
            assert found == wanted, f"{where}: {sorted(dict(found.items() ^ wanted.items()))}"
            ended += 1
    print(ended)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(Path, sys.argv[3:6]), [tuple(plan.split("=")) for plan in sys.argv[6:]])  # type: ignore

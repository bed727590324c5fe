"""A conversion that is ended at its k-th change on the disk, k = 1, 2, … to its end, and then run again.

Run as `python killing.py KIND HOW WHAT EVERY SOURCE CHANGED FOLDER`. WHAT is `kill` (kill -9, right before the change),
or an error such as ENOSPC that all changes give from there on. Prints how many steps there were. A process of its own,
as it forks and must not have opened a store before.
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

from raw_samples import tree

from hpc_tumor.data.brain_mri import BrainMRIReader
from hpc_tumor.data.brats import BraTSReader
from hpc_tumor.data.prepare import prepare_dataset
from hpc_tumor.errors import DataError

CALLS = ("rename", "replace", "mkdir", "rmdir", "unlink", "fsync", "ftruncate")
CLEAR = r"[^\n]* could not be stored in |[^\n]* cannot be (made|locked)"
REFUSED = 3 << 8  # exit code 3, as os.waitpid gives it


def arm(step: int, what: str) -> None:
    """Let this process end at, or the disk fail from, its `step`-th change on the disk; files opened to write count."""
    left = [step]

    def fail() -> None:
        left[0] -= 1
        if left[0] == 0 and what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if left[0] <= 0:
            raise OSError(getattr(errno, what), os.strerror(getattr(errno, what)))

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            fail()
            return real(*args, **kwargs)

        return call

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        made = real_open(file, mode, *args, **kwargs)
        if any(sign in mode for sign in "wxa"):
            fail()  # it is there, but empty
        return made

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    real_open = io.open
    io.open = builtins.open = opened  # type: ignore[assignment]


def in_child(action: Callable[[], object]) -> int:
    """How a fork ends that does this: 0, REFUSED, or else."""
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


def main(kind: str, how: str, what: str, every: int, source: Path, changed: Path, folder: Path) -> None:
    reader = BrainMRIReader(size=32) if kind == "images" else BraTSReader()
    fresh, old, store = folder / "fresh", folder / "old", folder / "store"
    final = source if how == "new" else changed

    def convert(
        store: Path, what: Path = final, overwrite: bool = False, before: Callable[[], None] = lambda: None
    ) -> None:
        before()
        prepare_dataset(reader, what, store, workers=1, overwrite=overwrite)

    assert in_child(partial(convert, fresh)) == 0
    if how != "new":
        assert in_child(partial(convert, old, source)) == 0
    wanted, step, outcome = tree(fresh), 1, -1
    while outcome != 0:
        shutil.rmtree(store, ignore_errors=True)
        if how != "new":
            shutil.copytree(old, store)
        outcome = in_child(partial(convert, store, overwrite=how == "overwrite", before=partial(arm, step, what)))
        assert outcome in (0, signal.SIGKILL if what == "kill" else REFUSED), f"step {step} ended with {outcome}"
        # What --overwrite began, the same command without it may end.
        again = how == "overwrite" and step % 2 == 0
        assert in_child(partial(convert, store, overwrite=again)) == 0, f"step {step}: {sorted(tree(store))}"
        found = tree(store)
        assert found == wanted, f"step {step}: {sorted(dict(found.items() ^ wanted.items()))}"
        step += every
    print(step - every)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), *(Path(name) for name in sys.argv[5:]))  # type: ignore[arg-type]

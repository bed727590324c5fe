"""One task of a converting job array: `python -m hpc_tumor.cluster.convert.task FOLDER`, started by command.py.

It takes units from the queue until none is left, with as many workers as its CPUs and memory allow. If the conversion
no longer exists, it ends silently.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from hpc_tumor.cluster.convert.work_queue import WorkQueue
from hpc_tumor.data.case import Case
from hpc_tumor.data.convert.case import Unit
from hpc_tumor.data.convert.target import STAGING, ConversionError, StorageError, remove
from hpc_tumor.data.convert.vanished import why_unreadable
from hpc_tumor.data.convert.workers import convert_locally, default_workers
from hpc_tumor.errors import HpcTumorError

MORE_MEMORY = "request more per task with --memory"


def work(queue: WorkQueue, owner: str, workers: int) -> None:
    """Convert units until none is left. Raises ConversionError if the source or the results cannot be accessed."""
    directory, units = queue.read_units()
    with suppress(OSError):
        os.chdir(directory)  # paths may be relative to it
    cases: dict[str | None, list[Case]] = {}  # by source: the disk of one may be lost
    for case in (case for unit in units for case in unit.cases):
        cases.setdefault(case.meta.get("source"), []).append(case)

    def taken() -> Iterator[Unit]:
        for number in queue.take(owner):
            # The owner in the name: a unit reassigned to another task is not written by two.
            yield replace(units[number], staged=queue.path.parent / f"{number}@{owner}", threads=1)

    with closing(convert_locally(taken(), workers, more_memory=MORE_MEMORY, apart=True)) as results:
        for result in results:
            failed = {case for case, _ in result.failed}
            for source in {case.meta.get("source") for case in result.unit.cases if case.id in failed}:
                if lost := why_unreadable(cases[source], failed):
                    raise ConversionError(f"the source cannot be read on {socket.gethostname()}: {lost}.")
            queue.publish(int(result.unit.staged.name.partition("@")[0]), result)


def main(arguments: list[str]) -> int:
    """Run the task; exit code 0 also if the conversion no longer exists."""
    queue = WorkQueue(Path(arguments[0]))
    staging = queue.path.parent
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID") or "0"
    task, restart = os.environ.get("SLURM_ARRAY_TASK_ID", "0"), os.environ.get("SLURM_RESTART_COUNT", "0")
    owner = f"{job}_{task}.{restart}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs the cleanup below
    try:
        with queue.mark_working(owner):
            work(queue, owner, default_workers())
    except (HpcTumorError, OSError) as error:
        if queue.path.exists():
            queue.give_up(owner, str(error), fatal=isinstance(error, StorageError))
            print(f"error: {error}", file=sys.stderr)
            return 1
    finally:
        if not queue.path.exists() and staging.name.startswith(STAGING):
            remove(staging)  # recreated by what this task was writing when it was removed
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

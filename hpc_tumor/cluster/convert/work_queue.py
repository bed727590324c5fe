"""Work queue between a conversion and its array tasks: files in a folder that all nodes see.

    units.pkl              the units to convert, by number
    todo/NUMBER            a unit to take, by renaming it to
    doing/NUMBER@OWNER     (a rename succeeds for one task only)
    done/NUMBER.json       rows of the result, and where its files are staged
    failed/OWNER.json      why a task gave up
    working/OWNER          a task that has started; renamed when it ends, unless it is killed, to
    ended/OWNER
    beat                   touched by the conversion while it runs

The folder is part of the conversion's staging folder and disappears with it. An owner is `JOB_TASK.RESTART`.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_tumor.data.convert.case import Unit, UnitResult
from hpc_tumor.run_dir import read_json
from hpc_tumor.system.atomic import write_json

BEAT_LIMIT = 600.0  # seconds without a beat after which the conversion is considered dead


@dataclass(frozen=True)
class WorkQueue:
    """The queue of one conversion."""

    path: Path

    @classmethod
    def create(cls, path: Path, units: Sequence[Unit]) -> WorkQueue:
        """Create the folder with `units` to do."""
        for name in ("todo", "doing", "done", "failed", "working", "ended", "logs"):
            (path / name).mkdir(parents=True)
        (path / "units.pkl").write_bytes(pickle.dumps((str(Path.cwd()), list(units))))
        for number in range(len(units)):
            (path / "todo" / str(number)).touch()
        queue = cls(path)
        queue.beat()
        return queue

    def beat(self) -> None:
        """Mark the conversion as alive."""
        (self.path / "beat").touch()

    # Used by tasks

    def read_units(self) -> tuple[str, list[Unit]]:
        """Return the working directory of the conversion, and its units."""
        directory, units = pickle.loads((self.path / "units.pkl").read_bytes())
        return directory, units

    @contextmanager
    def mark_working(self, owner: str) -> Iterator[None]:
        """Mark a task as working during the block. Raises FileNotFoundError if the conversion no longer exists."""
        mark = self.path / "working" / owner
        mark.touch()
        try:
            yield
        finally:
            with suppress(OSError):
                mark.rename(self.path / "ended" / owner)

    def take(self, owner: str) -> Iterator[int]:
        """Yield unit numbers, taking each when it is requested, until none is left or the conversion is dead."""
        while numbers := self._open_numbers():
            for number in numbers:
                taken = self.path / "doing" / f"{number}@{owner}"
                try:
                    (self.path / "todo" / number).rename(taken)
                    os.utime(taken)  # by the clock of the file system, as the beat's
                    if taken.stat().st_mtime - (self.path / "beat").stat().st_mtime > BEAT_LIMIT:
                        return
                except FileNotFoundError:  # another task was faster, or the conversion no longer exists
                    continue
                yield int(number)

    def _open_numbers(self) -> list[str]:
        try:
            return sorted((entry.name for entry in (self.path / "todo").iterdir()), key=int)
        except FileNotFoundError:
            return []

    def publish(self, number: int, result: UnitResult) -> None:
        """Publish a result. Raises FileNotFoundError if the conversion no longer exists."""
        value = {
            "staged": result.unit.staged.name, "rows": result.rows, "failed": result.failed,
            "uncertain": result.uncertain,
        }  # fmt: skip
        write_json(self.path / "done" / f"{number}.json", value)

    def give_up(self, owner: str, reason: str, *, fatal: bool) -> None:
        """Record why this task ends early; `fatal` if every other task would fail too."""
        with suppress(OSError):
            write_json(self.path / "failed" / f"{owner}.json", {"reason": reason, "fatal": fatal})

    # Used by the conversion

    def owners(self) -> dict[int, str]:
        """Return the owner of each unit in progress, by unit number."""
        pairs = (entry.name.split("@", 1) for entry in (self.path / "doing").iterdir())
        return {int(number): owner for number, owner in pairs}

    def working(self, job: str) -> set[str]:
        """Return the tasks of an array that have started and not ended, including killed ones."""
        return {path.name for path in (self.path / "working").glob(f"{job}_*")}

    def begun(self, job: str) -> set[str]:
        """Return the tasks of an array that have started; a restarted task counts once."""
        ended = {path.name for path in (self.path / "ended").glob(f"{job}_*")}
        return {owner.partition(".")[0] for owner in self.working(job) | ended}

    def results(self, units: Sequence[Unit]) -> Iterator[tuple[int, UnitResult]]:
        """Yield new results, each once, after moving it to its unit's staging path."""
        for file in sorted((self.path / "done").glob("*.json")):
            number, value = int(file.stem), read_json(file)
            if value is None:  # not yet visible on this machine
                continue
            unit, rows = units[number], value["rows"]
            if rows:
                (unit.staged.parent / value["staged"]).rename(unit.staged)
            self.finish(number)
            failed = [(case, reason) for case, reason in value["failed"]]
            yield number, UnitResult(unit, rows, failed, value["uncertain"])

    def finish(self, number: int) -> None:
        """Remove a unit from the queue, even if a task is working on it."""
        for file in (self.path / "done" / f"{number}.json", self.path / "todo" / str(number)):
            file.unlink(missing_ok=True)
        for file in (self.path / "doing").glob(f"{number}@*"):
            file.unlink(missing_ok=True)

    def put_back(self, number: int, owner: str) -> None:
        """Return the unit of a lost owner to the queue."""
        with suppress(FileNotFoundError):
            (self.path / "doing" / f"{number}@{owner}").rename(self.path / "todo" / str(number))

    def failures(self) -> dict[str, dict[str, Any]]:
        """Return the records of tasks that gave up, by owner."""
        files = sorted((self.path / "failed").glob("*.json"))
        return {file.stem: value for file in files if (value := read_json(file)) is not None}

    def last_line(self) -> str:
        """Return the last line of the first task log that has one."""
        for log in sorted((self.path / "logs").iterdir()):
            if text := log.read_text(encoding="utf-8", errors="replace").strip():
                return text.split("\n")[-1].strip()
        return ""

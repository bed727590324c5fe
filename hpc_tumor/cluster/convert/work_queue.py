"""Exchange of units between a conversion and the array tasks that work for it: files in a folder that all nodes see.

    units.pkl              what there is to convert, by number
    todo/NUMBER            to be taken, by renaming it to
    doing/NUMBER@OWNER     which one task alone can do
    done/NUMBER.json       rows of the result, and where the task left it
    failed/OWNER.json      why a task gave up
    working/OWNER          a task that has begun, renamed when it ends, unless it was killed, to
    ended/OWNER
    beat                   touched by the conversion as long as it lives

The folder is part of the conversion's staging folder: where it is gone, so is the conversion, and nothing is wanted
any more. An owner is `JOB_TASK.RESTART`.
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

BEAT_LIMIT = 600.0  # seconds without a beat after which the conversion is taken to be gone


@dataclass(frozen=True)
class WorkQueue:
    """The folder of one conversion."""

    path: Path

    @classmethod
    def create(cls, path: Path, units: Sequence[Unit]) -> WorkQueue:
        """A new folder with these units to be done."""
        for name in ("todo", "doing", "done", "failed", "working", "ended", "logs"):
            (path / name).mkdir(parents=True)
        (path / "units.pkl").write_bytes(pickle.dumps((str(Path.cwd()), list(units))))
        for number in range(len(units)):
            (path / "todo" / str(number)).touch()
        queue = cls(path)
        queue.beat()
        return queue

    def beat(self) -> None:
        """Say that the conversion lives."""
        (self.path / "beat").touch()

    # What a task does

    def read_units(self) -> tuple[str, list[Unit]]:
        """The working directory of the conversion, and its units."""
        directory, units = pickle.loads((self.path / "units.pkl").read_bytes())
        return directory, units

    @contextmanager
    def worked_on(self, owner: str) -> Iterator[None]:
        """Say that a task works here, until the block ends. FileNotFoundError where the conversion is gone."""
        mark = self.path / "working" / owner
        mark.touch()
        try:
            yield
        finally:
            with suppress(OSError):
                mark.rename(self.path / "ended" / owner)

    def take(self, owner: str) -> Iterator[int]:
        """Numbers of units, each taken when it is asked for; ends where none is left or the conversion is gone."""
        while numbers := self._open_numbers():
            for number in numbers:
                mine = self.path / "doing" / f"{number}@{owner}"
                try:
                    (self.path / "todo" / number).rename(mine)
                    os.utime(mine)  # by the clock of the file system, as the beat's
                    if mine.stat().st_mtime - (self.path / "beat").stat().st_mtime > BEAT_LIMIT:
                        return
                except FileNotFoundError:  # another task was faster, or the conversion is gone
                    continue
                yield int(number)

    def _open_numbers(self) -> list[str]:
        try:
            return sorted((entry.name for entry in (self.path / "todo").iterdir()), key=int)
        except FileNotFoundError:
            return []

    def publish(self, number: int, result: UnitResult) -> None:
        """Hand a result over. FileNotFoundError where the conversion is gone."""
        value = {
            "staged": result.unit.staged.name, "rows": result.rows, "failed": result.failed,
            "uncertain": result.uncertain,
        }  # fmt: skip
        write_json(self.path / "done" / f"{number}.json", value)

    def give_up(self, owner: str, reason: str, *, fatal: bool) -> None:
        """Say why this task ends early; `fatal` where no other one would fare better."""
        with suppress(OSError):
            write_json(self.path / "failed" / f"{owner}.json", {"reason": reason, "fatal": fatal})

    # What the conversion does

    def owners(self) -> dict[int, str]:
        """Owner at work on each unit, by its number."""
        pairs = (entry.name.split("@", 1) for entry in (self.path / "doing").iterdir())
        return {int(number): owner for number, owner in pairs}

    def working(self, job: str) -> set[str]:
        """Tasks of an array that have begun and not ended; those that were killed among them."""
        return {path.name for path in (self.path / "working").glob(f"{job}_*")}

    def begun(self, job: str) -> set[str]:
        """Tasks of an array that have begun, each once however often."""
        ended = {path.name for path in (self.path / "ended").glob(f"{job}_*")}
        return {owner.partition(".")[0] for owner in self.working(job) | ended}

    def results(self, units: Sequence[Unit]) -> Iterator[tuple[int, UnitResult]]:
        """New results, each given once and moved to where its unit is to be staged."""
        for file in sorted((self.path / "done").glob("*.json")):
            number, value = int(file.stem), read_json(file)
            if value is None:  # not yet visible from here
                continue
            unit, rows = units[number], value["rows"]
            if rows:
                (unit.staged.parent / value["staged"]).rename(unit.staged)
            self.finish(number)
            failed = [(case, reason) for case, reason in value["failed"]]
            yield number, UnitResult(unit, rows, failed, value["uncertain"])

    def finish(self, number: int) -> None:
        """Take a unit off the queue, whoever is at work on it."""
        for file in (self.path / "done" / f"{number}.json", self.path / "todo" / str(number)):
            file.unlink(missing_ok=True)
        for file in (self.path / "doing").glob(f"{number}@*"):
            file.unlink(missing_ok=True)

    def put_back(self, number: int, owner: str) -> None:
        """Let another task take a unit whose owner was lost."""
        with suppress(FileNotFoundError):
            (self.path / "doing" / f"{number}@{owner}").rename(self.path / "todo" / str(number))

    def failures(self) -> dict[str, dict[str, Any]]:
        """Reasons why tasks gave up, by owner."""
        files = sorted((self.path / "failed").glob("*.json"))
        return {file.stem: value for file in files if (value := read_json(file)) is not None}

    def last_words(self) -> str:
        """The last line that a task printed."""
        for log in sorted((self.path / "logs").iterdir()):
            if lines := log.read_text(encoding="utf-8", errors="replace").split("\n"):
                said = [line.strip() for line in lines if line.strip()]
                if said:
                    return said[-1]
        return ""

"""The runs that a command is about, by the folder and the names that were typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hpc_tumor.errors import UsageError

if TYPE_CHECKING:
    from hpc_tumor.run_dir import RunDir


def folder_of_runs(runs: Path | None) -> Path:
    from hpc_tumor.settings import user_default

    return runs or Path(user_default("runs") or "runs")


def say_no_runs(folder: Path) -> str:
    """Message on a folder without runs: one that holds other things may not be the one that was meant."""
    return f"no runs in {folder}" if any(folder.iterdir()) else f"no runs in {folder} yet"


def find(runs: Path | None, patterns: list[str] | None) -> list[RunDir]:
    from hpc_tumor.run_dir import find_runs

    return find_runs(folder_of_runs(runs), patterns)


def find_named(runs: Path | None, patterns: list[str]) -> tuple[list[RunDir], bool]:
    """The runs, and whether each pattern stands for one of them, so that nobody need be asked which are meant."""
    named = "all" not in patterns and not any(sign in pattern for pattern in patterns for sign in "*?[")
    return find(runs, patterns), named and all(len(find(runs, [pattern])) == 1 for pattern in patterns)


def one_run(runs: Path | None, name: str) -> RunDir:
    """The run at this path, else the one below the folder of runs that the name fits."""
    from hpc_tumor.run_dir import RunDir, is_run

    if is_run(Path(name)):
        return RunDir(Path(name))
    found = find(runs, [name])
    if len(found) > 1:
        latest = ", ".join(item.name for item in found[-3:])
        raise UsageError(f"{name!r} fits {len(found)} runs; name one of them. The latest: {latest}.")
    return found[0]

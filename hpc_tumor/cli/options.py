"""Options that several commands share, the runs that are named by them, and how the help shows all options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from hpc_tumor.console import out
from hpc_tumor.errors import UsageError

if TYPE_CHECKING:
    from hpc_tumor.run_dir import RunDir

WHERE, HOW, LOOK, SHOW = "Where", "How", "Debugging and profiling", "Output"


class Command(TyperCommand):
    """Command whose help shows the words of its options, such as NAME or GB, and no types of Python."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _in_words(super().get_params(ctx))


class Group(TyperGroup):
    """The same for a group of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _in_words(super().get_params(ctx))


def _in_words(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperArgument):  # its name stands before it
            parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
        elif isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = " "
    return parameters


def set_json(value: bool) -> bool:
    out.json = out.json or value
    return value


def set_verbose(value: bool) -> bool:
    out.verbose = out.verbose or value
    return value


def show_version(value: bool) -> None:
    if value:
        from hpc_tumor import __version__

        out.text(__version__)
        raise typer.Exit


def complete_models() -> list[str]:
    from hpc_tumor.models import MODELS

    return list(MODELS)


def complete_clusters() -> list[str]:
    from hpc_tumor.cluster.describe.profiles import LOCAL, profile_files

    return [LOCAL, *profile_files()]


def complete_editions() -> list[str]:
    from hpc_tumor.data.editions import EDITIONS

    return list(EDITIONS)


def complete_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the runs in the folder that is named on the line, newest first; read from their names alone."""
    import os

    folder = Path(ctx.params.get("runs") or os.environ.get("HPC_TUMOR_RUNS") or "runs")
    try:
        names = sorted((entry.name for entry in os.scandir(folder) if entry.name[:1].isdigit()), reverse=True)
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def complete_states(incomplete: str) -> list[str]:
    from hpc_tumor.cli.views.runs import STATE_NAMES

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{state}" for state in STATE_NAMES if state.startswith(last)]


def flag(*names: str, text: str, panel: str | None = None, callback: Callable[[bool], bool] | None = None) -> Any:
    """An option that is given or not."""
    return typer.Option(*names, help=text, rich_help_panel=panel, callback=callback)


def option(*names: str, value: str, text: str, panel: str | None = None, **more: Any) -> Any:
    """An option with a value, which the help calls `value`."""
    return typer.Option(*names, metavar=value, help=text, rich_help_panel=panel, **more)


def argument(value: str, text: str, **more: Any) -> Any:
    """An argument that the help calls `value`."""
    return typer.Argument(metavar=value, help=text, **more)


Json = Annotated[bool, flag("--json", text="The result as JSON on standard output.", panel=SHOW, callback=set_json)]
Verbose = Annotated[bool, flag("--verbose", text="Errors with their traceback.", panel=SHOW, callback=set_verbose)]
Overwrite = Annotated[bool, flag("--overwrite", text="Replace what is there already.")]
StoreToRead = Annotated[Path, argument("STORE", "Store made by prepare-data; it is only read.")]
SplitSettings = Annotated[
    list[str] | None,
    option("--set", value="KEY=VALUE", text="Setting of the split, such as fold=0, split_seed=1 or split_file=FILE."),
]
Cluster = Annotated[
    str | None,
    option(
        "--cluster", value="PROFILE", panel=WHERE, autocompletion=complete_clusters,
        text="Cluster profile, else your default; local: this machine, without SLURM.",
    ),
]  # fmt: skip
Account = Annotated[str | None, option("--account", value="NAME", text="SLURM account to charge.", panel=WHERE)]
Partition = Annotated[str | None, option("--partition", value="NAME", text="SLURM partition.", panel=WHERE)]
Networks = Annotated[
    list[str] | None,
    option("--model", "-m", value="NAME", autocompletion=complete_models, text="Only runs of this network."),
]
Runs = Annotated[Path | None, option("--runs", value="DIR", text="Folder of the run directories; ./runs.")]
State = Annotated[
    str | None,
    option("--state", value="STATE,...", autocompletion=complete_states, text="failed, running …; open or ended."),
]
Yes = Annotated[bool, flag("--yes", "-y", text="Do not ask; without a terminal, several runs need it.")]
OneRun = Annotated[
    str,
    argument("RUN", "Run directory, or a run by name, network or part of a name.", autocompletion=complete_runs),
]
Patterns = Annotated[
    list[str],
    argument("RUN", "Runs by name, glob, network or part of a name; or 'all'.", autocompletion=complete_runs),
]
AnyPatterns = Annotated[
    list[str] | None,
    argument("RUN", "Runs by name, glob, network or part of a name; else all.", autocompletion=complete_runs),
]


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

"""Options and arguments shared by commands, selection of runs by name, and the layout of --help."""

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

CLUSTER, EXECUTION, DEBUGGING, OUTPUT = "Cluster", "Execution", "Debugging and profiling", "Output"


class Command(TyperCommand):
    """Command whose help shows metavars such as NAME or GB instead of Python types."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_types(super().get_params(ctx))


class Group(TyperGroup):
    """Group of commands with the same help as `Command`."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_types(super().get_params(ctx))


def _hide_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperArgument):
            parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
            if parameter.required:  # typer writes {NAME}
                usage = [f"{parameter.metavar}{'...' if parameter.nargs != 1 else ''}"]
                parameter.get_usage_pieces = lambda ctx, usage=usage: usage  # type: ignore[method-assign,misc]
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
    """Return the names of the runs in the folder given on the command line, newest first, without opening them."""
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
    """Declare an option without a value."""
    return typer.Option(*names, help=text, rich_help_panel=panel, callback=callback)


def option(*names: str, value: str, text: str, panel: str | None = None, **more: Any) -> Any:
    """Declare an option with a value, shown as `value` in the help."""
    return typer.Option(*names, metavar=value, help=text, rich_help_panel=panel, **more)


def argument(value: str, text: str, **more: Any) -> Any:
    """Declare an argument, shown as `value` in the help."""
    return typer.Argument(metavar=value, help=text, **more)


Json = Annotated[bool, flag("--json", text="Print the result as JSON.", panel=OUTPUT, callback=set_json)]
Verbose = Annotated[bool, flag("--verbose", text="Print tracebacks of errors.", panel=OUTPUT, callback=set_verbose)]
Overwrite = Annotated[bool, flag("--overwrite", text="Replace existing output.")]
StoreToRead = Annotated[Path, argument("STORE", "Store made by prepare-data; it is not changed.")]
SplitSettings = Annotated[
    list[str] | None,
    option("--set", value="KEY=VALUE", text="Setting of the split, such as fold=0, split_seed=1 or split_file=FILE."),
]
Edition = Annotated[
    str | None,
    option(
        "--labels", value="EDITION", autocompletion=complete_editions, text="Edition of label numbers: brats-2023 …"
    ),
]
Cluster = Annotated[
    str | None,
    option(
        "--cluster", value="PROFILE", panel=CLUSTER, autocompletion=complete_clusters,
        text="Cluster profile; local: this machine without SLURM.",
    ),
]  # fmt: skip
Account = Annotated[str | None, option("--account", value="NAME", text="SLURM account to charge.", panel=CLUSTER)]
Partition = Annotated[str | None, option("--partition", value="NAME", text="SLURM partition.", panel=CLUSTER)]
Walltime = Annotated[
    str | None,
    option("--time", "--walltime", value="TIME", panel=CLUSTER, text="Time limit: 02:00:00, 90m or 2h."),
]
Memory = Annotated[float | None, option("--memory", value="GB", panel=CLUSTER, text="Main memory per node.")]
Networks = Annotated[
    list[str] | None,
    option("--model", "-m", value="NAME", autocompletion=complete_models, text="Only runs of this network."),
]
Runs = Annotated[Path | None, option("--runs", value="DIR", text="Folder of the run directories; default: ./runs.")]
State = Annotated[
    str | None,
    option(
        "--state", value="STATE,...", autocompletion=complete_states, text="States: failed, running …; open or ended."
    ),
]
Yes = Annotated[bool, flag("--yes", "-y", text="Do not ask for confirmation.")]
OneRun = Annotated[
    str,
    argument("RUN", "Run directory, or a run by name, network or part of its name.", autocompletion=complete_runs),
]
Patterns = Annotated[
    list[str],
    argument("RUN", "Runs by name, glob, network or part of the name, or 'all'.", autocompletion=complete_runs),
]
AnyPatterns = Annotated[
    list[str] | None,
    argument("RUN", "Runs by name, glob, network or part of the name; default: all.", autocompletion=complete_runs),
]


def folder_of_runs(runs: Path | None) -> Path:
    from hpc_tumor.settings import user_default

    return runs or Path(user_default("runs") or "runs")


def no_runs_message(folder: Path) -> str:
    """Return the message for a folder without runs; "yet" only if it is empty, and so probably the right one."""
    return f"no runs in {folder}" if any(folder.iterdir()) else f"no runs in {folder} yet"


def select_runs(runs: Path | None, patterns: list[str] | None) -> list[RunDir]:
    from hpc_tumor.run_dir import find_runs

    return find_runs(folder_of_runs(runs), patterns)


def select_named(runs: Path | None, patterns: list[str]) -> tuple[list[RunDir], bool]:
    """Return the matching runs, and True if each pattern names exactly one run, which needs no confirmation."""
    named = "all" not in patterns and not any(sign in pattern for pattern in patterns for sign in "*?[")
    return select_runs(runs, patterns), named and all(len(select_runs(runs, [pattern])) == 1 for pattern in patterns)


def select_run(runs: Path | None, name: str) -> RunDir:
    """Return the run at the path `name`, else the only run in the folder that matches the pattern `name`."""
    from hpc_tumor.run_dir import RunDir, is_run

    if is_run(Path(name)):
        return RunDir(Path(name))
    return only_run(select_runs(runs, [name]), name)


def only_run(matches: list[RunDir], pattern: str) -> RunDir:
    """Return the only match. Raises UsageError if there are several."""
    if len(matches) > 1:
        latest = ", ".join(run.name for run in matches[-3:])
        raise UsageError(f"{pattern!r} matches {len(matches)} runs: name one of them. The latest: {latest}.")
    return matches[0]

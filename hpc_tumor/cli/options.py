"""Options that several commands share, and what completes them on a command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hpc_tumor.console import out


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
    """An option that is given or not; the blank keeps `<bool>` out of the help."""
    return typer.Option(*names, metavar=" ", help=text, rich_help_panel=panel, callback=callback)


WHERE, HOW, LOOK, SHOW = "Where", "How", "Debugging and profiling", "Output"
Json = Annotated[bool, flag("--json", text="The result as JSON on standard output.", panel=SHOW, callback=set_json)]
Verbose = Annotated[bool, flag("--verbose", text="Errors with their traceback.", panel=SHOW, callback=set_verbose)]
Runs = Annotated[Path | None, typer.Option("--runs", metavar="DIR", help="Folder of the run directories; ./runs.")]
OneRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN", autocompletion=complete_runs, help="Run directory, or a run by name, network or part of a name."
    ),
]
Patterns = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...", autocompletion=complete_runs, help="Runs by name, glob, network or part of a name; or 'all'."
    ),
]
AnyPatterns = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]...",
        autocompletion=complete_runs,
        help="Runs by name, glob, network or part of a name; else all.",
    ),
]
State = Annotated[
    str | None,
    typer.Option(metavar="STATE,...", autocompletion=complete_states, help="failed, running …; open or ended."),
]
Yes = Annotated[bool, flag("--yes", "-y", text="Do not ask; without a terminal, several runs need it.")]

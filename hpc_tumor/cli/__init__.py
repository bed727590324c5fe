"""Register the commands and map errors to exit codes.

Each group of commands is a module that parses, calls one function and shows the result. Commands import lazily, so
that `hpc-tumor --help` is fast and only commands that convert or train load torch or zarr. Imported by __main__.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpc_tumor.cli import data, results, runs, setup, train
from hpc_tumor.cli.options import Command, Group, show_version
from hpc_tumor.console import out, prepare_streams
from hpc_tumor.errors import HpcTumorError, UsageError
from hpc_tumor.signals import interrupting
from hpc_tumor.system.atomic import is_disk_full

app = typer.Typer(
    cls=Group,
    help="Train and compare brain-tumour networks, on SLURM clusters and on one machine.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for panel, commands in {
    "Data": (data.prepare_data, data.split, data.patients, data.phantom, data.audit),
    "Runs": (train.submit, runs.status, runs.logs, runs.cancel, runs.resume, runs.rerun, runs.efficiency, runs.clean),
    "Setup": (setup.doctor,),
    "Results": (results.collect, results.predict, results.export),
}.items():
    for command in commands:
        app.command(command.__name__.replace("_", "-"), cls=Command, rich_help_panel=panel)(command)
app.add_typer(setup.clusters_app, name="clusters", rich_help_panel="Setup")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 success, 130 interrupted, else the error's (see errors.py)."""
    out.json = out.verbose = False
    prepare_streams()
    try:
        with interrupting():
            code = app(args=arguments, prog_name="hpc-tumor", standalone_mode=False)
    except typer.TyperException as error:
        out.error(error.format_message())
        path = getattr(getattr(error, "ctx", None), "command_path", "hpc-tumor")
        out.note(f"See `{path} --help`.")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        return _failed(error)
    if code == 130:
        out.note("interrupted")
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    if out.verbose:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, HpcTumorError):
        out.error(str(error))
        return error.exit_code
    if isinstance(error, OSError) and is_disk_full(error) and error.filename is None:
        out.error("cannot write the output: no space left on the device.")
        return 1
    text = " ".join(str(error).split())
    out.error(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    if not out.verbose:
        out.note("Unexpected error: run the command again with --verbose for the traceback.")
    return 1


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(
            f"the current folder is gone or cannot be read ({error.strerror}): cd to another one."
        ) from None

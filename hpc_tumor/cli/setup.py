"""Commands about the machine: cluster profiles, and what is wrong with a cluster or an installation."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hpc_tumor.cli.options import (
    Account,
    Cluster,
    Command,
    Group,
    Json,
    Overwrite,
    Partition,
    Runs,
    Verbose,
    flag,
    option,
)
from hpc_tumor.console import out

clusters_app = typer.Typer(cls=Group, invoke_without_command=True)


@clusters_app.callback()
def clusters(context: typer.Context, json: Json = False, verbose: Verbose = False) -> None:
    """List the cluster profiles that --cluster takes; `clusters discover` writes a first one.

    Example: hpc-tumor clusters
    """
    if context.invoked_subcommand:
        return
    from hpc_tumor.cli.views.conversion import clusters_table
    from hpc_tumor.cluster.describe.profiles import list_profiles

    profiles, broken = list_profiles()
    for error in broken:
        out.warning(f"left out: {error}")
    out.result(
        [profile.model_dump(mode="json") for profile in profiles], show=lambda: out.table(clusters_table(profiles))
    )


@clusters_app.command("discover", cls=Command)
def clusters_discover(
    name: Annotated[str | None, option("--name", value="NAME", text="Of the profile; else the cluster's own.")] = None,
    partition: Annotated[
        str | None,
        option("--partition", value="NAME", text="Partition to describe; else the one with the most GPUs."),
    ] = None,
    output: Annotated[
        Path | None, option("--output", "-o", value="FILE", text="Profile to write; else one among your own.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a first profile of the cluster that this runs on, from what its SLURM says.

    Example: hpc-tumor clusters discover --name mine
    """
    from hpc_tumor.cli.views.conversion import discovery_lines
    from hpc_tumor.cluster.describe.discover import discover

    found = discover(name, partition, output, overwrite)
    for note in found.notes:
        out.note(note)
    values = {"path": found.path, "profile": found.profile.model_dump(mode="json"), "notes": found.notes}
    out.result(values, show=lambda: out.pairs(discovery_lines(found)))
    chosen = shlex.quote(str(found.path) if output else found.profile.name)
    chosen += " --account NAME" if found.profile.slurm.account == "required" else ""
    out.hints("Next:", [
        (f"hpc-tumor doctor --cluster {chosen} --submit", "try it on a node"),
        (f"hpc-tumor submit --cluster {chosen} --dry-run …", "see what would be asked for"),
    ])  # fmt: skip


def doctor(
    cluster: Cluster = None,
    data: Annotated[Path | None, option("--data", "-d", value="STORE", text="Store to look at, too.")] = None,
    runs: Runs = None,
    account: Account = None,
    partition: Partition = None,
    submit: Annotated[bool, flag("--submit", text="Try it on a node as well, by a job of a minute.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check that this machine, this cluster and its GPUs are fit to run; where they are not, say what to do.

    Ends with 0 where nothing is an error, 4 where something of the cluster is, else 1. Warnings do not count.

    Example: hpc-tumor doctor --cluster orfeo-gpu --account NAME --submit
    """
    from hpc_tumor.cli.views.doctor import Waiting, show_all, summary
    from hpc_tumor.doctor.examine import examine
    from hpc_tumor.doctor.finding import as_json, exit_code

    waiting = Waiting()
    found = show_all(
        examine(
            cluster=cluster, data=data, runs=runs, account=account, partition=partition, submit=submit, say=waiting
        ),
        waiting,
    )
    out.result(as_json(found), show=lambda: out.text("\n" + summary(found)))
    if code := exit_code(found):
        raise typer.Exit(code)

"""Commands on the machine and the cluster: clusters and doctor."""

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
    """List the cluster profiles for --cluster; `clusters discover` writes a new one.

    Example: hpc-tumor clusters
    """
    if context.invoked_subcommand:
        return
    from hpc_tumor.cli.views.conversion import clusters_table
    from hpc_tumor.cluster.describe.profiles import list_profiles

    profiles, broken = list_profiles()
    for error in broken:
        out.warning(f"skipped: {error}")
    out.result(
        [profile.model_dump(mode="json") for profile in profiles], show=lambda: out.table(clusters_table(profiles))
    )


@clusters_app.command("discover", cls=Command)
def clusters_discover(
    name: Annotated[
        str | None, option("--name", value="NAME", text="Name of the profile; default: the cluster's name.")
    ] = None,
    partition: Annotated[
        str | None,
        option("--partition", value="NAME", text="SLURM partition; default: the one with the most GPUs per node."),
    ] = None,
    output: Annotated[
        Path | None, option("--output", "-o", value="FILE", text="TOML file to write; default: in your configuration.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a profile of this cluster from the information that SLURM gives.

    Example: hpc-tumor clusters discover --name mine
    """
    from hpc_tumor.cli.views.conversion import discovery_lines
    from hpc_tumor.cluster.describe.discover import discover

    discovery = discover(name, partition, output, overwrite)
    for note in discovery.notes:
        out.note(note)
    values = {"path": discovery.path, "profile": discovery.profile.model_dump(mode="json"), "notes": discovery.notes}
    out.result(values, show=lambda: out.pairs(discovery_lines(discovery)))
    options = shlex.quote(str(discovery.path) if output else discovery.profile.name)
    options += " --account NAME" if discovery.profile.slurm.account == "required" else ""
    out.hints("Next:", [
        (f"hpc-tumor doctor --cluster {options} --submit", "run a test job on a node"),
        (f"hpc-tumor submit --cluster {options} --dry-run …", "show the job script"),
    ])  # fmt: skip


def doctor(
    cluster: Cluster = None,
    data: Annotated[Path | None, option("--data", "-d", value="STORE", text="Store made by prepare-data.")] = None,
    runs: Runs = None,
    account: Account = None,
    partition: Partition = None,
    submit: Annotated[bool, flag("--submit", text="Also run a one-minute test job on a node.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check that this machine, the cluster and its GPUs are ready for training, and say how to fix problems.

    Exits with code 0 if there are only warnings, 4 if the cluster has an error, else 1.

    Example: hpc-tumor doctor --cluster orfeo-gpu --account NAME --submit
    """
    from hpc_tumor.cli.views.doctor import Waiting, show_sections, summary
    from hpc_tumor.doctor.examine import examine
    from hpc_tumor.doctor.finding import as_json, exit_code

    waiting = Waiting()
    sections = show_sections(
        examine(
            cluster=cluster, data=data, runs=runs, account=account, partition=partition, submit=submit, say=waiting
        ),
        waiting,
    )
    out.result(as_json(sections), show=lambda: out.text("\n" + summary(sections)))
    if code := exit_code(sections):
        raise typer.Exit(code)

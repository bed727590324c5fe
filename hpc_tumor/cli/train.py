"""The command that submits runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpc_tumor.cli.options import (
    HOW,
    LOOK,
    WHERE,
    Json,
    Runs,
    Verbose,
    complete_clusters,
    complete_models,
    flag,
)  # fmt: skip
from hpc_tumor.cli.run_selection import folder_of_runs


def submit(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="NAME", autocompletion=complete_models, help="Network; several: as many runs."
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", "-d", metavar="STORE", help="Store; one per task where networks of both are named."),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(metavar="N", help="Seed; several: as many runs.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as recipe.epochs=2.")
    ] = None,
    job: Annotated[
        str | None, typer.Option(metavar="FILE", help="Job file: settings, and sweeps over them, for many runs.")
    ] = None,
    runs: Runs = None,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", rich_help_panel=WHERE, help="GPUs of a run, on as many nodes as it takes."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE", autocompletion=complete_clusters, rich_help_panel=WHERE,
            help="Cluster profile; local: this machine, without SLURM.",
        ),
    ] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", rich_help_panel=WHERE, help="Who pays.")] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", rich_help_panel=WHERE, help="Partition.")] = None,
    qos: Annotated[str | None, typer.Option(metavar="NAME", rich_help_panel=WHERE, help="Quality of service.")] = None,
    constraint: Annotated[
        str | None, typer.Option(metavar="TEXT", rich_help_panel=WHERE, help="Features of the nodes.")
    ] = None,
    reservation: Annotated[
        str | None, typer.Option(metavar="NAME", rich_help_panel=WHERE, help="Reservation of nodes.")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION[=VALUE]", rich_help_panel=WHERE, help="Any further option: mail-type=END."),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            "--time", "--walltime", metavar="TIME", rich_help_panel=WHERE,
            help="02:00:00, 90m or 2h; more than a job may have is done in several.",
        ),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", rich_help_panel=WHERE, help="Of many runs, so many at the same time."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(metavar="GB", rich_help_panel=WHERE, help="Main memory on each node.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, metavar="N", rich_help_panel=WHERE, help="CPUs for each GPU.")
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=HOW, help="Split the batch into N micro-batches, to need less memory."
        ),
    ] = None,
    wait: Annotated[bool, flag("--wait", text="Stay, and show progress, to the end.", panel=HOW)] = False,
    again: Annotated[bool, flag("--again", text="Start also what is there already.", panel=HOW)] = False,
    dry_run: Annotated[bool, flag("--dry-run", text="Print plan and script; submit nothing.", panel=HOW)] = False,
    debug: Annotated[
        bool, flag("--debug", text="One process in the foreground, a few batches; breakpoint() works.", panel=LOOK)
    ] = False,
    overfit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", rich_help_panel=LOOK, help="With --debug: learn one batch, in N steps."),
    ] = None,
    anomaly: Annotated[
        bool, flag("--anomaly", text="With --debug: name the layer that gives what is not finite.", panel=LOOK)
    ] = False,
    profile: Annotated[
        bool, flag("--profile", text="Write a trace of a few steps, for ui.perfetto.dev.", panel=LOOK)
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:  # fmt: skip
    """Train: on a cluster, or on this machine. Returns at once.

    Examples:

    hpc-tumor submit --model unet --gpus 4 --data brats.zarr --cluster orfeo-gpu

    hpc-tumor submit --job jobs/comparison.toml --data brats.zarr --data brain-mri.zarr

    hpc-tumor submit --model cnn --data brain-mri.zarr --debug --overfit 200
    """
    from hpc_tumor.cli import launch, planning
    from hpc_tumor.experiments.request import Request, make_experiments

    request = Request(
        job=job, models=model or [], seeds=seed or [], stores=data or [], gpus=gpus, assignments=settings or [],
        debug=debug, accumulate=accumulate, profile=profile, overfit=bool(overfit),
    )  # fmt: skip
    job_options = {
        "walltime": time, "memory_gb": memory, "cpus": cpus, "account": account, "partition": partition, "qos": qos,
        "constraint": constraint, "reservation": reservation, "options": planning.sbatch_options(sbatch or []),
    }  # fmt: skip
    if debug:
        planning.check_debug(cluster, dry_run, wait, {**job_options, "at_once": at_once})
        launch.debug(make_experiments(request), folder_of_runs(runs), overfit, anomaly)
        return
    planning.check_no_debug(overfit, anomaly)
    # Too many GPUs are refused by the cluster's limits, before the batch that could not be divided among them.
    chosen = planning.choose_profile(cluster, gpus) if gpus else None
    experiments = make_experiments(request)
    chosen = chosen or planning.choose_profile(cluster)
    planned = planning.plan(experiments, chosen, at_once, **job_options)
    if dry_run:
        launch.show_scripts(planned, chosen, folder_of_runs(runs), again=again, at_once=at_once or 0)
    else:
        launch.submit(planned, chosen, folder_of_runs(runs), wait=wait, again=again, at_once=at_once or 0)

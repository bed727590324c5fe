"""The command that submits runs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from hpc_tumor.cli.options import (
    HOW,
    LOOK,
    WHERE,
    Account,
    Cluster,
    Json,
    Partition,
    Runs,
    Verbose,
    complete_models,
    flag,
    folder_of_runs,
    option,
)

ModelNames = Annotated[
    list[str] | None,
    option("--model", "-m", value="NAME", autocompletion=complete_models, text="Network; several: as many runs."),
]
Stores = Annotated[
    list[Path] | None,
    option("--data", "-d", value="STORE", text="Store; one per task where networks of both are named."),
]
Seeds = Annotated[list[int] | None, option("--seed", value="N", text="Seed; several: as many runs.")]
Assignments = Annotated[
    list[str] | None, option("--set", value="KEY=VALUE", text="Any setting, such as recipe.epochs=2.")
]
JobFile = Annotated[
    str | None, option("--job", value="FILE", text="Job file: settings, and sweeps over them, for many runs.")
]
Gpus = Annotated[
    int | None, option("--gpus", value="N", panel=WHERE, text="GPUs of a run, on as many nodes as it takes.")
]
Qos = Annotated[str | None, option("--qos", value="NAME", panel=WHERE, text="Quality of service.")]
Constraint = Annotated[str | None, option("--constraint", value="FEATURE", panel=WHERE, text="Features of the nodes.")]
Reservation = Annotated[str | None, option("--reservation", value="NAME", panel=WHERE, text="Reservation of nodes.")]
SbatchOptions = Annotated[
    list[str] | None,
    option("--sbatch", value="OPTION[=VALUE]", panel=WHERE, text="Any further option: mail-type=END."),
]
Walltime = Annotated[
    str | None,
    option(
        "--time", "--walltime", value="TIME", panel=WHERE,
        text="Time limit: 02:00:00, 90m or 2h; more than a job may have is done in several.",
    ),
]  # fmt: skip
AtOnce = Annotated[
    int | None, option("--at-once", value="N", min=1, panel=WHERE, text="Of many runs, so many at the same time.")
]
Memory = Annotated[float | None, option("--memory", value="GB", panel=WHERE, text="Main memory on each node.")]
Cpus = Annotated[int | None, option("--cpus", value="N", min=1, panel=WHERE, text="CPUs for each GPU.")]
Accumulate = Annotated[
    int | None,
    option("--accumulate", value="N", panel=HOW, text="Split the batch into N micro-batches, to need less memory."),
]
Wait = Annotated[bool, flag("--wait", text="Stay, and show progress, to the end.", panel=HOW)]
Again = Annotated[bool, flag("--again", text="Also start runs that already exist.", panel=HOW)]
DryRun = Annotated[bool, flag("--dry-run", text="Print plan and script; submit nothing.", panel=HOW)]
Debug = Annotated[
    bool, flag("--debug", text="One process in the foreground, a few batches; breakpoint() works.", panel=LOOK)
]
Overfit = Annotated[
    int | None, option("--overfit", value="N", min=1, panel=LOOK, text="With --debug: learn one batch, in N steps.")
]
Anomaly = Annotated[
    bool, flag("--anomaly", text="With --debug: name the layer whose output is not finite.", panel=LOOK)
]
Profile = Annotated[bool, flag("--profile", text="Write a trace of a few steps, for ui.perfetto.dev.", panel=LOOK)]


def submit(
    context: typer.Context,
    models: ModelNames = None,
    stores: Stores = None,
    seeds: Seeds = None,
    assignments: Assignments = None,
    job: JobFile = None,
    runs: Runs = None,
    gpus: Gpus = None,
    cluster: Cluster = None,
    account: Account = None,
    partition: Partition = None,
    qos: Qos = None,
    constraint: Constraint = None,
    reservation: Reservation = None,
    sbatch: SbatchOptions = None,
    walltime: Walltime = None,
    at_once: AtOnce = None,
    memory_gb: Memory = None,
    cpus: Cpus = None,
    accumulate: Accumulate = None,
    wait: Wait = False,
    again: Again = False,
    dry_run: DryRun = False,
    debug: Debug = False,
    overfit: Overfit = None,
    anomaly: Anomaly = False,
    profile: Profile = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train: on a cluster, or on this machine. Returns at once.

    Examples:

    hpc-tumor submit --model unet --gpus 4 --data brats.zarr --cluster orfeo-gpu

    hpc-tumor submit --job jobs/comparison.toml --data brats.zarr --data brain-mri.zarr

    hpc-tumor submit --model cnn --data brain-mri.zarr --debug --overfit 200
    """
    from hpc_tumor.cli import launch, planning
    from hpc_tumor.experiments.request import Request, make_experiments

    # The parameters are called as the fields of the request and the options of a plan are.
    request = Request(**{field.name: context.params[field.name] for field in fields(Request)})
    options = planning.plan_options(context.params)
    planning.check_debug(context.params)
    if debug:
        launch.debug(make_experiments(request), folder_of_runs(runs), overfit, anomaly)
        return
    # Too many GPUs are refused by the cluster's limits, before the batch that could not be divided among them.
    chosen = planning.choose_profile(cluster, gpus) if gpus else None
    experiments = make_experiments(request)
    chosen = chosen or planning.choose_profile(cluster)
    planned = planning.plan(experiments, chosen, **options)
    if dry_run:
        launch.show_scripts(planned, chosen, folder_of_runs(runs), again=again, at_once=at_once or 0)
    else:
        launch.submit(planned, chosen, folder_of_runs(runs), wait=wait, again=again, at_once=at_once or 0)

"""The submit command."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hpc_tumor.cli.options import (
    CLUSTER,
    DEBUGGING,
    EXECUTION,
    Account,
    Cluster,
    Json,
    Memory,
    Partition,
    Runs,
    Verbose,
    Walltime,
    complete_models,
    flag,
    folder_of_runs,
    option,
)

ModelNames = Annotated[
    list[str] | None,
    option("--model", "-m", value="NAME", autocompletion=complete_models, text="Network; repeat for several runs."),
]
Stores = Annotated[
    list[Path] | None,
    option("--data", "-d", value="STORE", text="Store made by prepare-data; repeat for one per task."),
]
Seeds = Annotated[list[int] | None, option("--seed", value="N", text="Random seed; repeat for several runs.")]
Assignments = Annotated[
    list[str] | None, option("--set", value="KEY=VALUE", text="Any setting, such as recipe.epochs=2.")
]
JobFile = Annotated[str | None, option("--job", value="FILE", text="Job file with settings and sweeps for many runs.")]
Gpus = Annotated[int | None, option("--gpus", value="N", panel=CLUSTER, text="Number of GPUs per run.")]
Qos = Annotated[str | None, option("--qos", value="NAME", panel=CLUSTER, text="SLURM quality of service (QOS).")]
Constraint = Annotated[str | None, option("--constraint", value="FEATURE", panel=CLUSTER, text="Node features.")]
Reservation = Annotated[str | None, option("--reservation", value="NAME", panel=CLUSTER, text="SLURM reservation.")]
SbatchOptions = Annotated[
    list[str] | None,
    option("--sbatch", value="OPTION[=VALUE]", panel=CLUSTER, text="Other sbatch option, such as mail-type=END."),
]
ShareGpu = Annotated[
    bool, flag("--share-gpu", panel=CLUSTER, text="Let runs share a GPU: small networks beside a large one.")
]
AtOnce = Annotated[
    int | None, option("--at-once", value="N", min=1, panel=CLUSTER, text="Limit of runs at the same time.")
]
Cpus = Annotated[int | None, option("--cpus", value="N", min=1, panel=CLUSTER, text="CPUs per GPU.")]
Accumulate = Annotated[
    int | None,
    option("--accumulate", value="N", panel=EXECUTION, text="Split batches into N micro-batches to save memory."),
]
Wait = Annotated[bool, flag("--wait", text="Show progress until the runs have ended.", panel=EXECUTION)]
Again = Annotated[bool, flag("--again", text="Also start runs that already exist.", panel=EXECUTION)]
DryRun = Annotated[bool, flag("--dry-run", text="Print plan and job script; submit nothing.", panel=EXECUTION)]
Debug = Annotated[
    bool, flag("--debug", text="Train on a few batches in the foreground; breakpoint() works.", panel=DEBUGGING)
]
Overfit = Annotated[
    int | None,
    option("--overfit", value="N", min=1, panel=DEBUGGING, text="With --debug: overfit one batch in N steps."),
]
Anomaly = Annotated[
    bool, flag("--anomaly", text="With --debug: name the layer whose output is not finite.", panel=DEBUGGING)
]
Profile = Annotated[bool, flag("--profile", text="Write a trace of a few steps for ui.perfetto.dev.", panel=DEBUGGING)]


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
    share_gpu: ShareGpu = False,
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
    """Train on a cluster or on this machine, in the background.

    Examples:

    hpc-tumor submit --model unet --gpus 4 --data brats.zarr --cluster orfeo-gpu --account NAME

    hpc-tumor submit --job jobs/comparison.toml --data brats.zarr --data brain-mri.zarr

    hpc-tumor submit --model cnn --data brain-mri.zarr --debug --overfit 200
    """
    from hpc_tumor.cli import launch, planning
    from hpc_tumor.experiments.request import Request, make_experiments

    # The parameters have the names of the fields of Request and of the options of a plan.
    request = Request(**{field.name: context.params[field.name] for field in fields(Request)})
    options = planning.plan_options(context.params)
    planning.check_debug(context.params)
    if debug:
        launch.debug(make_experiments(request), folder_of_runs(runs), overfit, anomaly)
        return
    # Check the GPUs against the cluster's limits before the batch is divided among them.
    cluster_profile = planning.choose_profile(cluster, gpus) if gpus else None
    experiments = make_experiments(request)
    cluster_profile = cluster_profile or planning.choose_profile(cluster)
    planned = planning.plan_runs(experiments, cluster_profile, share_gpu=share_gpu, **options)
    start = launch.show_scripts if dry_run else partial(launch.submit, wait=wait)
    start(planned, cluster_profile, folder_of_runs(runs), again=again, at_once=at_once or 0)

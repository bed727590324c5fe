"""Commands about data: convert raw datasets, split them, make some up, look for what misleads."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from hpc_tumor.cli.options import (
    WHERE,
    Account,
    Json,
    Partition,
    SplitSettings,
    StoreToRead,
    Verbose,
    argument,
    complete_clusters,
    complete_editions,
    flag,
    option,
)
from hpc_tumor.console import out
from hpc_tumor.errors import UsageError
from hpc_tumor.vocabulary import plural

Source = Annotated[Path, argument("SOURCE", "Folder with the raw scans.")]
StoreToWrite = Annotated[Path, argument("STORE", "Zarr store to make, or to bring up to date.")]
Dataset = Annotated[
    str, option("--dataset", value="KIND", text="auto, brats, brats-h5 or brain-mri; auto detects which it is.")
]
Edition = Annotated[
    str | None,
    option(
        "--labels", value="EDITION", autocompletion=complete_editions,
        text="Edition whose label numbers segmentations have, where the names of their cases do not tell it:"
        " brats-2023, msd …",
    ),
]  # fmt: skip
Workers = Annotated[
    int | None, option("--workers", value="N", text="Processes, one per CPU; with --cluster: tasks of the array.")
]
Anew = Annotated[bool, flag("--overwrite", text="Convert everything anew, whatever the store holds.")]
Strict = Annotated[bool, flag("--strict", text="Stop at the first case that cannot be read.")]
Prune = Annotated[bool, flag("--prune", text="Remove vanished cases, even most of the store's.")]
ConvertOn = Annotated[
    str | None,
    option(
        "--cluster", value="PROFILE", autocompletion=complete_clusters, panel=WHERE,
        text="Convert in a SLURM array there, and wait for it. Without: on this machine.",
    ),
]  # fmt: skip
TaskTime = Annotated[
    str | None, option("--time", "--walltime", value="TIME", panel=WHERE, text="Time limit of a task: 30m or 2h.")
]
TaskMemory = Annotated[
    float | None, option("--memory", value="GB", panel=WHERE, text="Main memory of a task; else 1 GB for each CPU.")
]


def prepare_data(
    source: Source,
    store: StoreToWrite,
    dataset: Dataset = "auto",
    labels: Edition = None,
    workers: Workers = None,
    overwrite: Anew = False,
    strict: Strict = False,
    prune: Prune = False,
    cluster: ConvertOn = None,
    account: Account = None,
    partition: Partition = None,
    walltime: TaskTime = None,
    memory_gb: TaskMemory = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Convert raw scans to a Zarr store. Cases that are there and have not changed are kept.

    Examples:

    hpc-tumor prepare-data MICCAI_BraTS2020_TrainingData scratch/brats.zarr

    hpc-tumor prepare-data raw scratch/brats.zarr --cluster orfeo-gpu --account NAME
    """
    from hpc_tumor.cli.views.conversion import refused_cases, source_lines, summary_lines
    from hpc_tumor.cluster.convert.command import conversion_on
    from hpc_tumor.data.convert.prepare import inspect_source, prepare_dataset

    convert = conversion_on(
        cluster, workers, out.note, account=account, partition=partition, walltime=walltime, memory_gb=memory_gb
    )
    report = inspect_source(source, dataset, labels)
    for line in source_lines(report):
        out.note(line)
    for note in report.notes:
        out.warning(note)
    with out.progress("converting", "cases") as progress:
        summary = prepare_dataset(
            report.reader, source, store, workers=workers, overwrite=overwrite, strict=strict, prune=prune,
            convert=convert, progress=progress,
        )  # fmt: skip
    for note in summary.notes:
        if note not in report.notes:
            out.warning(note)
    out.result(asdict(summary), show=lambda: out.pairs(summary_lines(summary)))
    if summary.failed:
        raise refused_cases(summary)
    model = "cnn" if summary.dataset == "brain-mri" else "unet"
    out.hints(
        "Next:", [(f"hpc-tumor submit --model {model} --data {shlex.quote(str(store))}", "train a network on it")]
    )


def split(
    store: StoreToRead,
    settings: SplitSettings = None,
    output: Annotated[
        Path | None, option("--output", "-o", value="FILE", text="JSON file to keep the split in.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what trains, validates and tests, and keep it in a file for --set split_file=FILE.

    Examples:

    hpc-tumor split brats.zarr --set fold=0 --output fold-0.json

    hpc-tumor split brats.zarr --set split_file=mine.csv
    """
    from hpc_tumor.cli.views.conversion import split_summary, split_table
    from hpc_tumor.data.splits.split_file import write_split
    from hpc_tumor.data.splits.splits import split_of
    from hpc_tumor.data.store.store import Store
    from hpc_tumor.experiments.request import experiment_for
    from hpc_tumor.system.atomic import folder_to_write

    if output is not None and output.suffix != ".json":
        raise UsageError(f"--output {output}: a split is kept as JSON, so name a file that ends in .json.")
    opened = Store.open(store)
    found = split_of(experiment_for(opened, settings or []), opened)
    if output is not None:
        with folder_to_write(output.parent, "the split"):
            write_split(output, found, opened)
    out.result(split_summary(found, opened), show=lambda: out.table(split_table(found, opened)))
    if output is not None:
        model = "cnn" if opened.task == "classification" else "unet"
        command = ["hpc-tumor", "submit", "--model", model, "--data", str(store), "--set", f"split_file={output}"]
        out.hints("Next:", [(shlex.join(command), "train with it")])


def phantom(
    directory: Annotated[Path, argument("DIR", "New folder to write to.")],
    dataset: Annotated[str, option("--dataset", value="KIND", text="brats or brain-mri: whose raw layout to write.")],
    cases: Annotated[int, option("--cases", min=1, value="N", text="Patients, or images.")],
    seed: Annotated[int, option("--seed", min=0, value="N", text="The same seed gives the same data.")] = 0,
    shape: Annotated[
        str | None, option("--shape", value="X,Y,Z", text="Voxels of a brats patient; 240,240,155.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make up a raw dataset, to try everything on.

    Example: hpc-tumor phantom scratch/raw --dataset brats --cases 8 --seed 1
    """
    from hpc_tumor.data.phantom.dataset import make_phantom

    try:
        voxels = tuple(int(n) for n in shape.split(",")) if shape else None
    except ValueError:
        raise UsageError(f"--shape {shape!r} is not a shape: write it as 240,240,155.") from None
    unit = plural(cases, "patient" if dataset == "brats" else "image")
    with out.progress("making up", unit) as progress:
        written = make_phantom(directory, dataset, cases, seed, shape=voxels, progress=progress)
    out.result(
        {"directory": directory, "dataset": dataset, "cases": len(written), "seed": seed},
        show=lambda: out.text(f"{directory}: {len(written):,} made-up {unit} in the layout of {dataset}"),
    )
    out.hints(
        "Next:",
        [(shlex.join(["hpc-tumor", "prepare-data", str(directory), f"{directory}.zarr"]), "convert it to a store")],
    )


def audit(
    store: StoreToRead,
    split: Annotated[
        str | None, option("--split", value="KIND", text="Split in use: by-patient, deduplicated or published.")
    ] = None,
    settings: SplitSettings = None,
    output: Annotated[
        Path | None, option("--output", "-o", value="FILE", text="Page with pictures to write, as HTML.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Look a dataset over: what it holds, what is in it twice, and what each split lets through.

    Ends with exit code 3 where the split in use leaks.

    Example: hpc-tumor audit brain-mri.zarr --split published --output audit.html
    """
    from hpc_tumor.cli.views.audit import audit_tables, pairs, refusal, split_in_use
    from hpc_tumor.data.audit.audit import as_json, audit_store
    from hpc_tumor.data.audit.page import check_page, write_page
    from hpc_tumor.data.store.store import Store

    opened = Store.open(store)
    experiment = split_in_use(opened, split, settings or [])
    if output:
        check_page(output, store)
    with out.progress("looking over", "images" if opened.task == "classification" else "splits") as progress:
        found = audit_store(opened, experiment, progress)

    def show() -> None:
        out.pairs(pairs(found))
        out.text()
        out.tables(audit_tables(found))

    out.result(as_json(found), show=show)
    if output:
        write_page(found, opened, output)
        out.note(f"\nwritten: {output}")
    else:
        command = shlex.join(["hpc-tumor", "audit", str(store), "--output", "audit.html"])
        out.hints("Next:", [(command, "the same with pictures")])
    if error := refusal(found):
        raise error

"""Commands on data: prepare-data, split, phantom and audit."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hpc_tumor.cli.options import (
    Account,
    Cluster,
    Edition,
    Json,
    Memory,
    Overwrite,
    Partition,
    SplitSettings,
    StoreToRead,
    Verbose,
    Walltime,
    argument,
    flag,
    option,
)
from hpc_tumor.console import out
from hpc_tumor.errors import UsageError
from hpc_tumor.vocabulary import plural

if TYPE_CHECKING:
    from hpc_tumor.config import Experiment
    from hpc_tumor.data.splits.split_file import Split
    from hpc_tumor.data.store.store import Store

Sources = Annotated[
    list[str] | None, argument("SOURCE", "Folders with the raw scans, several only of images; or NAME=FOLDER.")
]
StoreToWrite = Annotated[Path, argument("STORE", "Zarr store to create or update.")]
Dataset = Annotated[str, option("--dataset", value="KIND", text="Dataset: auto, brats, brats-h5, brain-mri or cheng.")]
Workers = Annotated[
    int | None, option("--workers", value="N", text="Processes, or array tasks with --cluster; default: one per CPU.")
]
Strict = Annotated[bool, flag("--strict", text="Stop at the first case that cannot be read.")]
Remove = Annotated[
    list[str] | None, option("--remove", value="NAME", text="Source whose images are removed from the store.")
]
Prune = Annotated[bool, flag("--prune", text="Remove cases missing from the source, even if they are most.")]


def prepare_data(
    sources: Sources = None,
    *,
    store: StoreToWrite,
    dataset: Dataset = "auto",
    labels: Edition = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    strict: Strict = False,
    prune: Prune = False,
    remove: Remove = None,
    cluster: Cluster = None,
    account: Account = None,
    partition: Partition = None,
    walltime: Walltime = None,
    memory_gb: Memory = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Convert raw scans to a Zarr store. Only new and changed cases are converted.

    With --cluster, a SLURM array converts the cases, by default with 1 GB per CPU, and the command waits for it.

    Images of several folders make one store; later, only some of them may be given.

    --labels sets the label numbers of segmentations whose case names do not tell their edition.

    Examples:

    hpc-tumor prepare-data raw scratch/brats.zarr --cluster orfeo-gpu --account NAME

    hpc-tumor prepare-data kaggle other=downloads/archive scratch/images.zarr
    """
    from hpc_tumor.cli.views.conversion import failed_cases_error, show_sources, summary_lines
    from hpc_tumor.cluster.convert.command import conversion_on
    from hpc_tumor.data.convert.prepare import inspect_sources, prepare_sources
    from hpc_tumor.data.convert.update import bring_up_to_date

    convert = conversion_on(
        cluster, workers, out.note, account=account, partition=partition, walltime=walltime, memory_gb=memory_gb
    )
    inspected = inspect_sources(sources or [], store, dataset, labels, remove or [], overwrite=overwrite)
    show_sources(inspected)
    if not overwrite and (updated := bring_up_to_date(store)):  # said at once: the conversion may still be refused
        out.warning(updated.note)
    with out.progress("converting", "cases") as progress:
        summary = prepare_sources(
            inspected, store, workers=workers, overwrite=overwrite, strict=strict, prune=prune, convert=convert,
            progress=progress,
        )  # fmt: skip
    for note in summary.notes[len(inspected.notes) :]:
        out.warning(note)
    out.result(asdict(summary), show=lambda: out.pairs(summary_lines(summary)))
    if summary.failed:
        raise failed_cases_error(summary)
    model = "unet" if summary.dataset in ("brats", "brats-h5") else "cnn"
    command = ["hpc-tumor", "submit", "--model", model, "--data", str(store)]
    out.hints("Next:", [(shlex.join(command), "train a network on it")])


def split(
    store: StoreToRead,
    settings: SplitSettings = None,
    output: Annotated[Path | None, option("--output", "-o", value="FILE", text="JSON file to write.")] = None,
    folds_from: Annotated[
        Path | None, option("--folds-from", value="FILE", text="cvind.mat of the Cheng set: test on its folds.")
    ] = None,
    as_published: Annotated[
        bool, flag("--as-published", text="Keep the folds of --folds-from, although they part some patients.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show the train, validation and test parts of a split; --output writes them for --set split_file=FILE.

    Examples:

    hpc-tumor split brats.zarr --set fold=0 --output fold-0.json

    hpc-tumor split brats.zarr --set split_file=mine.csv

    hpc-tumor split cheng.zarr --folds-from cheng/cvind.mat --set fold=0 --output fold-0.json
    """
    from hpc_tumor.cli.views.conversion import split_summary, split_table
    from hpc_tumor.data.splits.split_file import write_split
    from hpc_tumor.data.splits.splits import split_of
    from hpc_tumor.data.store.store import Store
    from hpc_tumor.experiments.request import experiment_for
    from hpc_tumor.system.atomic import folder_to_write

    if output is not None and output.suffix != ".json":
        raise UsageError(f"--output {output}: splits are written as JSON; name a file that ends in .json.")
    if as_published and folds_from is None:
        raise UsageError("--as-published keeps the folds of a file: name it with --folds-from.")
    opened = Store.open(store)
    experiment = experiment_for(opened, settings or [])
    if folds_from is None:
        parts = split_of(experiment, opened)
    else:
        parts = _from_folds(opened, experiment, folds_from, as_published)
    if output is not None:
        with folder_to_write(output.parent, "the split"):
            write_split(output, parts, opened)
    out.result(split_summary(parts, opened), show=lambda: out.table(split_table(parts, opened)))
    if output is not None:
        model = "cnn" if opened.task == "classification" else "unet"
        command = ["hpc-tumor", "submit", "--model", model, "--data", str(store), "--set", f"split_file={output}"]
        out.hints("Next:", [(shlex.join(command), "train with it")])


def _from_folds(store: Store, experiment: Experiment, file: Path, as_published: bool) -> Split:
    from hpc_tumor.data.raw.cheng import FOLDS, read_folds
    from hpc_tumor.data.splits.published_folds import split_by_folds

    data = experiment.data
    if data.fold is None:
        raise UsageError(f"--folds-from {file}: choose the fold to test on, from --set fold=0 to fold=4.")
    if data.folds != FOLDS:
        raise UsageError(f"--folds-from {file} has {FOLDS} folds: leave out --set folds.")
    if data.split is not None or data.split_file is not None or data.test_source is not None:
        raise UsageError(f"--folds-from {file} is itself a split: leave out --set split, split_file and test_source.")
    parts, notes = split_by_folds(
        store, read_folds(file), data.fold, seed=data.split_seed, val_fraction=data.val_fraction,
        as_published=as_published, conflicts=data.conflicts,
    )  # fmt: skip
    for note in notes:
        out.warning(note)
    return parts


def patients(
    store: Annotated[Path, argument("STORE", "Store made by prepare-data; an old one is brought up to date.")],
    csv: Annotated[Path | None, option("--csv", value="FILE", text="CSV file to write.")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show the patients of a store: those behind its images, as far as they are known, or those of its cases.

    Images are recognised as slices of the Cheng set, whose patients are published. A store that was converted by an
    earlier version is brought up to date from its own pixels.

    Example: hpc-tumor patients brain-mri.zarr --csv patients.csv
    """
    from hpc_tumor.cli.views.patients import patient_rows, patients_summary, patients_table, write_patients_csv
    from hpc_tumor.data.convert.update import bring_up_to_date
    from hpc_tumor.data.store.store import Store
    from hpc_tumor.system.atomic import folder_to_write

    if updated := bring_up_to_date(store):
        out.warning(updated.note)
    opened = Store.open(store)
    rows = patient_rows(opened)
    if csv is not None:
        with folder_to_write(csv.parent, "the patients"):
            write_patients_csv(csv, rows)
    out.result(patients_summary(opened, rows), show=lambda: out.table(patients_table(opened, rows)))
    if csv is not None:
        out.note(f"written: {csv}")
    else:
        out.hints("Next:", [(shlex.join(["hpc-tumor", "patients", str(store), "--csv", "patients.csv"]), "list them")])


def phantom(
    directory: Annotated[Path, argument("DIR", "New folder to write to.")],
    dataset: Annotated[str, option("--dataset", value="KIND", text="Dataset to imitate: brats, brain-mri or cheng.")],
    cases: Annotated[int, option("--cases", min=1, value="N", text="Number of patients or images.")],
    seed: Annotated[int, option("--seed", min=0, value="N", text="Random seed.")] = 0,
    shape: Annotated[
        str | None, option("--shape", value="X,Y,Z", text="Voxels of a brats patient; default: 240,240,155.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Generate a synthetic raw dataset for testing.

    Example: hpc-tumor phantom scratch/raw --dataset brats --cases 8 --seed 1
    """
    from hpc_tumor.data.phantom.dataset import make_phantom

    try:
        voxels = tuple(int(n) for n in shape.split(",")) if shape else None
    except ValueError:
        raise UsageError(f"--shape {shape!r}: write three numbers of voxels, such as 240,240,155.") from None
    unit = plural(cases, "patient" if dataset == "brats" else "image")
    with out.progress("generating", unit) as progress:
        written = make_phantom(directory, dataset, cases, seed, shape=voxels, progress=progress)
    out.result(
        {"directory": directory, "dataset": dataset, "cases": len(written), "seed": seed},
        show=lambda: out.text(f"{directory}: {len(written):,} synthetic {unit} in the layout of {dataset}"),
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
    output: Annotated[Path | None, option("--output", "-o", value="FILE", text="HTML file to write.")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check a dataset: contents, duplicates, and leakage of each split.

    Exits with code 3 if the split in use leaks.

    Example: hpc-tumor audit brain-mri.zarr --split published --output audit.html
    """
    from hpc_tumor.cli.views.audit import audit_tables, leak_error, selected_experiment, summary_lines
    from hpc_tumor.data.audit.audit import audit_store
    from hpc_tumor.data.audit.page import check_page, write_page
    from hpc_tumor.data.audit.text import as_json
    from hpc_tumor.data.store.store import Store

    opened = Store.open(store)
    experiment = selected_experiment(opened, split, settings or [])
    if output:
        check_page(output, store)
    with out.progress("auditing", "images" if opened.task == "classification" else "splits") as progress:
        report = audit_store(opened, experiment, progress)

    def show() -> None:
        out.pairs(summary_lines(report))
        out.text()
        out.tables(audit_tables(report))

    out.result(as_json(report), show=show)
    if output:
        write_page(report, opened, output)
        out.note(f"\nwritten: {output}")
    else:
        command = shlex.join(["hpc-tumor", "audit", str(store), "--output", "audit.html"])
        out.hints("Next:", [(command, "the same as a page with images")])
    if error := leak_error(report):
        raise error

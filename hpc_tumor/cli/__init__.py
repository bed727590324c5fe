"""Every command in one place: parse, call one function, show the result.

The commands import what they need when they are called: `hpc-tumor --help` waits for nothing, and only the commands
that convert or train load torch or zarr.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpc_tumor.cli.options import (
    HOW,
    LOOK,
    WHERE,
    AnyPatterns,
    Json,
    OneRun,
    Patterns,
    Runs,
    State,
    Verbose,
    Yes,
    complete_clusters,
    complete_editions,
    complete_models,
    complete_runs,
    flag,
    show_version,
)  # fmt: skip
from hpc_tumor.console import counted, out, prepare_streams
from hpc_tumor.errors import HpcTumorError, UsageError
from hpc_tumor.system.atomic import is_disk_full
from hpc_tumor.system.signals import interrupting

if TYPE_CHECKING:
    from hpc_tumor.run_dir import RunDir

app = typer.Typer(
    help="Train and compare brain-tumour networks, on SLURM clusters and on one machine.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives its exit code: 0 done, 130 interrupted, else that of the error (see errors.py)."""
    out.json = out.verbose = False
    prepare_streams()
    try:
        with interrupting():
            code = app(args=arguments, prog_name="hpc-tumor", standalone_mode=False)
    except typer.TyperException as error:
        out.error(error.format_message())
        path = getattr(getattr(error, "ctx", None), "command_path", "hpc-tumor")
        out.note(f"`{path} --help` shows what there is.")
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
        out.error("the output could not be written: no space is left where it goes.")
        return 1
    text = " ".join(str(error).split())
    out.error(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    if not out.verbose:
        out.note("This was not foreseen: the same command with --verbose shows where it happened.")
    return 1


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, metavar=" ", help="Print the version.")
    ] = False,
) -> None:
    try:
        Path.cwd()
    except OSError as error:  # else each command would say something of its own, such as that there are no runs
        raise UsageError(
            f"the current folder is not there any more, or closed to you ({error.strerror}): cd to another one."
        ) from None


# -- data -------------------------------------------------------------------------------------------------------------


@app.command("prepare-data", rich_help_panel="Data")
def prepare_data(
    source: Annotated[Path, typer.Argument(help="Folder with the raw scans.")],
    store: Annotated[Path, typer.Argument(help="Zarr store to make, or to bring up to date.")],
    dataset: Annotated[
        str, typer.Option(metavar="KIND", help="auto, brats, brats-h5 or brain-mri; auto looks what is there.")
    ] = "auto",
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="EDITION", autocompletion=complete_editions,
            help="Edition whose label numbers segmentations have, where the names of their cases do not tell it:"
            " brats-2023, msd …",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes, one per CPU; with --cluster: tasks of the array.")
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", text="Convert everything anew, whatever the store holds.")] = False,
    strict: Annotated[bool, flag("--strict", text="Stop at the first case that cannot be read.")] = False,
    prune: Annotated[bool, flag("--prune", text="Remove vanished cases, even most of the store's.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE", autocompletion=complete_clusters, rich_help_panel=WHERE,
            help="Convert in a SLURM array there, and wait for it. Without: on this machine.",
        ),
    ] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", rich_help_panel=WHERE, help="Who pays.")] = None,
    partition: Annotated[
        str | None, typer.Option(metavar="NAME", rich_help_panel=WHERE, help="Partition, as one without GPUs.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option("--time", "--walltime", metavar="TIME", rich_help_panel=WHERE, help="Of a task: 30m or 2h."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(metavar="GB", rich_help_panel=WHERE, help="Of a task; 1 GB for each of its CPUs.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:  # fmt: skip
    """Convert raw scans to a Zarr store. Cases that are there and have not changed are kept.

    Examples:

    hpc-tumor prepare-data MICCAI_BraTS2020_TrainingData scratch/brats.zarr

    hpc-tumor prepare-data raw scratch/brats.zarr --cluster orfeo-gpu --account NAME
    """
    from hpc_tumor.cli.views.conversion import refused_cases, source_lines, summary_lines
    from hpc_tumor.cluster.convert.command import conversion_on
    from hpc_tumor.data.convert.prepare import inspect_source, prepare_dataset

    convert = conversion_on(
        cluster, workers, out.note, account=account, partition=partition, walltime=time, memory_gb=memory
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


@app.command(rich_help_panel="Data")
def split(
    store: Annotated[Path, typer.Argument(help="Store made by prepare-data.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Which split: fold=0, split_seed=1 …")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="JSON file to keep the split in.")
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
    from hpc_tumor.run_dir import folder_to_write

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


@app.command(rich_help_panel="Data")
def phantom(
    directory: Annotated[Path, typer.Argument(help="New folder to write to.")],
    dataset: Annotated[str, typer.Option(metavar="KIND", help="brats or brain-mri: whose raw layout to write.")],
    cases: Annotated[int, typer.Option(min=1, metavar="N", help="Patients, or images.")],
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed gives the same data.")] = 0,
    shape: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="Voxels of a brats patient; 240,240,155.")] = None,
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
    unit = ("patient" if dataset == "brats" else "image") + "s" * (cases != 1)
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


@app.command(rich_help_panel="Data")
def audit(
    store: Annotated[Path, typer.Argument(help="Store made by prepare-data; it is only read.")],
    split: Annotated[
        str | None, typer.Option(metavar="KIND", help="Split in use: by-patient, deduplicated or published.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="How it is split, such as data.fold=0.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Page with pictures to write, as HTML.")
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


# -- runs -------------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Runs")
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
        typer.Option(metavar="N", rich_help_panel=HOW, help="The same batch in N parts, which need less memory."),
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

    options = {
        "walltime": time, "memory_gb": memory, "cpus": cpus, "account": account, "partition": partition, "qos": qos,
        "constraint": constraint, "reservation": reservation, "options": planning.sbatch_options(sbatch or []),
    }  # fmt: skip
    if debug:
        planning.check_debug(cluster, dry_run, wait, {**options, "at_once": at_once})
    else:
        planning.check_no_debug(overfit, anomaly)
    # Too many GPUs are refused by the cluster's limits, before the batch that could not be divided among them.
    chosen = planning.choose_profile(cluster, gpus) if gpus and not debug else None
    request = Request(
        job, model or [], seed or [], data or [], gpus, settings or [], debug, accumulate, profile, bool(overfit)
    )
    experiments = make_experiments(request)
    if debug:
        launch.debug(experiments, _folder(runs), overfit, anomaly)
        return
    chosen = chosen or planning.choose_profile(cluster)
    planned = planning.plan(experiments, chosen, at_once, **options)
    if dry_run:
        launch.show_scripts(planned, chosen, _folder(runs), again=again, at_once=at_once or 0)
    else:
        launch.submit(planned, chosen, _folder(runs), wait=wait, again=again, at_once=at_once or 0)


@app.command(rich_help_panel="Runs")
def status(
    patterns: AnyPatterns = None,
    runs: Runs = None,
    state: State = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", autocompletion=complete_models, help="Runs of this network alone.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="name, state, epoch, left, best or heartbeat.")
    ] = None,
    watch: Annotated[bool, flag("--watch", "-w", text="Go on showing until all have ended, or Ctrl-C.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show runs: state, progress, scores so far, and why they wait or ended.

    Examples:

    hpc-tumor status --watch

    hpc-tumor status --state failed,lost --model unet
    """
    from hpc_tumor.cli.control import show_states, watch_runs
    from hpc_tumor.cli.views.runs import choose
    from hpc_tumor.cluster.observe.queue import read_states

    found = _find(runs, patterns)
    if not found:
        out.note(_no_runs(_folder(runs)))
    choose([], state, model, sort)  # what is not there to choose by is refused before one waits
    if watch:
        states = choose(watch_runs(found, lambda states: choose(states, state, model)), sort=sort)
    else:
        states = choose(read_states(found), state, model, sort)
    if found and not states:
        out.note(f"none of {len(found)} runs is of that kind")
    show_states(states)


@app.command(rich_help_panel="Runs")
def logs(
    patterns: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", autocompletion=complete_runs, help="Runs by name, glob, network or part of a name."
        ),
    ],
    runs: Runs = None,
    rank: Annotated[int, typer.Option(min=0, metavar="N", help="Which rank's output.")] = 0,
    restart: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of this start alone; 0: the first.")] = None,
    follow: Annotated[bool, flag("--follow", "-f", text="Go on until the run ends, also while it is queued.")] = False,
    errors: Annotated[bool, flag("--errors", text="Why it failed; the traceback of the first rank to fail.")] = False,
    launcher: Annotated[bool, flag("--launcher", text="What SLURM and the job script said.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=1, metavar="N", help="The last N lines.")] = None,
    verbose: Verbose = False,
) -> None:
    """Show what runs printed, over all of their restarts.

    Examples:

    hpc-tumor logs unet --follow

    hpc-tumor logs '*' --errors
    """
    from hpc_tumor.cli.control import follow_log, print_logs

    if follow and (errors or launcher or tail is not None or restart is not None):
        raise UsageError(
            "--follow shows what a rank prints from now on: leave out the options that choose other output."
        )
    found = _find(runs, patterns)
    if not found:
        raise UsageError(f"{_no_runs(_folder(runs))}: nothing was printed.")
    if len(found) > 1 and not errors:
        latest = ", ".join(item.name for item in found[-3:])
        raise UsageError(f"{' '.join(patterns)!r} fits {len(found)} runs; name one of them. The latest: {latest}.")
    if follow:
        follow_log(found[0], rank)
    else:
        print_logs(found, rank, restart, errors, launcher, tail)


@app.command(rich_help_panel="Runs")
def cancel(
    patterns: Patterns,
    runs: Runs = None,
    state: State = None,
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """End runs. What they have learned so far stays, and `resume` goes on from there."""
    from hpc_tumor.cli.control import cancel_runs

    found, named = _find_named(runs, patterns)
    cancel_runs(found, yes or named, state)


@app.command(rich_help_panel="Runs")
def resume(
    patterns: Patterns,
    runs: Runs = None,
    state: State = None,
    gpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="Another number of GPUs from here on.")] = None,
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Start runs again that ended without a result; they go on from their last checkpoint.

    With --gpus N they go on at the same sample on another number of GPUs; the global batch stays.

    Example: hpc-tumor resume all --state failed,timeout
    """
    from hpc_tumor.cli.control import resume_runs

    found, named = _find_named(runs, patterns)
    resume_runs(found, yes or named, gpus, state)


@app.command(rich_help_panel="Runs")
def rerun(
    patterns: Patterns,
    runs: Runs = None,
    state: State = None,
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train runs again from the beginning, as new runs with the same settings; the old ones stay as they are."""
    from hpc_tumor.cli.launch import rerun as rerun_all
    from hpc_tumor.cli.views.runs import choose
    from hpc_tumor.cluster.observe.queue import read_states

    found, named = _find_named(runs, patterns)
    rerun_all([item.run for item in choose(read_states(found), state)] if state else found, yes or named)


@app.command(rich_help_panel="Runs")
def efficiency(patterns: AnyPatterns = None, runs: Runs = None, json: Json = False, verbose: Verbose = False) -> None:
    """Compare what runs asked for with what they used, and show the options to ask for next time.

    Example: hpc-tumor efficiency unet
    """
    from hpc_tumor.cli.views.efficiency import show_efficiency
    from hpc_tumor.cluster.observe.efficiency import read_efficiency

    found = _find(runs, patterns)
    if not found:
        out.note(_no_runs(_folder(runs)))
    show_efficiency(read_efficiency(found))


@app.command(rich_help_panel="Runs")
def clean(
    patterns: AnyPatterns = None,
    runs: Runs = None,
    delete: Annotated[bool, flag("--delete", text="Remove what is shown; without it, nothing is removed.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show files that nobody needs any more, with their sizes, and how large each run is; --delete removes them.

    Finished runs lose the checkpoints to go on from and the pickles of their jobs, all that ended temporary files.

    Without RUN also what runs share: code, half-made conversions, copies of stores on this machine's disk.

    The weights that were scored, checkpoints kept for good, and runs that go on or are not yours stay as they are.

    Examples:

    hpc-tumor clean

    hpc-tumor clean --delete
    """
    from hpc_tumor.cli.views.conversion import cleaning_tables, refuse_what_stays
    from hpc_tumor.cluster.observe.clean import clean as clean_runs

    folder = _folder(runs)
    done = clean_runs(folder, _find(runs, patterns) if patterns and patterns != ["all"] else None, delete=delete)
    out.result(done.as_dict(), show=lambda: out.tables(cleaning_tables(done)))
    if done.failed:
        raise refuse_what_stays(done)
    if not done.leftovers:
        out.note("nothing to remove")
    elif not delete:
        option = "" if runs is None else f" --runs {shlex.quote(str(runs))}"
        command = shlex.join(["hpc-tumor", "clean", *(patterns or [])])
        out.hints("Nothing was removed.", [(f"{command}{option} --delete", "removes it")])


clusters_app = typer.Typer(invoke_without_command=True)
app.add_typer(clusters_app, name="clusters", rich_help_panel="Setup")


@clusters_app.callback()
def clusters(context: typer.Context, json: Json = False, verbose: Verbose = False) -> None:
    """The cluster profiles that --cluster takes; `clusters discover` writes a first one."""
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


@clusters_app.command("discover")
def clusters_discover(
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the profile; else the cluster's own.")] = None,
    partition: Annotated[
        str | None, typer.Option(metavar="NAME", help="Partition to describe; else the one with the most GPUs.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Else among your own profiles.")
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", text="Replace a profile that is there.")] = False,
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


@app.command(rich_help_panel="Setup")
def doctor(
    cluster: Annotated[
        str | None,
        typer.Option(metavar="PROFILE", autocompletion=complete_clusters, help="Cluster profile; else your default."),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", "-d", metavar="STORE", help="Store to look at, too.")] = None,
    runs: Runs = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Who pays.")] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="Partition.")] = None,
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


# -- results ----------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Results")
def collect(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The same as --runs; also one run directory.")
    ] = None,
    runs: Runs = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for the tables, figures and report.html."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="NAME", autocompletion=complete_models, help="Runs of these networks."),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Runs with this setting, such as loss=dice-bce.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Settings that make an entry of the comparison; else all that differ."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="SCORE", help="Order of the entries: dice, hd95_WT, accuracy, parameters …")
    ] = None,
    figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Draw figures and write the report, beside the tables.")
    ] = True,
    serve: Annotated[
        bool, flag("--serve", text="Serve report.html on this machine alone, for a browser behind an ssh tunnel.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0: any that is free.")] = 0,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare the runs, finished or not: a table here, and files, figures and a report where --output says.

    Example: hpc-tumor collect --output results --serve
    """
    from hpc_tumor.cluster.observe.queue import read_states
    from hpc_tumor.results.compare.selection import make_wishes
    from hpc_tumor.results.tables.brief import terminal_tables
    from hpc_tumor.results.write.as_json import as_json
    from hpc_tumor.results.write.collect import collect_runs
    from hpc_tumor.results.write.files import serve_results, write_results
    from hpc_tumor.run_dir import RunDir, find_runs

    if serve and not figures:
        raise UsageError("--serve shows the report, which --no-figures leaves out: leave out one of them.")
    if port and not serve:
        raise UsageError(f"--port {port} is for --serve: add it, or leave out --port.")
    wishes = make_wishes(model or [], where or [], by or [], sort)
    if folder and runs:
        raise UsageError(f"{folder} and --runs {runs} both name the folder of the runs: leave out one of them.")
    folder = _folder(folder or runs)
    one = (folder / "config.json").is_file()
    found = [RunDir(folder)] if one else find_runs(folder)
    states = read_states([run for run in found if not run.is_finished()])
    comparison = collect_runs(found, queue={state.name: state.state for state in states}, wishes=wishes)
    if not found:
        out.note(_no_runs(folder) + (": nothing was written" if output else ""))
    # Everything is much more than is shown: it is worked out for machines alone.
    values = as_json(comparison) if json else None
    out.result(values, show=lambda: out.tables(terminal_tables(comparison, out.width)))
    if comparison.left_out:
        out.note(f"\n{counted(comparison.left_out, 'finished run')} left out by --model or --where")
    if output and found:
        with out.progress("drawing", "figures") as progress:
            written = write_results(comparison, output, folder, figures=figures, progress=progress)
        out.note(f"\nwritten to {output}: {', '.join(written)}")
    if serve and found:
        serve_results(comparison, output, folder, port, out.note)


@app.command(rich_help_panel="Results")
def predict(
    run: OneRun,
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Folder of a patient or of many; an image or a folder of images.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")],
    runs: Runs = None,
    flips: Annotated[
        bool | None,
        typer.Option("--flips/--no-flips", help="Mean over the flips of a slice or image; else as the run was tested."),
    ] = None,
    clean: Annotated[
        bool | None,
        typer.Option("--clean/--no-clean", help="Without small pieces of tumour; else as the run was tested."),
    ] = None,
    probabilities: Annotated[bool, flag("--probabilities", text="Write those of NCR, ED and ET as well.")] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="EDITION",
            autocompletion=complete_editions,
            help="Edition whose label numbers are written, and read where a patient's name tells none; else that of the"
            " name, or of the data trained on.",
        ),
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", text="Replace predictions that are there.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", rich_help_panel=HOW, help="Slices or images at once.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=HOW, help="auto, bfloat16, float16 or float32.")
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="NAME", rich_help_panel=HOW, help="auto, cpu or cuda.")] = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Let a trained network label patients, or classify images.

    A patient gives CASE-seg.nii.gz in the space of its scans, labelled as in BraTS; images give predictions.csv. Where
    the patients come with labels, or the images in folders of classes, they are scored, too. Cases that the run
    trained or validated on are marked, and count in no mean.

    Examples:

    hpc-tumor predict improved-unet patients/BraTS2021_01657 --output predicted

    hpc-tumor predict runs/20250131-120000-cnn-1a2b3c Testing --output predicted
    """
    from hpc_tumor.cli.views.prediction import show_prediction
    from hpc_tumor.prediction.options import Options
    from hpc_tumor.prediction.predict import predict as predict_source

    found = _one_run(runs, run)
    options = Options(device, precision, batch_size, flips, clean, probabilities, overwrite, labels)
    result = predict_source(found, source, output, options, out.progress)
    if not found.is_finished():
        out.warning(f"{found.name} is unfinished: these are its best weights so far, of epoch {result.facts.epoch}.")
    show_prediction(result)


@app.command(rich_help_panel="Results")
def export(
    run: OneRun,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write: NAME.onnx.")],
    runs: Runs = None,
    overwrite: Annotated[bool, flag("--overwrite", text="Replace the file if it is there.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a trained network as ONNX, for programs without torch; compared with torch where onnxruntime is there.

    Example: hpc-tumor export improved-unet --output improved-unet.onnx
    """
    from hpc_tumor.cli.views.prediction import show_export
    from hpc_tumor.prediction.export import export_onnx

    show_export(export_onnx(_one_run(runs, run), output, overwrite))


def _folder(runs: Path | None) -> Path:
    from hpc_tumor.settings import user_default

    return runs or Path(user_default("runs") or "runs")


def _no_runs(folder: Path) -> str:
    """Message on a folder without runs: one that holds other things may not be the one that was meant."""
    return f"no runs in {folder}" if any(folder.iterdir()) else f"no runs in {folder} yet"


def _find(runs: Path | None, patterns: list[str] | None) -> list[RunDir]:
    from hpc_tumor.run_dir import find_runs

    return find_runs(_folder(runs), patterns)


def _find_named(runs: Path | None, patterns: list[str]) -> tuple[list[RunDir], bool]:
    """The runs, and whether each pattern stands for one of them, so that nobody need be asked which are meant."""
    named = "all" not in patterns and not any(sign in pattern for pattern in patterns for sign in "*?[")
    return _find(runs, patterns), named and all(len(_find(runs, [pattern])) == 1 for pattern in patterns)


def _one_run(runs: Path | None, name: str) -> RunDir:
    """The run at this path, else the one below the folder of runs that the name fits."""
    from hpc_tumor.run_dir import RunDir, is_run

    if is_run(Path(name)):
        return RunDir(Path(name))
    found = _find(runs, [name])
    if len(found) > 1:
        latest = ", ".join(item.name for item in found[-3:])
        raise UsageError(f"{name!r} fits {len(found)} runs; name one of them. The latest: {latest}.")
    return found[0]

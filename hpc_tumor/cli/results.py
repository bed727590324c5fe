"""Commands about results: compare runs, predict with one, export one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpc_tumor.cli.options import (
    HOW,
    Json,
    OneRun,
    Runs,
    Verbose,
    complete_editions,
    complete_models,
    flag,
)  # fmt: skip
from hpc_tumor.cli.run_selection import folder_of_runs, one_run, say_no_runs
from hpc_tumor.console import out
from hpc_tumor.errors import UsageError
from hpc_tumor.names import counted


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
    from hpc_tumor.results.tables.layouts import terminal_tables
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
    folder = folder_of_runs(folder or runs)
    one = (folder / "config.json").is_file()
    found = [RunDir(folder)] if one else find_runs(folder)
    states = read_states([run for run in found if not run.is_finished()])
    comparison = collect_runs(found, {state.name: (state.state, state.reason) for state in states}, wishes)
    if not found:
        out.note(say_no_runs(folder) + (": nothing was written" if output else ""))
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

    found = one_run(runs, run)
    options = Options(device, precision, batch_size, flips, clean, probabilities, overwrite, labels)
    result = predict_source(found, source, output, options, out.progress)
    if not found.is_finished():
        out.warning(f"{found.name} is unfinished: these are its best weights so far, of epoch {result.facts.epoch}.")
    show_prediction(result)


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

    show_export(export_onnx(one_run(runs, run), output, overwrite))

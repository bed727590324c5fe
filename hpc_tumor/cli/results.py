"""Commands on results: collect, predict and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hpc_tumor.cli.options import (
    EXECUTION,
    Edition,
    Json,
    Networks,
    OneRun,
    Overwrite,
    Runs,
    Verbose,
    argument,
    flag,
    folder_of_runs,
    no_runs_message,
    option,
    select_run,
)
from hpc_tumor.console import out
from hpc_tumor.errors import UsageError
from hpc_tumor.vocabulary import counted

Where = Annotated[
    list[str] | None, option("--where", value="KEY=VALUE", text="Only runs with this setting, such as loss=dice-bce.")
]
By = Annotated[
    list[str] | None,
    option("--by", value="KEY", text="Setting that distinguishes entries; default: all settings that differ."),
]
Sort = Annotated[
    str | None,
    option("--sort", value="KEY", text="Sort by a score or column: dice, hd95_WT, accuracy, parameters …"),
]
Figures = Annotated[bool, flag("--figures/--no-figures", text="Also write the figures and report.html.")]
Serve = Annotated[bool, flag("--serve", text="Serve report.html on localhost, for example for an SSH tunnel.")]
Port = Annotated[int, option("--port", min=0, max=65535, value="PORT", text="Port of --serve; 0: any free port.")]


def collect(
    folder: Annotated[Path | None, argument("DIR", "Folder of the run directories, or one run directory.")] = None,
    runs: Runs = None,
    output: Annotated[
        Path | None, option("--output", "-o", value="DIR", text="Folder to write tables, figures and report.html to.")
    ] = None,
    model: Networks = None,
    where: Where = None,
    by: By = None,
    sort: Sort = None,
    figures: Figures = True,
    serve: Serve = False,
    port: Port = 0,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare runs, finished or not; --output writes tables, figures and a report.

    Example: hpc-tumor collect --output results --serve
    """
    from hpc_tumor.cluster.observe.queue import read_states
    from hpc_tumor.results.compare.selection import make_selection
    from hpc_tumor.results.tables.layouts import terminal_tables
    from hpc_tumor.results.write.as_json import as_json
    from hpc_tumor.results.write.collect import collect_runs
    from hpc_tumor.results.write.files import serve_results, write_results
    from hpc_tumor.run_dir import RunDir, find_runs

    if serve and not figures:
        raise UsageError("--serve shows the report, which --no-figures leaves out: leave out one of them.")
    if port and not serve:
        raise UsageError(f"--port {port} is for --serve: add it, or leave out --port.")
    selection = make_selection(model or [], where or [], by or [], sort)
    if folder and runs:
        raise UsageError(f"{folder} and --runs {runs} both name the folder of the runs: leave out one of them.")
    folder = folder_of_runs(folder or runs)
    selected = [RunDir(folder)] if (folder / "config.json").is_file() else find_runs(folder)
    states = read_states([run for run in selected if not run.is_finished()])
    comparison = collect_runs(selected, {state.name: (state.state, state.reason) for state in states}, selection)
    if not selected:
        out.note(no_runs_message(folder) + (": nothing was written" if output else ""))
    values = as_json(comparison) if json else None  # slow: computed only on request
    out.result(values, show=lambda: out.tables(terminal_tables(comparison, out.width)))
    if comparison.left_out:
        out.note(f"\n{counted(comparison.left_out, 'finished run')} excluded by --model or --where")
    if output and selected:
        with out.progress("drawing", "figures") as progress:
            written = write_results(comparison, output, folder, figures=figures, progress=progress)
        out.note(f"\nwritten to {output}: {', '.join(written)}")
    if serve and selected:
        serve_results(comparison, output, folder, port, out.note)


def predict(
    run: OneRun,
    source: Annotated[Path, argument("INPUT", "Folder of one or more patients; an image or a folder of images.")],
    output: Annotated[Path, option("--output", "-o", value="DIR", text="Folder to write the predictions to.")],
    runs: Runs = None,
    flips: Annotated[
        bool | None,
        flag("--flips/--no-flips", text="Average over flips of the input; default: as the run was tested."),
    ] = None,
    clean: Annotated[
        bool | None,
        flag("--clean/--no-clean", text="Remove small tumour components; default: as the run was tested."),
    ] = None,
    probabilities: Annotated[bool, flag("--probabilities", text="Also write probabilities of NCR, ED and ET.")] = False,
    labels: Edition = None,
    overwrite: Overwrite = False,
    batch_size: Annotated[
        int | None, option("--batch-size", min=1, value="N", panel=EXECUTION, text="Slices or images per batch.")
    ] = None,
    precision: Annotated[
        str, option("--precision", value="NAME", panel=EXECUTION, text="auto, bfloat16, float16 or float32.")
    ] = "auto",
    device: Annotated[str, option("--device", value="NAME", panel=EXECUTION, text="auto, cpu or gpu.")] = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Segment patients or classify images with a trained network.

    Writes CASE-seg.nii.gz for each patient, in the space of its scans, or predictions.csv for images.

    --labels sets the label numbers to write, and to read if a case name does not tell its edition.

    Without it, labels are written as in the edition of the case name, else as in the training data.

    Labelled patients, and images in class folders, are scored.

    Cases that the run trained or validated on are marked, and excluded from means.

    Examples:

    hpc-tumor predict improved-unet patients/BraTS2021_01657 --output predicted

    hpc-tumor predict runs/20250131-120000-cnn-1a2b3c Testing --output predicted
    """
    from hpc_tumor.cli.views.prediction import show_prediction
    from hpc_tumor.prediction.options import Options
    from hpc_tumor.prediction.predict import predict as predict_source

    directory = select_run(runs, run)
    options = Options(device, precision, batch_size, flips, clean, probabilities, overwrite, labels)
    prediction = predict_source(directory, source, output, options, out.progress)
    if not directory.is_finished():
        out.warning(f"{directory.name} is unfinished: using its best weights so far, epoch {prediction.facts.epoch}.")
    show_prediction(prediction)


def export(
    run: OneRun,
    output: Annotated[Path, option("--output", "-o", value="FILE", text="ONNX file to write.")],
    runs: Runs = None,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Export a trained network to ONNX, compared with torch if onnxruntime is installed.

    Example: hpc-tumor export improved-unet --output improved-unet.onnx
    """
    from hpc_tumor.cli.views.prediction import show_export
    from hpc_tumor.prediction.export import export_onnx

    show_export(export_onnx(select_run(runs, run), output, overwrite))

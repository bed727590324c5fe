"""Commands about results: compare runs, predict with one, export one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hpc_tumor.cli.options import (
    HOW,
    Json,
    Networks,
    OneRun,
    Overwrite,
    Runs,
    Verbose,
    argument,
    complete_editions,
    flag,
    folder_of_runs,
    one_run,
    option,
    say_no_runs,
)
from hpc_tumor.console import out
from hpc_tumor.errors import UsageError
from hpc_tumor.vocabulary import counted

Where = Annotated[
    list[str] | None, option("--where", value="KEY=VALUE", text="Only runs with this setting, such as loss=dice-bce.")
]
By = Annotated[
    list[str] | None,
    option("--by", value="KEY", text="Settings that make an entry of the comparison; else all that differ."),
]
Sort = Annotated[
    str | None,
    option("--sort", value="SCORE", text="Order of the entries: dice, hd95_WT, accuracy, parameters …"),
]
Figures = Annotated[bool, flag("--figures/--no-figures", text="Draw figures and write the report, beside the tables.")]
Serve = Annotated[
    bool, flag("--serve", text="Serve report.html on this machine alone, for a browser behind an ssh tunnel.")
]
Port = Annotated[int, option("--port", min=0, max=65535, value="PORT", text="Of --serve; 0: any that is free.")]


def collect(
    folder: Annotated[Path | None, argument("DIR", "The same as --runs; also one run directory.")] = None,
    runs: Runs = None,
    output: Annotated[
        Path | None, option("--output", "-o", value="DIR", text="Folder for the tables, figures and report.html.")
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
    """Compare the runs, finished or not: a table here, and files, figures and a report where --output says.

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
    one = (folder / "config.json").is_file()
    found = [RunDir(folder)] if one else find_runs(folder)
    states = read_states([run for run in found if not run.is_finished()])
    comparison = collect_runs(found, {state.name: (state.state, state.reason) for state in states}, selection)
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
    source: Annotated[Path, argument("INPUT", "Folder of a patient or of many; an image or a folder of images.")],
    output: Annotated[Path, option("--output", "-o", value="DIR", text="Folder to write to.")],
    runs: Runs = None,
    flips: Annotated[
        bool | None,
        flag("--flips/--no-flips", text="Mean over the flips of a slice or image; else as the run was tested."),
    ] = None,
    clean: Annotated[
        bool | None, flag("--clean/--no-clean", text="Without small pieces of tumour; else as the run was tested.")
    ] = None,
    probabilities: Annotated[bool, flag("--probabilities", text="Write those of NCR, ED and ET as well.")] = False,
    labels: Annotated[
        str | None,
        option(
            "--labels",
            value="EDITION",
            autocompletion=complete_editions,
            text="Edition whose label numbers are written, and read where a patient's name tells none; else that of the"
            " name, or of the data trained on.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    batch_size: Annotated[
        int | None, option("--batch-size", min=1, value="N", panel=HOW, text="Slices or images at once.")
    ] = None,
    precision: Annotated[
        str, option("--precision", value="NAME", panel=HOW, text="auto, bfloat16, float16 or float32.")
    ] = "auto",
    device: Annotated[str, option("--device", value="NAME", panel=HOW, text="auto, cpu or cuda.")] = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Let a trained network label patients, or classify images.

    A patient gives CASE-seg.nii.gz in the space of its scans, labelled as in BraTS; images give predictions.csv.

    Patients with labels, and images in folders of classes, are scored.

    Cases that the run trained or validated on are marked, and count in no mean.

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
    output: Annotated[Path, option("--output", "-o", value="FILE", text="File to write: NAME.onnx.")],
    runs: Runs = None,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a trained network as ONNX, for programs without torch; compared with torch where onnxruntime is there.

    Example: hpc-tumor export improved-unet --output improved-unet.onnx
    """
    from hpc_tumor.cli.views.prediction import show_export
    from hpc_tumor.prediction.export import export_onnx

    show_export(export_onnx(one_run(runs, run), output, overwrite))

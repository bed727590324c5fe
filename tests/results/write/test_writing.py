"""Files that `collect` writes to a folder, and serving of the report."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from made_runs import classification_run, full_segmentation_run

from hpc_tumor import cli

TABLES = {"cases.csv", "comparison-long.csv", "comparison.csv", "comparison.json", "comparison.md", "comparison.tex"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (0, 1):
        name = f"20250101-120000-unet-00{seed}000"
        full_segmentation_run(tmp_path / "runs", name, "unet", seed, patients=6)
    classification_run(tmp_path / "runs", "20250101-120000-cnn-000000", [True, False, True, True])
    return tmp_path / "runs"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_tables_figures_and_report(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = runs.parent / "results"
    assert cli.main(["collect", str(runs), "--output", str(output), "--no-figures"]) == 0
    assert names(output) == TABLES
    assert cli.main(["collect", str(runs), "--output", str(output)]) == 0
    assert names(output) == {*TABLES, "figures", "report.html"}
    assert "report.html" in capsys.readouterr().err
    kept = (output / "figures" / "mine.svg").write_text("mine")
    before = names(output / "figures")
    assert cli.main(["collect", str(runs), "--output", str(output), "--model", "cnn"]) == 0
    said = capsys.readouterr()
    assert "2 finished runs excluded by --model or --where" in said.err
    assert "Segmentation" not in said.out
    after = names(output / "figures")
    assert after < before
    assert (output / "figures" / "mine.svg").stat().st_size == kept
    assert not any(name.startswith("segmentation") for name in after)


@pytest.mark.slow
def test_a_run_that_lost_its_best_weights_is_marked_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, output = tmp_path / "runs", tmp_path / "results"
    lost = full_segmentation_run(runs, "20250101-120000-unet-000001", "unet", patients=6, weights_lost="damaged")
    full_segmentation_run(runs, "20250101-120000-improved-unet-000002", "improved-unet", patients=6)
    marked = f"{lost.name}: scored with the weights of its last epoch: those of its best epoch were damaged"
    assert cli.main(["collect", str(runs), "--output", str(output)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    pages = {path.name: path.read_text() for path in output.iterdir() if path.is_file()}
    plain = {"terminal": shown, "comparison.md": pages["comparison.md"], "report.html": pages["report.html"]}
    for name, page in plain.items():
        assert marked in page, name
        assert "unet (last epoch)" in page, name
        assert "improved-unet (last epoch)" not in page, name
    assert marked in pages["comparison.tex"].replace(r"\allowbreak{}", "").replace("{}", "")
    assert "unet (last epoch)" in pages["comparison.tex"]
    (group,) = json.loads(pages["comparison.json"])["groups"]
    assert any(marked in note for note in group["notes"])
    assert {run["run"]: (run["weights_lost"], run["best_epoch"]) for run in group["runs"]} == {
        lost.name: ("damaged", None), "20250101-120000-improved-unet-000002": (None, 18),
    }  # fmt: skip
    assert [entry["weights_lost"] for entry in group["entries"]] == [[lost.name], []]
    for name in ("comparison.csv", "comparison-long.csv", "cases.csv"):
        rows = list(csv.DictReader(pages[name].splitlines()))
        assert {row["entry"]: row["weights_lost"] for row in rows if row["entry"]} == {
            "unet (last epoch)": "damaged", "improved-unet": "",
        }, name  # fmt: skip
    shutil.rmtree(runs / "20250101-120000-improved-unet-000002")
    assert cli.main(["collect", str(runs)]) == 0
    assert "the best epoch" not in " ".join(capsys.readouterr().out.split())  # now that it is said of nobody


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--serve", "--no-figures"), "leave out one of them"),
        (("--port", "8080"), "is for --serve"),
        (("--where", "loss"), "has no value"),
        (("--where", "los=bce"), "unknown setting 'los'"),
        (("--by", "nothing"), "unknown setting 'nothing'"),
        (("--sort", "dise"), "Did you mean 'dice'"),
        (("--model", "resnet"), "resnet"),
    ],
)
def test_a_selection_that_cannot_be_met(
    runs: Path, options: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["collect", str(runs), "--output", str(runs.parent / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) <= 2
    assert not (runs.parent / "out").exists()


@pytest.mark.slow
def test_serving_what_is_written_nowhere_else(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "hpc_tumor", "collect", str(runs), "--serve"], text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "Ctrl-C" in line:
                    break
            (url,) = re.findall(r"http://127\.0\.0\.1:\d+/\S+", "".join(lines))
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert b"Which network segments tumours best?" in answer.read()
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(url[:-6] + "x/", timeout=20)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert not list((tmp_path / "temporary").glob("hpc-tumor-*"))

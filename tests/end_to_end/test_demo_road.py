"""The whole road as a person walks it: made-up scans, stores, two networks, one of them on two ranks, a comparison."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder with blanks"
    folder.mkdir()
    return folder


def hpc_tumor(work: Path, *arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "HPC_TUMOR_CACHE_DIR" or not name.startswith("HPC_TUMOR_")
    }
    done = subprocess.run(
        [sys.executable, "-m", "hpc_tumor", *arguments], cwd=work, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, timeout=400,
        env={**kept, "OMP_NUM_THREADS": "1", "HPC_TUMOR_CONFIG_DIR": str(work / "none"), **variables},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def make_stores(work: Path) -> None:
    hpc_tumor(work, "phantom", "raw/brats", "--dataset", "brats", "--cases", "4", "--shape", "48,48,16")
    hpc_tumor(work, "phantom", "raw/brain-mri", "--dataset", "brain-mri", "--cases", "60")
    found = hpc_tumor(work, "prepare-data", "raw/brats", "brats.zarr").stderr
    assert "raw/brats: brats, 4 cases" in found
    hpc_tumor(work, "prepare-data", "raw/brain-mri", "brain-mri.zarr")


def test_from_raw_scans_to_the_comparison(work: Path) -> None:
    make_stores(work)
    short = ("--set", "epochs=2", "--set", "batch_size=8", "--set", "filters=4")
    waited = hpc_tumor(
        work, "submit", "--model", "unet", "--data", "brats.zarr", "--cluster", "local", "--gpus", "2", *short, "--wait"
    )
    assert "1 run: 1 finished" in waited.stderr
    hpc_tumor(
        work,
        "submit",
        "--model",
        "cnn",
        "--data",
        "brain-mri.zarr",
        "--cluster",
        "local",
        "--set",
        "epochs=1",
        "--wait",
    )

    states = json.loads(hpc_tumor(work, "status", "--json").stdout)
    assert [state["state"] for state in states] == ["finished", "finished"]
    unet = next(Path(state["path"]) for state in states if "unet" in state["run"])
    assert "rank 1 of 2" in hpc_tumor(work, "logs", "unet", "--rank", "1").stdout
    started = [json.loads(line) for line in (work / unet / "events.jsonl").read_text().splitlines()]
    assert [event["ranks"] for event in started if event["event"] == "started"] == [2]

    table = hpc_tumor(work, "collect", "--output", "results").stdout
    assert "Segmentation" in table
    assert "Classification" in table
    assert "does not leak" in table
    with (work / "results" / "comparison.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "run"]
    assert {(row["model"], row["gpus"]) for row in rows} == {("unet", "2"), ("cnn", "1")}
    assert {path.name for path in (work / "results").iterdir()} == {
        "cases.csv", "comparison-long.csv", "comparison.csv", "comparison.json", "comparison.md", "comparison.tex",
        "figures", "report.html",
    }  # fmt: skip
    # Every kind of picture that these two networks leave is drawn, as both kinds of file, and stands in the report.
    drawn = {path.stem for path in (work / "results" / "figures").glob("*.svg")}
    assert drawn == {path.stem for path in (work / "results" / "figures").glob("*.png")}
    for part in ("scores", "curves", "distributions", "tradeoffs", "cases", "confusion", "calibration", "filters"):
        assert any(f"-{part}" in name for name in drawn), part
    report = (work / "results" / "report.html").read_text(encoding="utf-8")
    assert report.count("<figure") == len(drawn)
    assert report.count("data:image/png;base64,") >= 3


def test_a_run_that_fails_is_told_by_exit_code_status_and_logs(work: Path) -> None:
    make_stores(work)
    for shard in (work / "brats.zarr").glob("cases/*/0/c/0/0/0/0"):
        shard.write_bytes(b"")
    arguments = ("submit", "--model", "unet", "--data", "brats.zarr", "--cluster", "local")
    failed = hpc_tumor(work, *arguments, "--wait", code=1)
    assert "is missing or damaged" in failed.stderr.splitlines()[-1]
    state = json.loads(hpc_tumor(work, "status", "--json").stdout)[0]
    assert state["state"] == "failed"
    assert "is missing or damaged" in hpc_tumor(work, "logs", "unet", "--errors").stdout
    assert "failed" in hpc_tumor(work, "collect").stdout


def test_debugging_stops_at_a_breakpoint_and_shows_what_happens(work: Path) -> None:
    make_stores(work)
    (work / "stop.py").write_text("def here():\n    print('stopped in', __import__('os').getpid())\n")
    # breakpoint() calls what PYTHONBREAKPOINT names; one is set where the debug run begins.
    program = (
        "import os, sys; from hpc_tumor.training.inspect import debug; run = debug.debug_run;"
        "debug.debug_run = lambda *given: (print('started in', os.getpid()), breakpoint(), run(*given))[2];"
        "from hpc_tumor.cli import main;"
        "sys.exit(main(['submit', '--model', 'unet', '--data', 'brats.zarr', '--debug', '--set', 'filters=4']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=work, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONBREAKPOINT": "stop.here", "PYTHONPATH": str(work)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].removeprefix("started in") == lines[1].removeprefix("stopped in")
    assert all(word in done.stderr for word in ("forward", "backward", "memory     peak", "4×48×48", "gradients"))
    assert not list((work / "runs").glob("2*"))

"""Files of earlier versions are opened, continued, or refused in one line with a remedy; never misread.

tests/fixtures has a folder for each version that was kept; its make.py made them. A version that no longer takes one of
these things as it is says so here: the test then expects the refusal, and the command that it names.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from surroundings import FAKE_SLURM, FIXTURES, bare, kept, write_programs

from hpc_tumor import cli
from hpc_tumor.prediction.export import OLDEST_TORCH

VERSIONS = sorted(path.name for path in FIXTURES.iterdir() if (path / "runs.tar.xz").is_file())
PLACE = "/tmp/hpc-tumor-fixtures"  # where their stores were
Ask = Callable[[str], Any]


@pytest.fixture(params=VERSIONS)
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: what one version made, its stores in another place than they were."""
    bare(monkeypatch, tmp_path)
    folder = tmp_path / "made"
    folder.mkdir()
    kept(folder, request.param)
    for config in folder.glob("*/*/config.json"):
        config.write_text(config.read_text().replace(PLACE, str(folder)))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ask(made: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command that must succeed, and give its JSON, or what it prints where it has none."""

    def run(command: str) -> Any:
        capsys.readouterr()
        code = cli.main(command.split())
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return json.loads(shown.out) if "--json" in command else shown.out

    return run


@pytest.mark.parametrize(
    ("kind", "cases", "tested"),
    [("brats", 5, 1), ("brats-h5", 3, 1), ("brain-mri", 12, 4)],
    ids=lambda value: str(value),
)
def test_stores(ask: Ask, kind: str, cases: int, tested: int) -> None:
    if kind == "brain-mri":
        ask(f"patients {kind}.zarr --json")  # brings the store up to date
    found = ask(f"audit {kind}.zarr --json")
    assert (found["dataset"], found["cases"]) == (kind, cases)
    split = ask(f"split {kind}.zarr --json")
    assert sum(part["cases"] for part in split["parts"].values()) == cases
    assert split["parts"]["test"]["cases"] == tested
    assert split["fingerprint"] == found["fingerprint"]


def test_images_without_patients(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    """A store of images of an earlier version keeps its splits; the new default names the command that it needs."""
    split = ask("split brain-mri.zarr --set split=deduplicated --json")
    assert (split["parts"]["test"]["cases"], split["leaks"], split["leakage"]["known"]) == (4, False, 0)
    assert ask("split brain-mri.zarr --set split=published --json")["leaks"]
    assert cli.main(["split", "brain-mri.zarr"]) == 3
    assert "hpc-tumor patients brain-mri.zarr" in capsys.readouterr().err


def test_split_file(ask: Ask, made: Path) -> None:
    kept = json.loads((made / "split.json").read_text())
    again = ask("split brats.zarr --set split_file=split.json --output again.json --json")
    assert json.loads((made / "again.json").read_text())["parts"] == kept["parts"]
    assert again["fingerprint"] == kept["fingerprint"]


def test_job_file_and_profile(ask: Ask, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_programs(made.parent / "home" / "programs", FAKE_SLURM)
    monkeypatch.setenv("PATH", f"{made.parent / 'home' / 'programs'}:/usr/bin:/bin")
    (array,) = ask("submit --job job.toml --data brats.zarr --cluster ./orfeo.toml --dry-run --json")
    assert (len(array["runs"]), array["plan"]["partition"]) == (8, "MIXED")
    (run,) = ask("submit --job job.toml --data brats.zarr --cluster ./orfeo.toml --set filters=2 --seed 3"
                 " --set learning_rate=0.01 --json")  # fmt: skip
    assert json.loads((Path(run["path"]) / "config.json").read_text())["recipe"]["epochs"] == 2


@pytest.mark.slow
def test_finished_run(ask: Ask, made: Path) -> None:
    (state,) = ask("status --runs finished --json")
    assert (state["state"], state["epoch"], state["epochs"], state["job_id"].isdigit()) == ("finished", 60, 60, True)
    result = json.loads(next(made.glob("finished/*/result.json")).read_text())
    collected = ask("collect finished --output results --json")
    ((entry,),) = ([entry for entry in group["entries"] if entry["model"]] for group in collected["groups"])
    assert entry["runs"] == [result["run"]]
    assert entry["statistics"]["dice"]["mean"] == pytest.approx(result["best"]["test"]["dice"])
    assert (made / "results" / "report.html").is_file()
    assert "finished" in ask("logs unet --runs finished")
    (kind,) = ask("efficiency --runs finished --json")["kinds"]
    assert kind["model"] == "unet"
    assert ask("clean --runs finished --json")["leftovers"] == []


@pytest.mark.slow
def test_finished_run_predicts_and_is_exported(ask: Ask, made: Path) -> None:
    """With the scores of its test: the patients are those of its store, made up again."""
    ask("phantom new --dataset brats --cases 5 --seed 1 --shape 32,32,12")
    found = ask("predict unet new --runs finished --precision float32 --output predicted --json")
    assert found["known"]["told_by"] == "content"
    with next(made.glob("finished/*/cases.csv")).open() as file:
        (tested,) = csv.DictReader(file)
    (new,) = (case for case in found["predictions"] if case["known"] is None)
    assert new["case"] == tested["case"]
    assert new["scores"]["dice_WT"] == pytest.approx(float(tested["dice_WT"]), abs=0.01)
    assert max(case["scores"]["dice_WT"] for case in found["predictions"]) > 0.5
    assert len(list((made / "predicted").glob("*-seg.nii.gz"))) == 5
    pytest.importorskip("onnx")
    pytest.importorskip("torch", minversion=OLDEST_TORCH)
    ask("export unet --runs finished --output network.onnx --json")
    assert (made / "network.onnx").stat().st_size > 10_000


def test_finished_classifier(ask: Ask, made: Path) -> None:
    """Its weights were removed: they are large."""
    collected = ask("collect classified --json")
    result = json.loads(next(made.glob("classified/*/result.json")).read_text())
    (group,) = collected["groups"]
    assert group["entries"][0]["statistics"]["accuracy"]["mean"] == result["best"]["test"]["accuracy"]


def test_failed_run(ask: Ask) -> None:
    (state,) = ask("status --runs failed --json")
    assert state["state"] == "failed"
    assert "gradients are no longer finite" in state["reason"]
    assert "recipe.learning_rate" in ask("logs unet --runs failed --errors")
    assert [item["state"] for item in ask("collect failed --json")["unfinished"]] == ["failed"]


@pytest.mark.slow
def test_interrupted_run_goes_on_to_its_end(ask: Ask, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (state,) = ask("status --runs interrupted --json")
    assert state["state"] == "cancelled"
    (run,) = (made / "interrupted").iterdir()
    before = (run / "metrics.jsonl").read_text()
    assert ask("resume unet --runs interrupted --json")["resumed"] == [run.name]
    end = time.monotonic() + 120
    while ask("status --runs interrupted --json")[0]["state"] not in ("finished", "failed", "lost"):
        assert time.monotonic() < end
        time.sleep(0.2)
    (state,) = ask("status --runs interrupted --json")
    assert state["state"] == "finished", state["reason"]
    after = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in after if line["part"] == "train"] == list(range(1, 31))
    assert (run / "metrics.jsonl").read_text().startswith(before)

"""Names that the shell completes, and the version."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hpc_tumor
from hpc_tumor import cli
from hpc_tumor.cli import options


@pytest.mark.parametrize(
    ("complete", "name"),
    [
        (options.complete_models, "unet"),
        (options.complete_clusters, "local"),
        (options.complete_editions, "brats-2017-2021"),
    ],
)
def test_names_that_are_registered(complete: Any, name: str) -> None:
    assert name in complete()


def test_runs_of_the_folder_in_use_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    for name in ("20260101-1-unet", "20260202-2-unet", "20270101-3-unet", ".code-0"):
        (runs / name).mkdir(parents=True)
    context: Any = SimpleNamespace(params={"runs": runs})
    assert options.complete_runs(context, "2026") == ["20260202-2-unet", "20260101-1-unet"]
    context.params["runs"] = None
    monkeypatch.setenv("HPC_TUMOR_RUNS", str(runs))
    assert options.complete_runs(context, "2027") == ["20270101-3-unet"]
    monkeypatch.setenv("HPC_TUMOR_RUNS", str(tmp_path / "none"))
    assert options.complete_runs(context, "") == []


def test_the_last_of_several_states() -> None:
    assert "running,failed" in options.complete_states("running,fa")
    assert options.complete_states("running,nothing") == []


def test_the_version_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{hpc_tumor.__version__}\n"

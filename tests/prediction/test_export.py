"""Networks as ONNX: all of them, for any number of images, with what they are in the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained_runs import untrained_run

from hpc_tumor import cli
from hpc_tumor.models import MODELS
from hpc_tumor.prediction import export
from hpc_tumor.prediction.trained import load_network
from hpc_tumor.run_dir import RunDir

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("torch", minversion=export.OLDEST_TORCH)
SIZES = {"cnn": 72, "alexnet": 72, "vgg16": 32, "vit": 32}


def run_of(runs: Path, model: str, **options: Any) -> RunDir:
    filters = 4 if MODELS[model].task == "segmentation" else None
    return untrained_run(runs, model, SIZES.get(model, 32), filters=filters, **options)


# Tracing takes the big classifiers and deep U-Nets longer than the rest.
@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=[] if name in ("cnn", "unet") else pytest.mark.slow) for name in MODELS],
)
def test_every_network_can_be_exported(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = run_of(tmp_path, model), tmp_path / "new" / "network.onnx"
    assert cli.main(["export", str(run.path), "--output", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["difference"] < 1e-3
    assert [path.name for path in file.parent.iterdir()] == ["network.onnx"]
    _, network = load_network(run)
    session = onnxruntime.InferenceSession(file)
    images = torch.randn(5, *shown["input"][1:])
    (found,) = session.run(["logits"], {"images": images.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(found, network(images).numpy(), atol=1e-3)
    about = session.get_modelmeta().custom_metadata_map
    assert about["model"] == model
    assert about["run"] == run.name
    names = ["NCR", "ED", "ET"] if "unet" in model else ["glioma", "meningioma", "notumor", "pituitary"]
    assert json.loads(about["classes"]) == names
    assert ("z-scored" if "unet" in model else "cropped to the head") in about["input"]


def test_metadata_says_what_the_output_means(tmp_path: Path) -> None:
    plain, exclusive = (
        export.metadata(load_network(run_of(tmp_path, "unet", exclusive=choice))[0]) for choice in (False, True)
    )
    assert "sigmoid" in plain["output"]
    assert "softmax" in exclusive["output"]
    assert json.loads(plain["channels"]) == ["FLAIR", "T1", "T1ce", "T2"]


@pytest.mark.slow
def test_other_logits_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, "cnn")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert cli.main(["export", str(run.path), "--output", str(tmp_path / "new" / "network.onnx")]) == 1
    assert "the logits of onnxruntime differ from torch" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = run_of(tmp_path, "cnn"), tmp_path / "network.onnx"
    file.write_text("mine")
    assert cli.main(["export", str(run.path), "--output", str(file)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["export", str(run.path), "--output", str(tmp_path / "network.pt")]) == 2
    assert "must end in .onnx" in capsys.readouterr().err
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert cli.main(["export", str(run.path), "--output", str(file), "--overwrite"]) == 2
    assert "pip install 'hpc-tumor[onnx]'" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(export, "OLDEST_TORCH", "99.1")
    assert cli.main(["export", str(run.path), "--output", str(file), "--overwrite"]) == 2
    assert f"needs torch 99.1 or newer, not {torch.__version__}" in capsys.readouterr().err
    assert file.read_text() == "mine"


@pytest.mark.slow
def test_without_onnxruntime_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, find = run_of(tmp_path, "cnn"), export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert cli.main(["export", str(run.path), "--output", str(tmp_path / "network.onnx")]) == 0
    assert "not compared with torch" in capsys.readouterr().out
    onnx.checker.check_model(tmp_path / "network.onnx")

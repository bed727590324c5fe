"""The file of pictures: the same from any number of ranks; it disturbs nothing and ends no run."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import build_state_again, new_run, read_pictures, train_here, train_ranks

from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.outputs import pictures
from hpc_tumor.training.outputs.pictures import make_pictures


@pytest.mark.parametrize("model", ["cnn", "improved-unet"])
def test_nothing_is_disturbed(tmp_path: Path, image_store: Path, slice_store: Path, model: str) -> None:
    run = new_run(tmp_path, image_store if model == "cnn" else slice_store, model)
    state, best = build_state_again(run, best=False)
    state.network.train()
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()
    make_pictures(state, best)()
    first = state.run.pictures.read_bytes()
    make_pictures(state, best)()
    assert state.run.pictures.read_bytes() == first
    assert all(module.training for module in state.network.modules())
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state()[1].tolist() == random[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.network.state_dict().items())
    assert not list(state.run.path.rglob("*.tmp"))


def test_large_images_are_thinned_out(tmp_path: Path, image_store: Path) -> None:
    state, best = build_state_again(new_run(tmp_path, image_store, "cnn", data={"image_size": 288}), best=False)
    make_pictures(state, best)()
    arrays, about = read_pictures(state.run)
    assert about["image_size"] == [288, 288]
    assert about["every"] == 2
    assert arrays["wrong_images"].shape[1:] == (144, 144)
    assert arrays["filters"].shape == (96, 3, 9, 9)
    assert state.run.pictures.stat().st_size < 3e6


def test_pictures_that_fail_end_no_run(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("no paint\nleft")

    monkeypatch.setattr(pictures, "case_pictures", broken)
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 1})
    run.pictures.write_bytes(b"of an earlier end")
    assert train_here(run) == "finished"
    assert run.is_finished()
    assert not run.pictures.exists()
    (event,) = run.read_events("pictures left out")
    assert event["reason"] == "RuntimeError: no paint"
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [line.split(" ", 1)[1] for line in warnings] == [
        "warning: this run has no pictures for a report: RuntimeError: no paint"
    ]


def test_a_network_that_gives_no_numbers_has_pictures(tmp_path: Path, slice_store: Path) -> None:
    state, best = build_state_again(new_run(tmp_path, slice_store, "unet"), best=False)
    with torch.no_grad():
        next(iter(state.network.parameters())).fill_(torch.nan)
    make_pictures(state, best)()
    arrays, _ = read_pictures(state.run)
    assert not arrays["best_probabilities"].any()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["attention-unet", "cnn"])
def test_ranks_leave_the_file_of_one(tmp_path: Path, image_store: Path, more_slices: Path, model: str) -> None:
    alone = new_run(tmp_path / "alone", image_store if model == "cnn" else more_slices, model)
    train_here(alone)
    shared = RunDir(tmp_path / "shared" / alone.name)
    shutil.copytree(alone.path, shared.path)
    shared.result.unlink()
    shared.pictures.unlink()
    train_ranks(shared, 2)  # only the end is left to do
    assert shared.is_finished()
    assert shared.pictures.read_bytes() == alone.pictures.read_bytes()

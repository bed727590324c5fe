"""Checkpoints: whole or not at all, refused where damaged or of another experiment, never executed."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_tumor.errors import DataError
from hpc_tumor.training.checkpoints.files import (
    Progress,
    load_checkpoint,
    random_state,
    set_random_state,
    write_checkpoint,
)

CPU = torch.device("cpu")
IDENTITY = {"network": "cnn", "seed": 0}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    state = Progress(epoch=3, step=7, totals=[{"loss": torch.tensor(1.5), "samples": 4}], best_score=0.5)
    weights = {"w": torch.randn(3)}
    write_checkpoint(tmp_path / "last.pt", state, IDENTITY, {"model": weights})
    loaded = load_checkpoint(tmp_path / "last.pt", CPU, IDENTITY)
    assert loaded["state"] == state
    assert torch.equal(loaded["model"]["w"], weights["w"])
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_random_generators_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pt", Progress(), {}, {"random": [random_state(CPU)]})
    expected = (torch.rand(3), np.random.rand(3), random.random())
    for generator in (torch.rand, np.random.rand):
        generator(100)
    set_random_state(load_checkpoint(tmp_path / "last.pt", CPU)["random"][0], CPU)
    again = (torch.rand(3), np.random.rand(3), random.random())
    assert torch.equal(expected[0], again[0])
    assert (expected[1] == again[1]).all()
    assert expected[2] == again[2]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "pickle"])
def test_damaged_checkpoint_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, Progress(), IDENTITY, {"model": {"w": torch.zeros(1000)}})
    contents = path.read_bytes()
    if damage == "cut":
        path.write_bytes(contents[: len(contents) // 2])
    elif damage == "noise":
        path.write_bytes(b"\x00\xff" * 500)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        torch.save({"format": 1, "state": Path("/")}, path)
    with pytest.raises(DataError, match=r"last\.pt cannot be read: it is damaged"):
        load_checkpoint(path, CPU, IDENTITY)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pt", Progress(), IDENTITY, {"format": 99})
    with pytest.raises(DataError, match="has checkpoint format 99; this version reads"):
        load_checkpoint(tmp_path / "last.pt", CPU, IDENTITY)


def test_what_is_no_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "last.pt").mkdir()
    for name in ("last.pt", "gone.pt"):
        with pytest.raises(DataError, match="it is damaged"):
            load_checkpoint(tmp_path / name, CPU, IDENTITY)


def test_a_checkpoint_is_never_executed(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"format": 1, "state": {}, "payload": Hostile()}, tmp_path / "last.pt")
    with pytest.raises(DataError):
        load_checkpoint(tmp_path / "last.pt", CPU)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pt", Progress(), IDENTITY, {})
    with pytest.raises(DataError, match="made with seed 0, but it is 1 now"):
        load_checkpoint(tmp_path / "last.pt", CPU, {**IDENTITY, "seed": 1})

"""Resource usage that a rank records: enough for advice, in complete files, without affecting training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from training_runs import StopAt, new_run, scores, spawn, weights

from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed, init_distributed
from hpc_tumor.training.loop import train
from hpc_tumor.training.watch.usage import GpuWatch, Usage, process_seconds

_SMI = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$*" in *GPU-broken*) echo "No devices were found"; exit 6;; esac
cat {folder}/says
"""


def train_here(run: RunDir, start: int | None, stop_at: int | None = None, read_from: Path | None = None) -> str:
    distributed = init_distributed(1, threads=1, alone=True)
    return train(run.experiment(), run, distributed, StopAt(stop_at), start=start, read_from=read_from)


def test_each_start_leaves_what_it_used(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet")
    assert train_here(run, 0, stop_at=2) == "stopped"
    assert train_here(run, 1) == "finished"
    first, second = (read_json(run.usage(0, start)) or {} for start in (0, 1))
    assert (first["ended"], second["ended"]) == ("stopped", "finished")
    assert (second["rank"], second["ranks"], second["nodes"], second["gpu"], second["watched"]) == (0, 1, 1, None, [])
    assert second["memory"] > 100e6  # Python and torch alone
    assert 0 < second["data_wait_seconds"] < second["training_seconds"] < second["seconds"]
    assert first["cpu_seconds"] < second["cpu_seconds"] < (os.cpu_count() or 1) * second["seconds"]
    assert second["began"] == pytest.approx(first["began"], abs=1)  # of the process
    assert not list(run.logs.glob(".*"))


def test_nothing_is_recorded_unless_asked(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn", recipe={"epochs": 1})
    train_here(run, None)
    assert not list(run.logs.glob("*usage*"))


def test_a_start_that_fails_leaves_what_it_used(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn")
    run.checkpoints.rmdir()
    run.checkpoints.write_text("in the way")
    with pytest.raises(OSError, match="checkpoints"):
        train_here(run, 3)
    assert (read_json(run.usage(0, 3)) or {})["ended"] == "failed"


@pytest.mark.slow
def test_a_killed_start_has_left_it_before(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time; from pathlib import Path; from hpc_tumor.training.watch import usage;"
        "from hpc_tumor.training.distributed import Distributed; usage.FIRST_SECONDS = 0.05;"
        "path = Path(sys.argv[1]); recorder = usage.Usage(path, Distributed()).__enter__();"
        "[time.sleep(0.02) for _ in range(3000) if not path.exists()]; os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "usage-0.0.json"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    values = json.loads(path.read_text())
    assert values["ended"] is None
    assert values["seconds"] > 0


def test_a_disk_that_does_not_take_it_is_no_reason_to_stop(tmp_path: Path) -> None:
    with Usage(tmp_path / "not there" / "usage-0.0.json", Distributed()) as recorder:
        recorder.outcome = "finished"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_time_counts_from_the_start_of_the_process() -> None:
    began = time.time()
    code = "import time; time.sleep(0.5); from hpc_tumor.training.watch.usage import process_seconds as s; print(s())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < time.time() - began
    assert process_seconds() > 0


def test_without_proc_time_is_that_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", MagicMock(side_effect=OSError("no /proc")))
    assert process_seconds() == pytest.approx(time.process_time(), abs=1)


def test_gpus_are_watched_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(_SMI.format(folder=tmp_path))
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    watch = GpuWatch(["GPU-a", "GPU-b"])
    for busy in (20, 60):
        (tmp_path / "says").write_text(f"GPU-a, {busy}, {100 * busy}, 32768\nGPU-b, [N/A], [N/A], 32768\n")
        watch.look()
    assert watch.as_list() == [
        {"uuid": "GPU-a", "busy": 40.0, "samples": 2, "memory": 6000 * 2**20, "total": 32768 * 2**20}
    ]
    assert (tmp_path / "calls").read_text().splitlines()[0].endswith("--id=GPU-a,GPU-b")
    broken = GpuWatch(["GPU-broken"])
    for _ in range(10):
        broken.look()
    assert broken.as_list() == []
    assert (tmp_path / "calls").read_text().count("GPU-broken") == 3


@pytest.mark.parametrize(
    ("name", "listed"), [("NVIDIA A100-SXM4-40GB", "GPU-1-2"), ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "MIG-1-2")]
)
def test_a_part_of_a_gpu_has_the_name_that_nvidia_smi_knows(
    name: str, listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(uuid="1-2"))
    assert devices.smi_name(torch.device("cuda", 0)) == listed


def test_without_nvidia_smi_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    watch = GpuWatch([])
    watch.look()
    assert watch.as_list() == []


def test_a_copy_of_the_store_changes_nothing_of_the_run(tmp_path: Path, slice_store: Path) -> None:
    shared, copy = tmp_path / "shared" / "brats.zarr", tmp_path / "node" / "brats.zarr"
    for folder in (shared, copy):
        shutil.copytree(slice_store, folder)
    runs = [new_run(tmp_path / name, shared, "unet") for name in ("plain", "staged")]
    train_here(runs[0], None)
    shutil.rmtree(shared)  # nothing but the copy is read
    train_here(runs[1], None, read_from=copy)
    results = [json.loads(run.result.read_text()) for run in runs]
    for result in results:
        for changing in ("run", "seconds", "samples_per_second", "data_wait", "peak_memory_gb"):
            result.pop(changing)
    assert results[0] == results[1]
    assert results[0]["store"] == str(shared)
    assert scores(runs[0]) == scores(runs[1])
    assert runs[0].split.read_text() == runs[1].split.read_text()
    first, second = (weights(run) for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_each_rank_leaves_its_own(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn", data={"keep": "host"})
    spawn(_train_recorded, 2, run.path)
    ranks = [read_json(run.usage(rank, 0)) or {} for rank in (0, 1)]
    assert [(rank["rank"], rank["ranks"], rank["ended"]) for rank in ranks] == [(0, 2, "finished"), (1, 2, "finished")]
    kept = 128 * 128 * 40  # bytes at least, of the training images, in memory that both ranks have
    assert all(kept < rank["shared"] < rank["memory"] for rank in ranks)


def _train_recorded(distributed: Distributed, path: Path) -> None:
    run = RunDir(path)
    train(run.experiment(), run, distributed, start=0)

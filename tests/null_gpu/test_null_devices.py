"""Facts of a GPU, and GPUs that the installed torch has no code for, on the null GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import NullGpu
from training_runs import new_run

from hpc_tumor.cluster.node.job import TrainingJob
from hpc_tumor.data.feed.row_cache import allocate_cache
from hpc_tumor.doctor.gpu import check_gpus
from hpc_tumor.doctor.probe import gather
from hpc_tumor.errors import UsageError
from hpc_tumor.prediction.trained import load_trained
from hpc_tumor.records import Failure
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import devices
from hpc_tumor.system.resources import SHARE_VARIABLE
from hpc_tumor.system.torch_builds import runs_on
from hpc_tumor.training.distributed import init_distributed

V100 = "Tesla V100-PCIE-32GB"
NO_CODE = f"{V100} (compute capability 7.0): torch {torch.__version__} has no code for sm_70, only for "
INSTALL = ": install torch 2.6 to 2.14 with CUDA 12.6 (a build named +cu126)."
needs_torch_without_volta = pytest.mark.skipif(
    runs_on(devices.code_archs(), (7, 0)), reason="the installed torch has code for a V100"
)


def facts() -> dict[str, Any]:
    gpu = devices.find_gpu()
    assert gpu is not None
    assert devices.peak_memory(gpu).allocated == 0
    held = torch.ones(2**20, device=gpu)
    peak = devices.peak_memory(gpu)
    assert peak.allocated == held.nbytes <= peak.reserved
    del held
    devices.reset_peak_memory(gpu)
    assert devices.peak_memory(gpu).allocated == 0
    before = devices.random_state(gpu)
    torch.rand(4, device=gpu)
    after = devices.random_state(gpu)
    assert before is not None
    assert after is not None
    assert not torch.equal(before, after)
    devices.set_random_state(before, gpu)
    restored = devices.random_state(gpu)
    assert restored is not None
    assert torch.equal(before, restored)
    devices.check_code(gpu)
    return {
        "count": devices.count_gpus(),
        "name": devices.name(gpu),
        "total": devices.total_memory(gpu),
        "free": devices.free_memory(gpu) <= devices.total_memory(gpu),
        "formats": devices.number_formats(gpu),
        "backend": devices.backend(gpu),
        "is NVIDIA's": devices.is_nvidia(gpu),
        "has a UUID": devices.uuid(gpu) is not None,
    }


def test_facts_of_a_gpu(null_gpu: NullGpu) -> None:
    assert null_gpu.call(facts, devices=2, memory_mb=1 << 14, name="NVIDIA A100") == {
        "count": 2,
        "name": "NVIDIA A100",
        "total": 2**34,
        "free": True,
        "formats": {"float32", "float16", "bfloat16"},
        "backend": "cpu:gloo,cuda:nccl",
        "is NVIDIA's": True,
        "has a UUID": True,
    }


def formats() -> set[str]:
    gpu = devices.find_gpu()
    assert gpu is not None
    return devices.number_formats(gpu)


@pytest.mark.parametrize(
    ("capability", "half"), [(6.1, set()), (7.0, {"float16"}), (7.5, {"float16"}), (8.0, {"float16", "bfloat16"})]
)
def test_number_formats_by_capability(null_gpu: NullGpu, capability: float, half: set[str]) -> None:
    assert null_gpu.call(formats, capability=capability) == {"float32"} | half


def start(store: Path) -> tuple[str, Failure | None, set[str]]:
    """Start a rank of a run as the local queue does; return its error, and the files that this left."""
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder), store, "cnn")
        before = set(run.path.rglob("*"))
        with pytest.raises(UsageError) as refused:
            TrainingJob(run.path)()
        left = {str(path.relative_to(run.path)) for path in set(run.path.rglob("*")) - before if path.is_file()}
        return str(refused.value), Failure.read(run.failure(0)), left


@needs_torch_without_volta
def test_a_rank_refuses_a_gpu_that_torch_has_no_code_for(null_gpu: NullGpu, stores: dict[str, Path]) -> None:
    """Before anything is written but the reason, which needs no traceback and no other start."""
    error, failure, left = null_gpu.call(start, stores["classification"], capability=7.0, name=V100)
    assert error.startswith(NO_CODE)
    assert error.endswith(INSTALL)
    assert failure is not None
    assert (failure.reason, failure.expected, failure.retry) == (error, True, False)
    assert left == {"logs/failure.0.json", "logs/rank-0.0.error.txt", "events.jsonl", "status.json"}


def predict() -> str:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(UsageError) as refused:
        load_trained(RunDir(Path(folder)))
    return str(refused.value)


def refusal() -> str:
    gpu = devices.find_gpu()
    assert gpu is not None
    with pytest.raises(UsageError) as refused:
        devices.check_code(gpu)
    return str(refused.value)


def _sentence(null_gpu: NullGpu) -> str:
    sentence = null_gpu.call(refusal, capability=7.0, name=V100)
    assert isinstance(sentence, str)
    return sentence


@needs_torch_without_volta
def test_prediction_refuses_it(null_gpu: NullGpu) -> None:
    error = null_gpu.call(predict, capability=7.0, name=V100)
    assert error == f"{_sentence(null_gpu)} --device cpu predicts without it."


def examine() -> tuple[str, str, str]:
    (found,) = [finding for finding in check_gpus(gather()) if finding.level == "error"]
    return found.level, found.text, found.way_out


@pytest.mark.slow
@needs_torch_without_volta
def test_doctor_reports_it(null_gpu: NullGpu) -> None:
    level, text, remedy = null_gpu.call(examine, capability=7.0, name=V100)
    assert (level, f"{text}: {remedy}.") == ("error", _sentence(null_gpu))


def test_a_gpu_older_than_all_builds(null_gpu: NullGpu) -> None:
    assert "choose other GPUs: no torch that" in null_gpu.call(refusal, capability=3.5, name="Tesla K40m")


def test_a_gpu_newer_than_all_builds(null_gpu: NullGpu) -> None:
    """Unless this torch has intermediate code, which the driver compiles for it."""
    function = check if any(arch.startswith("compute_") for arch in devices.code_archs()) else refusal
    sentence = null_gpu.call(function, capability=15.0, name="NVIDIA X100")
    assert sentence is None or sentence.endswith("install a newer torch, built for a newer CUDA.")


def check() -> None:
    gpu = devices.find_gpu()
    assert gpu is not None
    devices.check_code(gpu)


def run_of_a_share(folder: Path) -> dict[str, Any]:
    """Train with a quarter of a GPU, where a rank then allocates more than that; return what it saw."""
    gpu = devices.find_gpu()
    assert gpu is not None
    init_distributed()
    total, free = devices.total_memory(gpu), devices.free_memory(gpu)
    held = torch.empty(total // 2, dtype=torch.uint8, device=gpu)
    left = devices.free_memory(gpu)
    try:
        torch.empty(total, dtype=torch.uint8, device=gpu)
    except torch.OutOfMemoryError as error:
        refused = str(error)
    array = np.zeros((1, 1000), np.uint8)
    rows, _ = allocate_cache("auto", None, [array], int(0.3 * total / 1000), gpu)
    assert rows is not None
    cache, _ = allocate_cache("auto", None, [array], int(0.5 * total / 1000), gpu)
    assert cache is not None
    on_gpu = [rows.on_device, cache.on_device]
    return {"total": total, "free": free, "left": left, "held": held.nbytes, "refused": refused, "on GPU": on_gpu}


def test_a_run_that_shares_a_gpu_cannot_take_the_memory_of_others(null_gpu: NullGpu, tmp_path: Path) -> None:
    found = null_gpu.call(run_of_a_share, tmp_path, memory_mb=4000, variables={SHARE_VARIABLE: "0.25"})
    assert found["total"] == found["free"] == pytest.approx(0.9 * 0.25 * 4000 * 2**20, rel=0.01)
    assert found["left"] == pytest.approx(found["total"] - found["held"], abs=2**21)
    assert "out of memory" in found["refused"]
    assert found["on GPU"] == [True, False]  # 30 and 50 % of the share: rows may take 40 %

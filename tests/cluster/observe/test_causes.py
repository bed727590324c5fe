from __future__ import annotations

from pathlib import Path

import pytest

from hpc_tumor.cluster.observe.causes import recognise, recognise_in, remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'Lmod has detected the following error: The following module(s) are unknown: "cuda/99.1"',
            "module cuda/99.1 does not exist",
        ),
        (
            "ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for 'cuda/99'",
            "module cuda/99 does not exist",
        ),
        ("ERROR: Unable to locate a modulefile for 'gcc/1'", "module gcc/1 does not exist"),
        ("/var/spool/slurmd/job42/slurm_script: line 20: module: command not found", "no `module`"),
        ("slurm_script: line 21: conda: command not found", "conda is not initialised"),
        (
            "CommandNotFoundError: Your shell has not been properly configured to use 'conda activate'.",
            "conda is not initialised",
        ),
        ("EnvironmentNameNotFound: Could not find conda environment: tumor", "conda environment tumor does not exist"),
        ("slurm_script: line 22: /home/anna/env/bin/python: No such file or directory", "no Python at /home/anna/env"),
        (
            "slurmstepd: error: execve(): /home/anna/env/bin/python: No such file or directory",
            "no Python at /home/anna/env/bin/python",
        ),
        ("ModuleNotFoundError: No module named 'torch'", "cannot import torch"),
        ("/usr/bin/python3: No module named hpc_tumor", "cannot import hpc_tumor"),
        (
            "ImportError: /lib64/libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by numpy)",
            "GLIBCXX_3.4.29 is missing",
        ),
        (
            "ImportError: libcudnn.so.9: cannot open shared object file: No such file or directory",
            "library libcudnn.so.9",
        ),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "hpc-tumor doctor"),
        ("The NVIDIA driver on your system is too old (found version 11040).", "driver is too old"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=42.0. Some of the step tasks", "--memory"),
        ("slurmstepd: error: Job 42 exceeded memory limit (4096 > 2048), being killed", "--memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "--accumulate"),
        ("OSError: [Errno 122] Disk quota exceeded: 'runs/x'", "in bytes or files"),
        ("OSError: [Errno 28] No space left on device", "free some space"),
        (
            "misc/shmutils.cc:87 NCCL WARN Error: failed to extend /dev/shm/nccl-4xZ to 33030532 bytes\n"
            "No space left on device",
            "NCCL_SHM_DISABLE",
        ),
        ("OSError: [Errno 116] Stale file handle", "file system failed temporarily"),
        ("PermissionError: [Errno 13] Permission denied: '/scratch/boris'", "no permission to access /scratch/boris"),
        ("torch.distributed.DistBackendError: NCCL error: ncclSystemError: System call failed", "NCCL_SOCKET_IFNAME"),
        ("RuntimeError: Gloo connectFullMesh failed with timed out connecting", "GLOO_SOCKET_IFNAME"),
        (
            "slurmstepd: error: *** JOB 42 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
            "time limit was reached",
        ),
        ("slurmstepd: error: *** STEP 42.0 ON n1 CANCELLED AT 2026-01-01 DUE TO NODE FAILURE ***", "a node failed"),
        ("srun: error: Unable to confirm allocation for job 42: Invalid job id specified", "did not accept"),
    ],
)
def test_what_systems_say_is_put_into_one_sentence(text: str, words: str) -> None:
    cause = recognise(f"some line before\n{text}\nand one after\n")
    assert cause is not None
    assert words in str(cause)
    assert "\n" not in str(cause)


def test_what_is_not_known_is_left_alone() -> None:
    for text in ("", "epoch 3/20 loss 0.25", "ValueError: a defect", "RuntimeError: shape mismatch"):
        assert recognise(text) is None


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", "--account"),
        ("Batch job submission failed: Invalid partition name specified", "--partition"),
        ("Batch job submission failed: Invalid qos specification", "--qos"),
        ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)", "wait until"),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", "--time"),
        ("Batch job submission failed: Requested node configuration is not available", "--gpus"),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", "try again"),
        ("Batch job submission failed: Memory specification can not be satisfied", "--memory"),
    ],
)
def test_what_sbatch_refuses_has_a_way_out(refusal: str, words: str) -> None:
    assert words in remedy(refusal)


def test_the_latest_log_is_believed_and_only_its_end(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("No space left on device\n")
    second.write_text("Stale file handle\n" + "x" * 70_000)
    assert "free some space" in str(recognise_in([first, second, tmp_path / "absent"]))
    second.write_text("Stale file handle\n")
    assert "failed temporarily" in str(recognise_in([first, second]))

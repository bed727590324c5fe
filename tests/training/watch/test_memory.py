"""Too little memory: one message that says what was asked, what there was, and what to change."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from training_runs import new_run

from hpc_tumor.errors import Cause, GpuMemoryError
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.loop import explain_resource_errors
from hpc_tumor.training.watch import memory
from hpc_tumor.training.watch.memory import is_out_of_memory, out_of_memory_error

# A rank whose address space ends a little above what it has when training begins.
_LIMITED = """
import resource, sys
from pathlib import Path
from hpc_tumor.errors import TrainingError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.loop import train_to_end
from hpc_tumor.training.setup import build_state
resource.setrlimit(resource.RLIMIT_AS, (2**46, 2**46))  # any limit: no address space is reserved for huge pages
run = RunDir(Path(sys.argv[1]))
state = build_state(run.experiment(), run, Distributed())
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 60 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    train_to_end(state)
except TrainingError as error:
    print(error)
"""

# Prints the size of the heap that may use huge pages, in MB, and how much memory asking for them took.
_HUGE = """
import resource, sys
from pathlib import Path
from hpc_tumor.training.watch.memory import keep_freed_memory, own_memory
if sys.argv[1] == "limited":
    resource.setrlimit(resource.RLIMIT_AS, (2**46, 2**46))
before = own_memory()[0]
assert keep_freed_memory() and keep_freed_memory()
marked, size = 0, 0
for line in Path("/proc/self/smaps").read_text().splitlines():
    if line.startswith("Size:"):
        size = int(line.split()[1]) // 1024
    if line.startswith("VmFlags:") and "hg" in line.split():
        marked += size
print(marked, (own_memory()[0] - before) // 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs Linux with huge pages")
@pytest.mark.parametrize("limit", ["none", "limited"])
def test_the_heap_uses_huge_pages_but_no_memory_for_them(limit: str) -> None:
    counted = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    done = subprocess.run([sys.executable, "-c", _HUGE, limit], capture_output=True, text=True, check=True)
    marked, used = map(int, done.stdout.split())
    assert (marked > 100) == (limit == "none" and not counted)
    assert used < 100


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_step_that_does_not_fit_is_explained(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"batch_size": 18}, data={"image_size": 512})
    done = subprocess.run([sys.executable, "-c", _LIMITED, str(run.path)], capture_output=True, text=True, check=False)
    said = done.stdout.strip()
    assert said.startswith("out of memory on the host: "), (said, done.stderr)
    assert "GB free; could not allocate 0." in said
    assert "with 18 samples at a time (batch 18 on 1 rank)" in said
    assert (
        "Submit again with --accumulate 2 (the same batch in smaller micro-batches), --set precision=auto, --set"
        in said
    )
    assert "\n" not in said


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9216000000 bytes."), "9.2 GB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 15 GiB"), "2.5 GiB"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "more memory"),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), "more memory"),
        (MemoryError(), "more memory"),
    ],
)  # fmt: skip
def test_all_kinds_of_it_are_known(tmp_path: Path, slice_store: Path, error: Exception, asked: str) -> None:
    assert is_out_of_memory(error)
    explained = out_of_memory_error(error, new_run(tmp_path, slice_store, "unet").experiment(), Distributed())
    assert f"could not allocate {asked} with" in str(explained)
    assert explained.cause is Cause.HOST_MEMORY


def test_an_error_of_this_package_is_not_wrapped_again(tmp_path: Path, slice_store: Path) -> None:
    run, error = new_run(tmp_path, slice_store, "unet"), GpuMemoryError("out of memory on the GPU")
    with pytest.raises(GpuMemoryError) as raised, explain_resource_errors(run.experiment(), run, Distributed()):
        raise error
    assert raised.value is error
    assert raised.value.__cause__ is None


def test_other_errors_are_left_alone() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    """In a process of its own, since it is for the whole process."""
    code = """
import resource, torch
from hpc_tumor.training.watch.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(30_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
print(plain, keep_freed_memory(), faults() and faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain, kept, after = done.stdout.split()
    assert kept == "True"
    assert int(after) < int(plain) / 10


def test_without_glibc_freed_memory_is_left_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", MagicMock(side_effect=OSError("no such library")))
    assert not memory.keep_freed_memory()


def test_without_proc_the_peak_is_that_of_getrusage(monkeypatch: pytest.MonkeyPatch) -> None:
    used = memory.own_memory()[0]
    monkeypatch.setattr(Path, "read_text", MagicMock(side_effect=OSError("no /proc")))
    peak, shared = memory.own_memory()
    assert used / 2 < peak < 10 * max(used, 2**30)
    assert shared == 0


def test_what_cannot_be_made_smaller_is_not_advised(tmp_path: Path, image_store: Path) -> None:
    hardware = {"precision": "bfloat16"}
    run = new_run(tmp_path, image_store, "cnn", recipe={"batch_size": 1}, hardware=hardware)
    error = str(out_of_memory_error(MemoryError(), run.experiment(), Distributed()))
    assert "Submit again with a smaller --set image_size or more --gpus." in error

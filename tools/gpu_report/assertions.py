"""Check on the real device what the tests check without one: no wait, race, pageable copy or mixed devices."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from benchmark_networks import now

from gpu_report.counting import Profile, profile_steps
from gpu_report.job import Job, Tell
from gpu_report.plan import GRAPH
from gpu_report.work import Running, experiment_of, variants_of
from hpc_tumor.errors import GpuMemoryError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.loop import train

STEPS = 4  # the last is replayed where steps are captured
MOST_LAUNCHES = 20  # with copies and fills, of a step that is one graph
EVERYTHING = {"recipe": {"augment": True, "batch_size": 16, "ema": 0.9, "clip_gradients": 1.0, "skip_nonfinite": 3}}
RACES = "losses have the same bits however samples are kept"
_ROOM = 2**26  # bytes: less than weights and activations of a U-Net
_NO_MODE = "torch notices waits for this kind of GPU only in its profiler"
_UNSEEN = "the profiler saw no kernels on this device"


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Check one network, or that the checks themselves would notice a fault."""
    if "planted" in item:
        _plant_faults(torch.device(job.device), tell)
    elif "memory" in item:
        _run_out_of_memory(job, tell)
    else:
        for name, settings in variants_of(torch.device(job.device)).items():
            _check_network(item["network"], name, settings, job, tell)
        if devices.is_gpu(torch.device(job.device)):
            _check_races(item["network"], job, tell)


def _check_network(network: str, name: str, settings: dict[str, Any], job: Job, tell: Tell) -> None:
    """Check steps with everything switched on that a recipe can switch on."""
    running = Running(experiment_of(network, job, EVERYTHING, settings), job)
    torch.backends.cudnn.benchmark = False  # nothing is timed, and the search takes seconds
    for _ in range(STEPS):
        running.step()
    losses = running.losses()
    sound = bool(losses.isfinite().all() and (losses > 0).all())
    tell.check(f"{name}: losses are finite and above 0", sound, value=float(losses.mean()))
    if not devices.is_gpu(running.device):
        return
    now(running.device)
    if running.device.type == "cuda":
        fault = find_wait(lambda: [running.step() for _ in range(STEPS)])
        tell.check(f"{name}: no hidden wait", fault is None, why=fault)
    else:
        tell.check(f"{name}: no hidden wait", None, why=_NO_MODE)
    counts = profile_steps(running.step, running.device)
    tell(launches={name: counts.launches if counts.saw_device else None})
    if running.state.graph.captured is not None:
        started = counts.launches + counts.copies + counts.fills
        passed, why = (started <= MOST_LAUNCHES, None) if counts.saw_device else (None, _UNSEEN)
        tell.check(f"{name}: the host starts few operations", passed, value=started, limit=MOST_LAUNCHES, why=why)
    elif name == GRAPH:
        tell.check(f"{name}: the step was captured", False, why=running.state.graph.off)
    _check_copies(f"{name}: ", counts, tell)


def _check_races(network: str, job: Job, tell: Tell) -> None:
    """Check in deterministic mode that steps fed in different ways, which are timed differently, have the same bits."""
    found = {}
    for name, settings in variants_of(torch.device(job.device)).items():
        running = Running(experiment_of(network, job, EVERYTHING, settings, {"hardware": {"deterministic": True}}), job)
        for _ in range(STEPS):
            running.step()
        found[name] = running.losses()
    torch.use_deterministic_algorithms(False)
    first, *others = found.values()
    computed = bool((first > 0).all())
    same = [bool(torch.equal(first, other)) for other in others]
    why = None if computed else "nothing was computed, so equality means nothing"
    tell.check(RACES, computed and all(same), value=dict(zip(list(found)[1:], same, strict=True)), why=why)


def _check_copies(name: str, counts: Profile, tell: Tell) -> None:
    if not counts.saw_device:
        tell.check(f"{name}no copy from or to pageable memory", None, why=_UNSEEN)
        tell.check(f"{name}no wait in the driver", None, why=_UNSEEN)
        return
    tell.check(f"{name}no copy from or to pageable memory", not counts.pageable, value=counts.pageable, limit=0)
    tell.check(f"{name}no wait in the driver", counts.waits <= 0, value=counts.waits, limit=0)


def find_wait(call: Callable[[], object]) -> str | None:
    """Return where the first operation that waits for the GPU was called; None if there is none."""
    try:
        with _refuse_waits():
            call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/hpc_tumor/" in frame.filename]
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:]]
        return f"{' > '.join(places) or 'a step'}: {str(error).splitlines()[0]}"
    return None


@contextmanager
def _refuse_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _plant_faults(device: torch.device, tell: Tell) -> None:
    """Check that the checks notice a wait, a pageable copy and mixed devices."""
    there, here = torch.ones(1000, device=device), torch.ones(1000)
    if device.type == "cuda":
        tell.check("a planted wait is noticed", find_wait(lambda: there.sum().item()) is not None)
    else:
        tell.check("a planted wait is noticed", None, why=_NO_MODE)
    counts = profile_steps(lambda: (there.copy_(here), there.sum().item()), device)
    if counts.saw_device:
        tell.check("a planted copy from pageable memory is noticed", counts.pageable > 0, value=counts.pageable)
        tell.check("a planted wait in the driver is noticed", counts.waits > 0, value=counts.waits)
    else:
        tell.check("planted faults are noticed by the profiler", None, why=_UNSEEN)
    try:
        there + here
        noticed = False
    except RuntimeError:
        noticed = True
    tell.check("planted mixed devices are noticed", noticed)


def _run_out_of_memory(job: Job, tell: Tell) -> None:
    """Check that a run that does not fit ends with the error that says what to change."""
    device, name = torch.device(job.device), "running out of memory names the GPU and a remedy"
    if device.type != "cuda":
        tell.check(name, None, why="torch cannot limit the memory of this kind of GPU")
        return
    experiment = experiment_of("unet", Job(job.device, False, job.folder), {"data": {"keep": "none"}})
    job.runs.mkdir(parents=True, exist_ok=True)
    torch.cuda.set_per_process_memory_fraction(_ROOM / devices.total_memory(device), device)
    try:
        train(experiment, RunDir.create(job.runs, experiment), Distributed(device=device))
        text = "the run did not run out of memory"
    except GpuMemoryError as error:
        text = str(error)
    tell.check(name, devices.name(device) in text and "--accumulate 2" in text, why=text)

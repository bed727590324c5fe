"""Copies of results to the host: queued without a wait, and complete once they are waited for."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import torch
from child import Watch, watched
from made_volumes import part_of
from processes import NullGpu

from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.host_copy import copy_to_host
from hpc_tumor.training.scoring.cases import Case
from hpc_tumor.training.scoring.volumes import Volumes


def copied() -> tuple[Watch, float, float]:
    """Return the watch of queueing a copy, and its value before and after waiting for it."""
    result = torch.zeros(1000, device="cuda")
    with watched() as watch:
        copy = copy_to_host(result)
        before = copy.tensor.max().item()
        after = copy.wait().max().item()
    return watch, before, after


def test_a_copy_is_queued_and_waited_for_when_it_is_read(null_gpu: NullGpu) -> None:
    watch, before, after = null_gpu.call(copied)
    assert watch.faults() == {}
    assert (watch.copies_out, watch.event_waits) == (1, 1)
    assert after == 0
    assert before != 0, "the copy was complete before anything waited for it"


def test_on_a_cpu_the_result_is_not_copied() -> None:
    result = torch.ones(3)
    assert copy_to_host(result).wait() is result


def devices_of_threads() -> set[int]:
    """Compress the predictions of a rank on the second GPU; return the current devices of the threads that do."""
    gpu = torch.device("cuda", 1)
    devices.use(gpu)
    seen: set[int] = set()

    def compress(*_: object) -> bytes:
        seen.add(torch.cuda.current_device())
        return b""

    with patch("zlib.compress", compress):
        cases: list[Case] = []
        volumes = Volumes(part_of([2]), cases.append)
        volumes.add(np.arange(2), torch.zeros(2, 16, 16, dtype=torch.uint8, device=gpu))
        volumes.share(Distributed())
        assert len(cases) == 1
    return seen


def test_threads_that_wait_for_copies_stay_off_the_gpus_of_other_ranks(null_gpu: NullGpu) -> None:
    assert null_gpu.call(devices_of_threads, devices=2) == {1}

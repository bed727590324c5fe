"""Copies of results to the host: queued without a wait, and complete once they are waited for."""

from __future__ import annotations

import torch
from child import Watch, watched
from processes import NullGpu

from hpc_tumor.training.host_copy import copy_to_host


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

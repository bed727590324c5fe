"""Faults planted in the package's own training step: the null GPU finds each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from child import Watch
from null_runs import watch_steps
from processes import NullGpu, NullGpuError

from hpc_tumor.data.feed.rows import Request, Rows
from hpc_tumor.training.scoring.evaluate import Forward


def reused_buffer(store: Path) -> Watch:
    """Overwrite the memory of a batch as soon as it is released, though its copy to the GPU may not have ended."""

    release = Rows.release

    def release_and_overwrite(rows: Rows, request: Request) -> None:
        release(rows, request)
        request.buffer.tensors[0].zero_()

    with patch.object(Rows, "release", release_and_overwrite):
        return watch_steps(store, "unet", data={"keep": "none"})


def with_logits(store: Path, use: Callable[[torch.Tensor], torch.Tensor]) -> Watch:
    """Let each forward pass of the network return `use(logits)`."""
    forward = Forward.__call__

    def used(self: Forward, *arguments: Any, **options: Any) -> torch.Tensor:
        return use(forward(self, *arguments, **options))

    with patch.object(Forward, "__call__", used):
        return watch_steps(store, "unet")


def wait(store: Path) -> Watch:
    """Look at the logits of each step."""
    return with_logits(store, lambda logits: logits + logits.sum().item())


def tensor_of_the_cpu(store: Path) -> Watch:
    """Multiply the logits by weights that were left on the CPU."""
    return with_logits(store, lambda logits: logits * torch.ones(logits.shape))


def pageable_upload(store: Path) -> Watch:
    """Copy the positions of samples to the GPU from ordinary memory."""

    def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
        return [torch.from_numpy(array).to(device, non_blocking=True) for array in arrays]

    with patch("hpc_tumor.data.feed.rows.all_on_device", upload):
        return watch_steps(store, "unet")


class Unawaited(torch.Event):
    """Event whose wait returns at once."""

    def synchronize(self) -> None:
        pass


def early_flag(store: Path) -> Watch:
    """Read the flag of a broken step before its copy to the host has ended."""
    with patch.object(torch, "Event", Unawaited):
        return watch_steps(store, "unet", data={"keep": "gpu"})


@pytest.fixture(scope="module")
def store(stores: dict[str, Path]) -> Path:
    return stores["segmentation"]


def test_a_reused_buffer_is_a_race(null_gpu: NullGpu, store: Path) -> None:
    watch = null_gpu.call(reused_buffer, store)
    assert watch.faults().keys() == {"races"}


def test_item_is_a_wait(null_gpu: NullGpu, store: Path) -> None:
    watch = null_gpu.call(wait, store)
    assert sum(watch.waits.values()) == 3
    assert all("step.py" in place for place in watch.waits)


def test_an_upload_from_pageable_memory_is_counted(null_gpu: NullGpu, store: Path) -> None:
    watch = null_gpu.call(pageable_upload, store)
    assert watch.faults().keys() == {"copies_in_pageable"}


def test_a_flag_that_is_read_early_stops_the_run(null_gpu: NullGpu, store: Path) -> None:
    with pytest.raises(NullGpuError, match="no longer finite"):
        null_gpu.call(early_flag, store)


def test_a_tensor_of_the_cpu_is_refused(null_gpu: NullGpu, store: Path) -> None:
    with pytest.raises(NullGpuError, match="two devices"):
        null_gpu.call(tensor_of_the_cpu, store)

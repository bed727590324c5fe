"""The null GPU itself: what is planted is found, and what is right is not reported."""

from __future__ import annotations

import building
import pytest
import torch
from child import Watch, memory_full, watched
from processes import NullGpu, NullGpuError


def clean(watch: Watch) -> bool:
    return (
        not (watch.waits or watch.races or watch.copies_in_pageable or watch.refused)
        and (watch.stream_waits + watch.device_waits + watch.copy_waits) == 0
    )


def harmless() -> Watch:
    torch.ones(4, device="cuda").sum()
    with watched() as watch:
        pinned = torch.ones(1000, pin_memory=True)
        (pinned.to("cuda", non_blocking=True) + 1).sum()
    return watch


def test_work_without_a_wait_is_not_reported(null_gpu: NullGpu) -> None:
    watch = null_gpu.call(harmless)
    assert clean(watch)
    assert (watch.launches, watch.copies_in, watch.bytes_in) == (2, 1, 4000)


def item() -> Watch:
    with watched() as watch:
        torch.ones(4, device="cuda").sum().item()
    return watch


def test_a_wait_is_reported_with_its_line(null_gpu: NullGpu) -> None:
    watch = null_gpu.call(item)
    (place,) = watch.waits
    assert place.startswith(f"test_harness.py:{item.__code__.co_firstlineno + 2}")
    assert watch.stream_waits + watch.copy_waits == 1


def pageable() -> Watch:
    with watched() as watch:
        torch.ones(1000).to("cuda", non_blocking=True)
    return watch


def test_a_copy_from_pageable_memory_is_reported(null_gpu: NullGpu) -> None:
    assert null_gpu.call(pageable).copies_in_pageable == 1


def reused(after_wait: bool) -> Watch:
    with watched() as watch:
        pinned = torch.ones(1000, pin_memory=True)
        pinned.to("cuda", non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        if after_wait:
            copied.synchronize()
        pinned.fill_(2)
    return watch


def test_a_buffer_that_is_reused_before_its_copy_is_a_race(null_gpu: NullGpu) -> None:
    assert null_gpu.call(reused, False).races == ["pinned memory of 4000 bytes changed before it was copied to the GPU"]
    assert null_gpu.call(reused, True).races == []


def reused_on_another_stream(waits: bool) -> Watch:
    """Reuse a buffer once work has ended that waited for its copy on another stream, or did not."""
    copies, done = torch.cuda.Stream(), torch.cuda.Event()
    with watched() as watch:
        pinned = torch.ones(1000, pin_memory=True)
        with torch.cuda.stream(copies):
            pinned.to("cuda", non_blocking=True)
        if waits:
            torch.cuda.current_stream().wait_stream(copies)
        done.record()
        done.synchronize()
        pinned.fill_(2)
    return watch


def test_a_stream_that_waits_for_another_has_its_copies_done(null_gpu: NullGpu) -> None:
    assert null_gpu.call(reused_on_another_stream, True).races == []
    assert null_gpu.call(reused_on_another_stream, False).races != []


def read_flag(waits: bool) -> float:
    flag = torch.empty((), pin_memory=True).copy_(torch.zeros((), device="cuda"), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    if waits:
        arrived.synchronize()
    return flag.item()


def test_a_flag_that_is_read_before_it_arrives_is_wrong(null_gpu: NullGpu) -> None:
    assert null_gpu.call(read_flag, True) == 0
    assert null_gpu.call(read_flag, False) > 1e38


def mixed() -> None:
    torch.ones(4, device="cuda") + torch.ones(4)


def test_a_tensor_of_the_cpu_among_those_of_the_gpu_is_refused(null_gpu: NullGpu) -> None:
    with pytest.raises(NullGpuError, match="two devices"):
        null_gpu.call(mixed)


def waits_close(launches: int) -> int:
    event, x = torch.cuda.Event(), torch.ones(4, device="cuda")
    with watched() as watch:
        event.record()
        for _ in range(launches):
            x.add_(1)
        event.synchronize()
    return watch.closest_event_wait


@pytest.mark.slow
def test_the_distance_of_a_wait_from_its_event_is_counted(null_gpu: NullGpu) -> None:
    assert null_gpu.call(waits_close, 7) == 7


def allocate(after: int) -> list[str]:
    outcomes = []
    with memory_full(after):
        for _ in range(3):
            try:
                torch.empty(100 << 20, dtype=torch.uint8, device="cuda")
                outcomes.append("fits")
            except torch.OutOfMemoryError:
                outcomes.append("full")
    return outcomes


def test_memory_runs_out_where_it_is_told_to(null_gpu: NullGpu) -> None:
    assert null_gpu.call(allocate, 1, memory_mb=150) == ["fits", "fits", "fits"]  # the same block each time
    assert null_gpu.call(allocate, 0) == ["full", "full", "full"]
    assert null_gpu.call(allocate, -1, memory_mb=90) == ["full", "full", "full"]


def describe() -> tuple:
    p = torch.cuda.get_device_properties(2)
    return torch.cuda.device_count(), p.name, (p.major, p.minor), p.total_memory


def test_devices_are_as_told(null_gpu: NullGpu) -> None:
    assert null_gpu.call(describe, devices=3, memory_mb=1024, capability=7.5, name="T4") == (3, "T4", (7, 5), 1 << 30)


def crash() -> None:
    import ctypes

    ctypes.string_at(1)


def test_a_crash_is_an_error_with_the_stack_and_the_next_call_works(null_gpu: NullGpu) -> None:
    with pytest.raises(NullGpuError, match=r"SIGSEGV(.|\n)*in crash"):
        null_gpu.call(crash)
    assert null_gpu.call(read_flag, True) == 0


@pytest.mark.parametrize(("version", "program"), [("12.4", "g++"), (None, "g++"), ("13.0", "no such compiler")])
def test_what_is_missing_is_named(version: str | None, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(building, "PROGRAMS", (program,))
    with pytest.raises(building.UnavailableError, match="needs no such compiler" if version == "13.0" else "CUDA 13"):
        building.build()

"""Batches on the null GPU: stores of every type, copies beside the computation, and few launches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from child import Watch, watched
from processes import NullGpu, NullGpuError
from torch.cuda._sanitizer import enable_cuda_sanitizer
from torch.utils._python_dispatch import TorchDispatchMode

from hpc_tumor.data.feed.augment import augment_images, draw_image_parameters
from hpc_tumor.data.feed.augment_slices import augment_slices, draw_slice_parameters, slice_amounts
from hpc_tumor.data.feed.loader import READ_AHEAD, Batch, BatchLoader, StaticShare
from hpc_tumor.data.feed.masked import move_and_change, noise_windows
from hpc_tumor.data.feed.row_cache import allocate_cache
from hpc_tumor.data.feed.rows import RESTING, Rows
from hpc_tumor.data.feed.samples import ImagePart, Part, SlicePart
from hpc_tumor.data.feed.transfer import all_on_device
from hpc_tumor.data.store.nodes import TYPES
from hpc_tumor.vocabulary import LABEL_NAMES

KEEP = ("gpu", "host", "none")
SIDE, BATCH, SAMPLES = 24, 4, 16
NUMBERS = count()


def read(indices: np.ndarray, into: Any) -> Future:
    """Fill arrays with what no earlier read has left there."""
    for array in into if isinstance(into, tuple) else (into,):
        array[...] = next(NUMBERS) % 100
    future: Future = Future()
    future.set_result(into)
    return future


def slice_part(dtype: str, keep: str, per_slice: bool = False, tolerance: float = 0) -> SlicePart:
    """Return a part of slices of one case each, of a store of this type."""
    store: Any = SimpleNamespace(
        statistics=np.ones((SAMPLES, 4, 2)), background=np.zeros((SAMPLES, 4)), labels=LABEL_NAMES,
        read_slices=read, dtype=np.dtype(dtype), tolerance=np.full((SAMPLES, 4), tolerance),
        empty_slices=lambda n: (np.empty((n, 4, SIDE, SIDE), dtype), np.empty((n, SIDE, SIDE), np.uint8)),
        slice_background=np.zeros((SAMPLES, 1, 4)) if per_slice else None,
    )  # fmt: skip
    part = SlicePart(store, np.array([(case, 0) for case in range(SAMPLES)]), torch.device("cuda", 0))
    return kept(part, keep)


def image_part(keep: str) -> ImagePart:
    store: Any = SimpleNamespace(
        label=np.arange(SAMPLES) % 4, read_images=read,
        empty_images=lambda n: np.empty((n, SIDE, SIDE), np.uint8),
    )  # fmt: skip
    return kept(ImagePart(store, np.arange(SAMPLES), torch.device("cuda", 0), SIDE // 2), keep)


def kept(part: Any, keep: Any) -> Any:
    part.rows.kept, _ = allocate_cache(keep, None, part.rows.like(), len(part), part.device)
    return part


def passes(part: Part, number: int) -> Iterator[Batch]:
    for epoch in range(number):
        yield from BatchLoader(part, BATCH).batches(np.random.default_rng(epoch).permutation(len(part)))


def deliver(dtype: str) -> dict[str, tuple[Watch, Any]]:
    """Return the second of two passes, and its last batch's types, by where samples are kept."""
    results = {}
    for keep in KEEP:
        for more in ({}, {"per_slice": True}, {"tolerance": 0.5}):
            part = slice_part(dtype, keep, **more)
            assert len(list(passes(part, 1))) == SAMPLES // BATCH
            with watched() as watch:
                *_, batch = passes(part, 1)
            results[f"{keep} {more}"] = watch, (batch.images.dtype, batch.targets.dtype, tuple(batch.images.shape))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES)
def test_stores_of_every_type_can_be_kept_anywhere(dtype: str, null_gpu: NullGpu) -> None:
    for kind, (watch, described) in null_gpu.call(deliver, dtype).items():
        assert watch.faults() == {}, kind
        assert described == (torch.float32, torch.uint8, (BATCH, 4, SIDE, SIDE)), kind


def take_deterministically() -> None:
    torch.use_deterministic_algorithms(True)
    for keep in KEEP:
        for batch in passes(slice_part("uint16", keep), 2):
            augment_slices(batch.images, batch.targets, draw_slice_parameters(BATCH, 0, 0, batch.step))
        for batch in passes(image_part(keep), 2):
            augment_images(batch.images, draw_image_parameters(BATCH, 0, 0, batch.step))


@pytest.mark.slow
def test_batches_need_no_operation_that_is_not_deterministic(null_gpu: NullGpu) -> None:
    null_gpu.call(take_deterministically)


def train(keep: str) -> tuple[Watch, int]:
    """Run steps over slices, each checked one step later, as in training; return them and the number of these waits."""
    part, waits, step = slice_part("int16", keep), 0, None
    list(passes(part, 2))
    torch.cuda.synchronize()  # as between epochs
    with watched() as watch:
        for batch in passes(part, 1):
            previous, step = step, torch.cuda.Event()
            batch.images.mul_(2)
            step.record()
            if previous is not None:
                previous.synchronize()
                waits += 1
    return watch, waits


@pytest.mark.slow
@pytest.mark.parametrize("keep", KEEP)
def test_steps_wait_for_no_buffer(keep: str, null_gpu: NullGpu) -> None:
    watch, waits = null_gpu.call(train, keep)
    assert watch.faults() == {}
    assert watch.event_waits == waits > 0


def evaluate() -> tuple[Watch, int]:
    """Take batches without waiting for any; return them, and the bytes that they took at most on the GPU."""
    part = slice_part("int16", "none")
    torch.cuda.reset_peak_memory_stats()
    with watched() as watch:
        list(map(id, passes(part, 4)))
    return watch, torch.cuda.memory_stats()["active_bytes.all.peak"]


@pytest.mark.slow
def test_an_evaluation_stays_near_the_gpu(null_gpu: NullGpu) -> None:
    """Only their buffers keep batches that nothing waits for from filling the GPU's memory."""
    watch, most = null_gpu.call(evaluate)
    assert watch.faults() == {}
    stored, delivered = (BATCH * SIDE * SIDE * n for n in (4 * 2 + 1, 4 * 4))
    assert most < 1.2 * ((READ_AHEAD + RESTING) * stored + 3 * delivered)


class Streams(TorchDispatchMode):
    """Record the streams on which operations run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, set[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of.setdefault(func.name(), set()).add(torch.cuda.current_stream().cuda_stream)
        return func(*args, **(kwargs or {}))


def streams() -> dict[str, set[int]]:
    rows = Rows(lambda n: (np.empty((n, SIDE), np.int16),), read, torch.device("cuda", 0))
    with Streams() as seen:
        rows.take(rows.request(np.arange(BATCH)))[0].float()
    return seen.of


@pytest.mark.slow
def test_copies_have_a_stream_of_their_own(null_gpu: NullGpu) -> None:
    of = null_gpu.call(streams)
    copying = {stream for name, used in of.items() if "copy" in name for stream in used}
    assert len(copying) == 2, of  # the copy to the GPU, and the conversion there
    assert 0 in copying


def sanitised(fault: bool) -> None:
    """Take batches under torch's detector of streams that do not wait for each other's data; or plant such a fault."""
    enable_cuda_sanitizer()
    if fault:
        with torch.cuda.stream(torch.cuda.Stream()):
            copied = torch.ones(BATCH, pin_memory=True).to("cuda", non_blocking=True)
        copied.mul_(2)
    for keep in KEEP:
        *_, batch = passes(slice_part("uint16", keep), 1)
        augment_slices(batch.images, batch.targets, draw_slice_parameters(BATCH, 0, 0, 0))
        static = None
        for share in BatchLoader(slice_part("uint16", keep), BATCH).shares(np.arange(SAMPLES)):
            static = static or StaticShare(share, [])
            static.fill(share, [])
            static.read()


@pytest.mark.slow
def test_streams_wait_for_each_others_data(null_gpu: NullGpu) -> None:
    null_gpu.call(sanitised, False)
    with pytest.raises(NullGpuError, match="CUDASanitizerErrors"):
        null_gpu.call(sanitised, True)


def memory_is_reused(fault: bool) -> bool:
    """Copy a batch into memory whose last user the GPU has not finished; return whether torch gave it out."""
    if fault:
        torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign, assignment]
    rows = Rows(lambda n: (np.empty((n, SIDE), np.int16),), read, torch.device("cuda", 0))
    request = rows.request(np.arange(BATCH))
    (first,) = rows.take(request)
    address = first.data_ptr()
    first.float()
    del first
    return rows.take(request)[0].data_ptr() == address


def test_copies_do_not_overwrite_what_is_still_used(null_gpu: NullGpu) -> None:
    assert null_gpu.call(memory_is_reused, False) is False
    assert null_gpu.call(memory_is_reused, True) is True


def step_of(part: Any, augment: Any) -> list[tuple[Watch, Watch]]:
    """Return the delivery and the augmentation of two batches, once all memory is taken."""
    batches, steps = passes(part, 3), []
    for number in range(2 * SAMPLES // BATCH + 2):
        with watched() as delivery:
            batch = next(batches)
        with watched() as augmentation:
            augment(batch, number)
        steps.append((delivery, augmentation))
    return steps[-2:]


def slice_steps(keep: str) -> list[tuple[Watch, Watch]]:
    return step_of(
        slice_part("int16", keep),
        lambda b, n: augment_slices(b.images, b.targets, draw_slice_parameters(BATCH, 0, 0, n)),
    )


def image_steps(keep: str) -> list[tuple[Watch, Watch]]:
    return step_of(image_part(keep), lambda b, n: augment_images(b.images, draw_image_parameters(BATCH, 0, 0, n)))


@pytest.mark.parametrize(
    ("steps", "keep", "delivered", "copied", "augmented"),
    [
        (slice_steps, "gpu", 6, 1, 31), (slice_steps, "host", 4, 3, 31), (slice_steps, "none", 4, 3, 31),
        (image_steps, "gpu", 3, 1, 13), (image_steps, "none", 2, 2, 13),
    ],
)  # fmt: skip
def test_batches_take_few_launches_whatever_is_drawn(
    steps: Any, keep: str, delivered: int, copied: int, augmented: int, null_gpu: NullGpu
) -> None:
    watches = null_gpu.call(steps, keep)
    for delivery, augmentation in watches:
        assert delivery.faults() == augmentation.faults() == {}
        assert (delivery.launches, delivery.copies_in, delivery.copies_within) == (delivered, copied, 0)
        assert (augmentation.launches, augmentation.copies_in, augmentation.copies_within) == (augmented, 1, 0)
    assert watches[0][1].by_kernel == watches[1][1].by_kernel


def mixed_types() -> list[tuple[torch.dtype, tuple[int, ...]]]:
    arrays = [np.zeros(shape, dtype) for shape in ((3,), (0, 2), (2, 5)) for dtype in (*TYPES, "bool")]
    with watched() as watch:
        moved = all_on_device(arrays, torch.device("cuda", 0))
    assert watch.copies_in == 1
    assert watch.faults() == {}
    return [(tensor.dtype, tuple(tensor.shape)) for tensor in moved]


def test_arrays_of_all_types_travel_together(null_gpu: NullGpu) -> None:
    expected = [(getattr(torch, dtype), shape) for shape in ((3,), (0, 2), (2, 5)) for dtype in (*TYPES, "bool")]
    assert null_gpu.call(mixed_types) == expected


def captured() -> tuple[Watch, int]:
    """Capture the augmentation of slices in a CUDA graph and replay it; return that and its launches without one."""
    device = torch.device("cuda", 0)
    images, labels = torch.zeros(BATCH, 4, SIDE, SIDE, device=device), torch.zeros(BATCH, SIDE, SIDE, device=device)
    amounts = slice_amounts(draw_slice_parameters(BATCH, 0, 0, 0), images.shape)
    arguments = (images, labels.to(torch.uint8), noise_windows(4, SIDE, SIDE, device), *all_on_device(amounts, device))
    with watched() as plain:
        move_and_change(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        move_and_change(*arguments)
    with watched() as watch:
        graph.replay()
    return watch, plain.launches


def test_a_cuda_graph_can_capture_the_augmentation_of_slices(null_gpu: NullGpu) -> None:
    watch, launches = null_gpu.call(captured)
    assert watch.faults() == {}
    assert (watch.launches, watch.graph_launches, watch.graph_kernels) == (0, 1, launches)

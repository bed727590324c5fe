"""Batches: every sample once whatever the number of ranks, and values as the recipe wants them."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_tumor.data.feed.loader import BatchLoader, epoch_order
from hpc_tumor.data.feed.samples import ImagePart, SlicePart, halve, resize, standardise
from hpc_tumor.data.store.nodes import TYPES
from hpc_tumor.data.store.shards import ReadingThreads
from hpc_tumor.vocabulary import LABEL_NAMES

CPU = torch.device("cpu")


def done(value: Any) -> Future:
    future: Future = Future()
    future.set_result(value)
    return future


def slice_store() -> Any:
    """Two cases of 3 slices, 4 modalities, 4 × 6 pixels; background 0, and -7 in the second case's last modality."""
    rng = np.random.default_rng(0)
    volumes = rng.integers(1, 900, (2, 4, 3, 4, 6)).astype(np.int16)
    volumes[..., 0, :] = 0
    volumes[1, 3][:, 0, :] = -7
    labels = rng.integers(0, 4, (2, 3, 4, 6)).astype(np.uint8)
    background = np.zeros((2, 4))
    background[1, 3] = -7
    brain = [[volumes[c, m][volumes[c, m] != background[c, m]] for m in range(4)] for c in range(2)]
    statistics = np.array([[(voxels.mean(), voxels.std()) for voxels in case] for case in brain])

    def read_slice(case: int, z: int, image: np.ndarray, label: np.ndarray) -> None:
        image[...], label[...] = store.volumes[case, :, z], labels[case, z]

    store = SimpleNamespace(
        volumes=volumes, truth=labels, labels=LABEL_NAMES, statistics=statistics, background=background,
        read_slice=read_slice, threads=ReadingThreads(2),
        empty_slices=lambda n: (np.empty((n, 4, 4, 6), store.volumes.dtype), np.empty((n, 4, 6), np.uint8)),
        dtype=volumes.dtype, slice_background=None, tolerance=np.zeros((2, 4)),
    )  # fmt: skip
    return store


def all_slices() -> np.ndarray:
    return np.array([(case, z) for case in range(2) for z in range(3)])


def test_slices_are_standardised_over_the_brain_of_their_case() -> None:
    store = slice_store()
    part = SlicePart(store, all_slices(), CPU)
    (batch,) = BatchLoader(part, 6).batches(np.arange(6))
    images = batch.images.numpy().reshape(2, 3, 4, 4, 6)
    for case in range(2):
        for modality in range(4):
            raw = store.volumes[case, modality]
            brain = raw != store.background[case, modality]
            seen = images[case, :, modality]
            assert seen[~brain].tolist() == [0.0] * int((~brain).sum())
            assert seen[brain].mean() == pytest.approx(0, abs=1e-4)
            assert seen[brain].std() == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(batch.targets.numpy().reshape(2, 3, 4, 6), store.truth)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("noisy", [False, True])
def test_slices_have_the_bits_of_the_other_devices(dtype: str, noisy: bool) -> None:
    """GPUs and predictions standardise with torch, slices for a CPU are standardised as they are read."""
    store = slice_store()
    store.volumes = (abs(store.volumes) % 120 if dtype.endswith("int8") else abs(store.volumes)).astype(dtype)
    store.background = np.array([[0, 0, 0, 0], [0, 0, 0, store.volumes[1, 3, 0, 0, 0]]], np.float64)
    store.dtype = store.volumes.dtype
    store.tolerance += [0, 1.5, 0, 3] if noisy else 0
    part = SlicePart(store, all_slices(), CPU)
    (batch,) = BatchLoader(part, 6).batches(np.arange(6))
    values = torch.from_numpy(np.stack([store.volumes[case, :, z] for case, z in part.slices]))
    expected = standardise(values, *(torch.from_numpy(part)[..., None, None] for part in part.beside(np.arange(6))))
    assert batch.images.dtype == torch.float32
    assert batch.images.numpy().tobytes() == expected.numpy().tobytes()
    assert (batch.images == 0).sum() >= 4 * 6 * 6


def test_batches_do_not_change_while_later_ones_are_read() -> None:
    """Reads go into buffers that are used again; what was given must not lie in them."""
    store = slice_store()
    part = SlicePart(store, np.tile(all_slices(), (4, 1)), CPU)
    given = list(BatchLoader(part, 2).batches(np.arange(24)))
    for batch in given:
        for image, target, position in zip(batch.images, batch.targets, batch.positions, strict=True):
            case, z = part.slices[position]
            raw = torch.from_numpy(store.volumes[case, :, z].astype(np.float32))
            outside = raw == torch.from_numpy(store.background[case]).view(4, 1, 1)
            mean, deviation = torch.from_numpy(store.statistics[case].astype(np.float32)).view(4, 2, 1, 1).unbind(1)
            torch.testing.assert_close(image, ((raw - mean) / deviation).masked_fill(outside, 0))
            np.testing.assert_array_equal(target.numpy(), store.truth[case, z])


def image_part(n: int) -> ImagePart:
    def read_images(indices: np.ndarray, into: Any) -> Future:
        for i, index in enumerate(indices):
            into[i][...] = index % 256
        return done(into)

    store = SimpleNamespace(
        label=np.arange(n) % 4, read_images=read_images, empty_images=lambda n: np.empty((n, 8, 8), np.uint8)
    )
    return ImagePart(store, np.arange(n), CPU, image_size=4)  # type: ignore[arg-type]


@settings(deadline=None)
@given(n=st.integers(1, 70), batch=st.integers(1, 20), world=st.integers(1, 5), start=st.integers(0, 3))
def test_each_sample_reaches_the_same_step_once_whatever_the_ranks(n: int, batch: int, world: int, start: int) -> None:
    order = epoch_order(n, seed=1, epoch=2)
    expected = [sorted(order[at : at + batch].tolist()) for at in range(start * batch, n, batch)]
    steps: dict[int, list[int]] = {}
    for rank in range(world):
        loader = BatchLoader(image_part(n), batch, rank, world)
        seen = list(loader.batches(order, start=start, fill=True))
        assert [b.step for b in seen] == list(range(start, loader.steps()))
        for b in seen:
            steps.setdefault(b.step, []).extend(b.positions[: b.counted].tolist())
            assert b.total == len(order[b.step * batch : (b.step + 1) * batch])
            assert len(b.images) == max(1, b.counted)
    assert [sorted(steps[step]) for step in sorted(steps)] == expected


def test_evaluation_leaves_a_rank_without_a_sample_out() -> None:
    loaders = [BatchLoader(image_part(5), 4, rank, 4) for rank in range(4)]
    counts = [sum(len(batch.images) for batch in loader.batches(np.arange(5))) for loader in loaders]
    assert counts == [2, 1, 1, 1]


def test_images_are_scaled_and_resized() -> None:
    (batch,) = BatchLoader(image_part(3), 3).batches(np.array([2, 0, 1]))
    assert batch.images.shape == (3, 1, 4, 4)
    assert batch.images[:, 0, 0, 0].tolist() == pytest.approx([2 / 255, 0, 1 / 255])
    assert batch.targets.tolist() == [2, 0, 1]


def test_shrinking_keeps_the_mean() -> None:
    images = torch.rand(2, 1, 256, 256)
    torch.testing.assert_close(resize(images, 128).mean((2, 3)), images.mean((2, 3)), atol=1e-6, rtol=0)
    assert resize(images, 300).shape == (2, 1, 300, 300)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_halving_bytes_is_resizing_them(n: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grey = torch.randint(0, 256, (n, 2 * height, 2 * width), generator=generator).to(torch.uint8)
    expected = torch.nn.functional.avg_pool2d(grey.double().unsqueeze(1), 2).squeeze(1) / 255
    torch.testing.assert_close(halve(grey), expected.float(), rtol=0, atol=1e-6)
    assert halve(torch.full((1, 2, 2), 255, dtype=torch.uint8)).item() == pytest.approx(1, abs=1e-7)


def test_epochs_have_orders_of_their_own() -> None:
    assert sorted(epoch_order(50, 0, 0)) == list(range(50))
    assert not np.array_equal(epoch_order(50, 0, 0), epoch_order(50, 0, 1))
    assert not np.array_equal(epoch_order(50, 0, 0), epoch_order(50, 1, 0))

"""Sketches of scans: copies are recognised, other patients are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from raw_samples import list_cases, real_data

from hpc_tumor.data.brain import brain_statistics
from hpc_tumor.data.phantom.patient import make_patient
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.splits import sketch as sketch_module
from hpc_tumor.data.splits.sketch import (
    THRESHOLD,
    Sketches,
    group_same_scans,
    likeness,
    pack_sketches,
    similar_pairs,
    similarity,
    sketch,
    unpack_sketches,
)

Image = NDArray[Any]
SHAPE = (12, 20, 24)


def noise(seed: int) -> Image:
    """Four scans `(4, Z, Y, X)` of nothing but noise within an ellipsoid."""
    rng = np.random.default_rng(seed)
    offsets = [(x - (n - 1) / 2) / (n / 2 - 1) for x, n in zip(np.indices(SHAPE), SHAPE, strict=True)]
    inside = sum(offset**2 for offset in offsets) < 1
    return ((rng.normal(0, 80, (4, *SHAPE)) + 800).clip(20) * inside).astype(np.int16)


def phantom(seed: int, shape: tuple[int, int, int] = (24, 20, 12)) -> Image:
    """Four scans `(4, Z, Y, X)` of a made-up patient."""
    volumes = make_patient(np.random.default_rng(seed), shape, seed)
    return np.stack([volumes[name].T for name in ("flair", "t1", "t1ce", "t2")])


def described(image: Image) -> Sketches:
    return sketch(image, brain_statistics(image))[None]


def biased(image: Image) -> Image:
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in image.shape[1:])
    return image * (1 + 0.02 * (np.sin(2 * y[:, None] + x) * np.cos(2 * z)[:, None, None]))


def one_replaced(image: Image) -> Image:
    other = image.copy()
    other[1] = image[1, ::-1, ::-1]
    return other


COPIES: dict[str, Callable[[Image], Image]] = {
    "float32": lambda image: image.astype(np.float32),
    "shifted by a voxel": lambda image: np.roll(image, (1, -1, 1), (1, 2, 3)),
    "2 % of bias": biased,
    "2 % of bias, rounded": lambda image: np.rint(biased(image)).astype(np.int16),
    "brighter by 2 %": lambda image: image * np.float32(1.02),
    "noise of 1e-4 everywhere": lambda image: image + np.random.default_rng(9).normal(0, 1e-4, image.shape),
    "one file replaced": one_replaced,
    "a bright voxel in a corner": lambda image: np.where(np.arange(image[0].size).reshape(image[0].shape), image, 900),
    "cropped": lambda image: image[:, :, 1:-1, 1:-1],
    "all of these": lambda image: np.roll(biased(one_replaced(image).astype(np.float32)), (-1, 1, 1), (1, 2, 3)),
}


@pytest.mark.parametrize("change", COPIES)
@pytest.mark.parametrize("make", [noise, phantom])
def test_copies_are_recognised_with_a_margin(make: Callable[[int], Image], change: str) -> None:
    image = make(3)
    assert similarity(described(image), described(COPIES[change](image))).item() > THRESHOLD + 0.05


@pytest.mark.parametrize("make", [noise, phantom])
def test_different_patients_are_told_apart_with_a_margin(make: Callable[[int], Image]) -> None:
    sketches = np.concatenate([described(make(seed)) for seed in range(8)])
    values = similarity(sketches, sketches)
    assert values.diagonal() == pytest.approx(1)
    assert values[~np.eye(8, dtype=bool)].max() < THRESHOLD - 0.15


def test_two_modalities_that_agree_are_enough_and_one_is_not() -> None:
    image, other = noise(1), noise(2)
    two, one = (np.concatenate([image[:n], other[n:]]) for n in (2, 1))
    assert similarity(described(image), described(two)).item() == pytest.approx(1)
    assert similarity(described(image), described(one)).item() < 0.2


def test_slices_with_backgrounds_of_their_own_are_compared_above_them() -> None:
    image = noise(1).astype(np.float64)
    outside = np.random.default_rng(0).normal(0, 300, image.shape[:2])
    raised = image + outside[:, :, None, None]
    found = sketch(raised, brain_statistics(raised, outside), outside)[None]
    assert similarity(found, described(image)).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("image", [np.zeros((4, *SHAPE), np.int16), (noise(1) > 0) * np.int16(500)])
def test_scans_of_a_single_value_are_similar_to_nothing(image: Image) -> None:
    found = described(image)
    assert not found.any()
    assert similarity(found, found).item() == 0


def test_patients_of_one_digest_or_alike_are_one_number_through_others_too() -> None:
    first, second = noise(1), noise(2)
    sketches = np.concatenate([described(image) for image in (first, second, biased(first), second)])
    assert [pairs.tolist() for pairs in similar_pairs(sketches)] == [[[0, 2], [1, 3]]]
    assert group_same_scans(sketches, ["a", "b", "c", "d"]).tolist() == [0, 1, 0, 1]
    assert group_same_scans(sketches, ["a", "b", "b", "d"]).tolist() == [0, 0, 0, 0]


def test_the_pairs_are_those_whose_similarity_reaches_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Across blocks, and where modalities agree one at a time: none is passed over for being compared late."""
    monkeypatch.setattr(sketch_module, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(0)
    own = rng.normal(0, 16, (40, 4, 16, 16, 16))
    shared = rng.normal(0, 16, (4, 16, 16, 16))
    sketches = np.where(rng.random((40, 4)).reshape(40, 4, 1, 1, 1) < 0.4, shared, own).clip(-127, 127).astype(np.int8)
    expected = np.argwhere(np.triu(similarity(sketches, sketches) >= THRESHOLD, 1)).tolist()
    assert 0 < len(expected) < 40 * 39 / 2
    assert sorted(pair for pairs in similar_pairs(sketches) for pair in pairs.tolist()) == expected


def test_what_is_packed_is_unpacked_bit_for_bit_and_takes_less() -> None:
    sketches = described(phantom(1))[0]
    text = pack_sketches(sketches)
    np.testing.assert_array_equal(unpack_sketches(text, 4), sketches)
    assert len(text) < 0.8 * sketches.nbytes


@pytest.mark.slow
def test_two_real_patients_in_one_atlas_are_told_apart_and_a_shifted_biased_copy_is_recognised() -> None:
    root = real_data("brats")
    reader = BraTSReader()
    first, second = (reader.read_case(case).image for case in list_cases(reader, root)[:2])
    copy = np.roll(biased(first), (1, 1, 1), (1, 2, 3))
    one, other, again = map(described, (first, second, copy))
    assert similarity(one, other).item() < 0.5
    assert similarity(one, again).item() > 0.98


def test_the_two_real_patients_are_told_apart_in_any_order_and_on_either_side() -> None:
    """Exchanged files and mirrored volumes are the patient's own; another patient is like none of them."""
    sketches = []
    for case in list_cases(BraTSReader(), real_data("brats")):
        image = BraTSReader().read_case(case).image
        sketches.append((image, sketch(image, brain_statistics(image))))
    (image, own), (_, other) = sketches
    both = np.stack([own, other])
    for changed in (image[[3, 0, 1, 2]], image[..., ::-1].copy(), image[[0, 2, 1, 3], ..., ::-1].copy()):
        values = likeness(sketch(changed, brain_statistics(changed)), both)
        assert values[0] > THRESHOLD + 0.1
        assert values[1] < THRESHOLD - 0.2, values

"""Exchanged modalities are noticed by the intensities alone, and not where nothing is exchanged."""

import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hpc_tumor.data.brain import brain_statistics
from hpc_tumor.data.case import walk
from hpc_tumor.data.contrast import Contrasts, contrast, describe_exchange, identical_scans
from hpc_tumor.data.phantom.patient import make_patient
from hpc_tumor.data.raw.brats import all_patients
from hpc_tumor.prediction.patients import read_patient

ORDERS = list(permutations(range(4)))


def described(image: NDArray[np.generic]) -> NDArray[np.float64]:
    return contrast(image, brain_statistics(image))


def phantom(number: int) -> NDArray[np.int16]:
    volumes = make_patient(np.random.default_rng([7, number]), (48, 48, 24), 0)
    return np.stack([volumes[name].T for name in ("flair", "t1", "t1ce", "t2")])


@pytest.fixture(scope="module")
def scans() -> list[NDArray[np.int16]]:
    return [phantom(number) for number in range(6)]


@pytest.fixture(scope="module")
def trained(scans: list[NDArray[np.int16]]) -> Contrasts:
    found = Contrasts.of(np.array([described(image) for image in scans[:3]]))
    assert found is not None
    return found


def test_every_order_of_files_is_told(scans: list[NDArray[np.int16]], trained: Contrasts) -> None:
    for image in scans[3:]:
        for order in ORDERS:
            found = trained.order(described(image[list(order)]))
            assert found in (order, (0, 1, 2, 3))
            if order[0] != 0 or order[3] != 3:  # T1 and T1ce alone may be too similar to tell
                assert found == order


def test_intensities_of_another_scale_and_noise_are_no_exchange(
    scans: list[NDArray[np.int16]], trained: Contrasts
) -> None:
    rng = np.random.default_rng(0)
    for image in scans:
        brain = (image != 0).any(axis=0)
        changed = (np.sqrt(image * 7.0) + rng.normal(0, 0.5, image.shape)) * brain
        assert trained.order(described(changed)) == (0, 1, 2, 3)
        assert trained.order(described(image[:, ::2, ::2, ::2])) == (0, 1, 2, 3)


def test_what_cannot_be_described_is_no_exchange(trained: Contrasts) -> None:
    for image in (np.zeros((4, 8, 8, 8)), np.full((4, 30, 30, 30), 5), np.ones((4, 5, 5, 5))):
        numbers = described(image)
        assert np.isnan(numbers).all()
        assert trained.order(numbers) == (0, 1, 2, 3)
        assert identical_scans(numbers) == []
    assert Contrasts.of(np.full((3, 14), np.nan)) is None


def test_noise_outside_the_brain_is_left_out_where_it_is_known(scans: list[NDArray[np.int16]]) -> None:
    image = scans[0].astype(np.float32)
    noisy = image + np.where(image == 0, np.random.default_rng(1).normal(0, 1e-4, image.shape), 0)
    np.testing.assert_allclose(described(noisy), described(image), atol=1e-6)


def test_one_scan_under_two_names(scans: list[NDArray[np.int16]]) -> None:
    image = scans[0][[3, 1, 2, 3]]
    assert identical_scans(described(image)) == [("FLAIR", "T2")]
    assert identical_scans(described(scans[0])) == []


def test_orders_in_words() -> None:
    assert describe_exchange((0, 2, 1, 3)) == "T1 and T1ce look exchanged"
    assert describe_exchange((3, 2, 1, 0)) == "FLAIR and T2, T1 and T1ce look exchanged"
    assert describe_exchange((1, 2, 0, 3)) == "FLAIR looks like T1, T1 looks like T1ce, T1ce looks like FLAIR"


@pytest.mark.slow
def test_real_patients_in_every_order() -> None:
    root = os.environ.get("HPC_TUMOR_REAL_DATA")
    if not root:
        pytest.skip("HPC_TUMOR_REAL_DATA is not set: no real samples")
    patients = [read_patient(case) for case in all_patients(walk(Path(root) / "brats")).cases]
    one, other = (one.facts.contrast for one in patients)
    trained = Contrasts.of(one[None])
    assert trained is not None
    distances = trained.distances(other)
    assert distances.argmin() == 0
    assert np.sort(distances)[1] - distances[0] > 15
    for order in ORDERS:
        assert trained.order(described(patients[1].image[list(order)])) == order

"""Slices of the Cheng set are recognised in images, and nothing else is."""

from __future__ import annotations

import numpy as np

from hpc_tumor.data.patients.recognise import recognise
from hpc_tumor.data.patients.reference import patient_of, reference


def test_every_shipped_slice_is_recognised_by_its_own_contrast() -> None:
    numbers = np.arange(1, 3065, 97)
    pictures = np.clip(reference().contrast[numbers - 1].astype(int) + 128, 0, 255).astype(np.uint8)
    found = recognise(pictures, np.zeros_like(pictures))
    assert found.slice.tolist() == numbers.tolist()
    assert found.patients == [patient_of(number) for number in numbers.tolist()]
    turned = recognise(np.rot90(pictures[:, ::-1], axes=(1, 2)), np.zeros_like(pictures))
    assert turned.slice.tolist() == numbers.tolist()
    np.testing.assert_allclose(turned.correlation, found.correlation, atol=1e-5)


def test_noise_and_plain_pictures_are_unknown() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32)).astype(np.uint8)
    found = recognise(np.concatenate([noise, np.full_like(noise, 7)]), np.zeros((40, 32, 32), np.uint8))
    assert not found.slice.any()
    assert found.patients == [""] * 40
    assert found.correlation.max() < 0.8

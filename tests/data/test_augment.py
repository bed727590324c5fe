"""Augmentation on the device against torchvision's functional form with the same parameters."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as TF

from hpc_tumor.data.augment import augment_images, draw_parameters

IDENTITY = np.array([[0.0, 0.0, 1.0, 1.0]])


@pytest.fixture
def images() -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    blob = torch.exp(-4 * ((rows - 0.2) ** 2 + (columns + 0.3) ** 2))
    return (0.8 * blob + 0.1).view(1, 1, 64, 64)


def test_identity_changes_nothing(images: torch.Tensor) -> None:
    torch.testing.assert_close(augment_images(images, IDENTITY), images, atol=1e-5, rtol=0)


def test_flip_is_exact_and_its_own_inverse(images: torch.Tensor) -> None:
    flipped = augment_images(images, np.array([[1.0, 0.0, 1.0, 1.0]]))
    torch.testing.assert_close(flipped, TF.hflip(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(augment_images(flipped, np.array([[1.0, 0.0, 1.0, 1.0]])), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [-10.0, 4.0, 10.0])
def test_rotation_is_torchvisions(images: torch.Tensor, degrees: float) -> None:
    ours = augment_images(images, np.array([[0.0, math.radians(degrees), 1.0, 1.0]]))
    theirs = TF.rotate(images, degrees, interpolation=TF.InterpolationMode.BILINEAR)
    inside = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(ours[inside], theirs[inside], atol=1e-3, rtol=0)


def test_brightness_and_contrast_are_torchvisions(images: torch.Tensor) -> None:
    ours = augment_images(images, np.array([[0.0, 0.0, 1.15, 0.85]]))
    theirs = TF.adjust_contrast(TF.adjust_brightness(images, 1.15), 0.85)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_grey_images_do_not_change_with_saturation_or_hue(images: torch.Tensor) -> None:
    """Why the published jitter of saturation and hue may be left out."""
    colour = images.expand(-1, 3, -1, -1)
    torch.testing.assert_close(TF.adjust_saturation(colour, 1.2), colour, atol=1e-3, rtol=0)
    torch.testing.assert_close(TF.adjust_hue(colour, 0.2), colour, atol=1e-5, rtol=0)


def test_parameters_come_from_seed_epoch_and_step_alone() -> None:
    first = draw_parameters(64, seed=3, epoch=1, step=5)
    np.testing.assert_array_equal(first, draw_parameters(64, seed=3, epoch=1, step=5))
    assert not np.array_equal(first, draw_parameters(64, seed=3, epoch=1, step=6))
    flip, angle, *factors = first.T
    assert set(flip) == {0.0, 1.0}
    assert np.abs(angle).max() <= math.radians(10)
    assert np.abs(np.array(factors) - 1).max() <= 0.2


def test_each_image_gets_its_own_parameters(images: torch.Tensor) -> None:
    batch = images.expand(4, -1, -1, -1)
    augmented = augment_images(batch, draw_parameters(4, seed=0, epoch=0, step=0))
    assert len({tuple(image.flatten().tolist()[:500]) for image in augmented}) == 4

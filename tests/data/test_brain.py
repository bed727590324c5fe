"""Background and brain: exact where the background is one value, robust where noise lies around the brain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from raw_samples import brain, save, write_case
from scipy import ndimage

from hpc_tumor import cli
from hpc_tumor.data.brain import brain_statistics, is_outside
from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.store.store import Store

SHAPE = (24, 20, 12)


def scans(dtype: str = "float32") -> np.ndarray:
    """`(4, Z, Y, X)`, background 0."""
    return np.stack([brain(seed, dtype, SHAPE).T for seed in range(4)])


def noisy(image: np.ndarray, amplitude: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, amplitude, image.shape)
    return np.where(image == 0, noise, image).astype(image.dtype)


@pytest.mark.parametrize("amplitude", [1e-6, 1e-4, 0.05, 1.0])
@pytest.mark.parametrize("modalities", [1, 4])
def test_noise_around_the_brain_is_no_brain(amplitude: float, modalities: int) -> None:
    clean = scans()
    image = clean.copy()
    image[:modalities] = noisy(clean[:modalities], amplitude)
    plain, found = brain_statistics(clean), brain_statistics(image)
    assert found.voxels == plain.voxels
    np.testing.assert_allclose(found.moments, plain.moments, rtol=1e-6)
    assert (found.tolerance > 0).tolist() == [True] * modalities + [False] * (4 - modalities)
    assert found.digest != plain.digest


def test_noise_inside_a_frame_of_zeros() -> None:
    """As after a resampling: the corners are exact, the noise lies between them and the head."""
    clean = scans()
    image = noisy(clean, 1e-3)
    image[..., :2] = image[..., -2:] = 0
    assert brain_statistics(image).voxels == brain_statistics(clean).voxels


def test_a_scan_that_tissue_fills_has_no_tolerance() -> None:
    """Cropped to its inside, without any background: near the median of its corners lies tissue, not noise."""
    waves = np.sin(np.indices(SHAPE[::-1]).sum(0) / 9) * 300 + 500
    image = np.stack([waves + np.random.default_rng(i).normal(0, 5, waves.shape) for i in range(4)]).astype("float32")
    found = brain_statistics(image)
    assert not found.tolerance.any()
    assert found.voxels == image[0].size


@pytest.mark.parametrize("rim", [2, 6])
def test_noise_right_around_the_brain_alone(rim: int) -> None:
    """As an interpolation leaves it: exact zeros everywhere else, the corners too."""
    clean = np.stack([brain(seed, "float32", (60, 50, 30)).T for seed in range(4)])
    around = ndimage.binary_dilation(clean[0] != 0, iterations=rim) & (clean[0] == 0)
    image = np.where(around, np.random.default_rng(0).normal(0, 1e-4, clean.shape), clean).astype("float32")
    image[:, :, :1, :1] = image[:, :, -1:, -1:] = 0
    found = brain_statistics(image)
    assert found.voxels == brain_statistics(clean).voxels


def test_noise_of_whole_numbers() -> None:
    clean = scans("int16")
    noise = np.random.default_rng(0).integers(-3, 4, clean.shape)
    found = brain_statistics(np.where(clean == 0, noise, clean).astype("int16"))
    assert found.voxels == brain_statistics(clean).voxels
    np.testing.assert_allclose(found.moments, brain_statistics(clean).moments)


def test_a_bright_artefact_hides_no_brain() -> None:
    clean = scans()
    image = noisy(clean, 1e-4)
    image[:, 5, 9, 5:12] = 1e6
    found = brain_statistics(image)
    assert found.voxels == brain_statistics(clean).voxels
    assert (found.tolerance < 20).all()


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float64"])
def test_clean_scans_have_no_tolerance(dtype: str) -> None:
    """Dark brain next to the background stays brain, whatever the type."""
    image = scans("int16").clip(0, 255).astype(dtype)
    image[:, 5, 5, 5:15] = 1
    found = brain_statistics(image)
    assert not found.tolerance.any()
    assert found.voxels == (image != 0).any(0).sum()


def test_a_zscored_scan_whose_background_lies_among_the_brain() -> None:
    image = scans("float64")
    inside = image != 0
    image[inside] = (image[inside] - 500) / 100
    assert not brain_statistics(image).tolerance.any()


def test_outside_is_symmetric_and_closed() -> None:
    values = np.array([-0.2, -0.1, 0, 0.1, 0.2], np.float64)
    assert is_outside(values, 0.0, 0.1).tolist() == [False, True, True, True, False]
    assert is_outside(values, 0.0).tolist() == [False, False, True, False, False]


def test_training_and_the_store_see_the_same_brain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Voxels are stored bit for bit; what the network gets is 0 around the brain as without the noise."""
    stores = []
    for name, amplitude in (("clean", 0.0), ("noisy", 1e-4)):
        folder = write_case(tmp_path / name / "BraTS2021_00001", dtype="float32")
        files = sorted(folder.glob("*[!g].nii.gz"))
        for seed, file in enumerate(files):
            volume = noisy(brain(seed, "float32"), amplitude, seed) if amplitude else brain(seed, "float32")
            save(file, volume)
        assert cli.main(["prepare-data", str(tmp_path / name), str(tmp_path / f"{name}.zarr"), "--workers", "1"]) == 0
        stores.append(Store.open(tmp_path / f"{name}.zarr"))
    said = capsys.readouterr().err
    assert said.count("with noise around the brain") == 1
    clean, with_noise = stores
    np.testing.assert_array_equal(with_noise.read_volume(0).result()[0][0], noisy(brain(0, "float32"), 1e-4, 0).T)
    np.testing.assert_allclose(with_noise.statistics, clean.statistics, rtol=1e-6)
    seen = []
    for store in stores:
        part = SlicePart(store, np.array([(0, z) for z in range(6)]), torch.device("cpu"))
        (batch,) = BatchLoader(part, 6).batches(np.arange(6))
        seen.append(batch.images)
    assert (seen[0] == 0).any()
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-5)
    assert torch.equal(seen[0] == 0, seen[1] == 0)

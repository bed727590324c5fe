"""Distances between surfaces: by hand, by the rules for empty structures, and against two libraries."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import surface_distance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import KDTree

from hpc_tumor.training.scoring import metrics, surfaces
from hpc_tumor.vocabulary import MEMBERS, PREDICTIONS

ISOTROPIC, THICK = (1.0, 1.0, 1.0), (3.0, 0.9, 0.7)
NAMES = list(MEMBERS)


def cube(shape: tuple[int, int, int], start: tuple[int, int, int], size: int | tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    sizes = (size,) * 3 if isinstance(size, int) else size
    mask[tuple(slice(a, a + n) for a, n in zip(start, sizes, strict=True))] = True
    return mask


def blobs(seed: int, shape: tuple[int, int, int] = (14, 20, 18)) -> np.ndarray:
    """A few smooth lumps, some of which may touch the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 0.8)


def codes_of(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Codes of a volume of labels and of one of predicted labels."""
    return (truth * PREDICTIONS + np.array([0, 1, 2, 4])[predicted]).astype(np.uint8)


def by_the_library(truth: np.ndarray, predicted: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = surface_distance.compute_surface_distances(truth, predicted, spacing)
    hd95 = surface_distance.compute_robust_hausdorff(found, 95)
    return float(hd95), float(surface_distance.compute_surface_dice_at_tolerance(found, surfaces.TOLERANCE))


# By hand


def test_one_voxel_against_another() -> None:
    """Each is a surface of eight corners of equal area."""
    one, other = cube((9, 9, 9), (4, 4, 2), 1), cube((9, 9, 9), (4, 4, 6), 1)
    # Four of each lie 3 voxels from the nearest corner of the other, and four lie 4 voxels: 95 % takes those in.
    assert surfaces.surface_scores(one, other, ISOTROPIC) == (4.0, 0.0)
    assert surfaces.surface_scores(one, other, (1, 1, 2.5)) == (10.0, 0.0)
    assert surfaces.surface_scores(one, other, (7, 7, 0.25)) == (1.0, 1.0)  # within the tolerance of 1 mm
    next_to_it = cube((9, 9, 9), (4, 4, 3), 1)
    assert surfaces.surface_scores(one, next_to_it, ISOTROPIC) == (1.0, 1.0)


@pytest.mark.parametrize(("spacing", "shift", "hd95"), [(ISOTROPIC, 2, 2.0), (THICK, 2, 6.0), ((0.4, 1, 1), 2, 0.8)])
def test_a_plate_that_is_shifted(spacing: tuple[float, float, float], shift: int, hd95: float) -> None:
    """A plate of one voxel moved along z: its two faces lie 1 and 2 voxels, or `shift`, from the other's."""
    plate, moved = cube((12, 30, 30), (3, 2, 2), (1, 26, 26)), cube((12, 30, 30), (3 + shift, 2, 2), (1, 26, 26))
    assert surfaces.surface_scores(plate, moved, spacing)[0] == pytest.approx(hd95)
    nsd = surfaces.surface_scores(plate, moved, spacing)[1]
    near, far = (shift - 1) * spacing[0], shift * spacing[0]
    if far <= 1:
        assert nsd == 1
    elif near > 1:
        assert nsd == 0
    else:  # the face turned towards the other plate is near enough, the one behind is not; the rim is between
        assert nsd == pytest.approx(0.5, abs=0.05)


def test_nsd_of_one_cube_in_another_by_hand() -> None:
    """Side 4 in the middle of side 8, and what counts where: faces, edges, corners, by the area of marching cubes."""
    small, large = cube((14, 14, 14), (5, 5, 5), 4), cube((14, 14, 14), (3, 3, 3), 8)
    hd95, nsd = surfaces.surface_scores(small, large, ISOTROPIC)
    assert nsd == 0  # all faces are 2 mm apart
    assert 2 < hd95 < np.sqrt(12)
    # Of voxels of 0.5 mm all points of the small one are 1 mm from a face of the large one. Of the large one only those
    # are that lie opposite to a face of the small one: 5 × 5 points on each of six faces.
    edge, corner = np.sqrt(1 / 2), np.sqrt(3) / 8
    of_small, of_large = (6 * (n - 1) ** 2 + 12 * (n - 1) * edge + 8 * corner for n in (4, 8))
    hd95, nsd = surfaces.surface_scores(small, large, (0.5, 0.5, 0.5))
    assert nsd == pytest.approx((of_small + 6 * 25) / (of_small + of_large))
    assert 1 < hd95 <= np.sqrt(3)


# Empty structures


def test_empty_structures_as_brats_scores_them() -> None:
    codes = np.zeros((155, 240, 240), dtype=np.uint8)
    codes[70, 100, 100:110] = 1 * 8 + 1  # NCR: found
    codes[80, 100, 100:110] = 2 * 8  # ED: missed
    codes[90, 100, 100:110] = 4  # ET: made up
    found = dict(zip(NAMES, surfaces.case_surfaces(codes, ISOTROPIC).tolist(), strict=True))
    assert found["NCR"] == [0, 1]
    assert found["ED"] == [pytest.approx(373.13, abs=0.005), 0]
    assert found["ET"] == [pytest.approx(373.13, abs=0.005), 0]
    assert found["TC"][0] > 0  # NCR and ET together: neither empty
    nothing = surfaces.case_surfaces(np.zeros((155, 240, 240), dtype=np.uint8), ISOTROPIC)
    assert nothing.tolist() == [[0, 1]] * 5


def test_the_diagonal_is_of_the_volume_in_millimetres() -> None:
    assert surfaces.diagonal((155, 240, 240), ISOTROPIC) == pytest.approx(373.128664)
    assert surfaces.diagonal((4, 3, 0), (1, 1, 1)) == 5
    missed = np.zeros((31, 120, 120), dtype=np.uint8)
    missed[3, 4, 5] = 3 * 8
    assert surfaces.case_surfaces(missed, (5, 2, 2))[NAMES.index("ET")].tolist() == [
        pytest.approx(np.sqrt(155**2 + 2 * 240**2)), 0,
    ]  # fmt: skip


def test_a_row_keeps_the_status_beside_the_distance() -> None:
    codes = np.zeros((6, 8, 8), dtype=np.uint8)
    codes[2, 2, 2:5], codes[3, 2, 2:5] = 8 + 1, 3 * 8
    histogram = np.bincount(codes.ravel(), minlength=32).reshape(1, 4, 8)
    found = surfaces.case_surfaces(codes, ISOTROPIC)[None]
    (row,) = metrics.segmentation_rows(histogram, ["a"], [6], found)
    assert (row["status_NCR"], row["hd95_NCR"], row["nsd_NCR"]) == ("ok", 0, 1)
    assert (row["status_ET"], row["hd95_ET"], row["nsd_ET"]) == ("missed", pytest.approx(np.sqrt(36 + 64 + 64)), 0)
    assert (row["status_ED"], row["hd95_ED"], row["nsd_ED"]) == ("empty", 0, 1)
    scores = metrics.segmentation_scores(histogram, found)
    assert scores["hd95"] == pytest.approx((0 + 0 + np.sqrt(164)) / 3)
    assert scores["nsd_TC"] == row["nsd_TC"]


def test_a_case_without_a_whole_volume_has_no_distances_and_leaves_no_mean() -> None:
    histogram, found = np.zeros((2, 4, 8), dtype=int), np.zeros((2, 5, 2))
    found[1] = np.nan
    rows = metrics.segmentation_rows(histogram, ["a", "b"], [6, 2], found)
    assert (rows[0]["hd95_ET"], rows[1]["hd95_ET"], rows[1]["nsd_WT"]) == (0, "", "")
    assert not any("hd95" in name or "nsd" in name for name in metrics.segmentation_scores(histogram, found))


# What must hold of any two masks


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([ISOTROPIC, THICK]))
def test_symmetric_and_the_same_in_a_mirror(seed: int, spacing: tuple[float, float, float]) -> None:
    truth, predicted = blobs(seed), blobs(seed + 1)
    found = surfaces.surface_scores(truth, predicted, spacing)
    assert surfaces.surface_scores(predicted, truth, spacing) == pytest.approx(found, rel=1e-9)
    for axis in range(3):
        mirrored = surfaces.surface_scores(np.flip(truth, axis), np.flip(predicted, axis), spacing)
        assert mirrored == pytest.approx(found, rel=1e-9)
    turned = surfaces.surface_scores(truth.T.copy(), predicted.T.copy(), spacing[::-1])
    assert turned == pytest.approx(found, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 4))
def test_millimetres_scale_with_the_spacing(seed: int, factor: float) -> None:
    truth, predicted = blobs(seed), blobs(seed + 1)
    hd95, _ = surfaces.surface_scores(truth, predicted, THICK)
    scaled, _ = surfaces.surface_scores(truth, predicted, tuple(factor * mm for mm in THICK))
    assert scaled == pytest.approx(factor * hd95, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 6), min_size=6, max_size=6))
def test_background_around_it_changes_nothing(seed: int, around: list[int]) -> None:
    draw = np.random.default_rng(seed)
    truth, predicted = (np.where(blobs(seed + i), draw.integers(1, 4, (14, 20, 18)), 0) for i in range(2))
    codes = codes_of(truth, predicted)
    wide = np.pad(codes, list(zip(around[:3], around[3:], strict=True)))
    np.testing.assert_array_equal(surfaces.case_surfaces(codes, THICK), surfaces.case_surfaces(wide, THICK))


# Against libraries, on volumes that nothing was cropped from


def random_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [(blobs(seed), blobs(seed + 100)) for seed in range(4)]
    return pairs + [(blobs(seed), ndimage.binary_dilation(blobs(seed), iterations=2)) for seed in range(4)]


@pytest.mark.parametrize("spacing", [ISOTROPIC, THICK, (0.5, 2, 1.25)])
def test_the_package_itself_gives_the_same(spacing: tuple[float, float, float]) -> None:
    for truth, predicted in random_pairs():
        codes = codes_of(3 * truth.astype(int), 3 * predicted.astype(int))
        for name in ("ET", "WT", "TC"):
            found = surfaces.case_surfaces(codes, spacing)[NAMES.index(name)]
            assert tuple(found) == by_the_library(truth, predicted, spacing)


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("spacing", [ISOTROPIC, THICK, (0.5, 2, 1.25)])
def test_surfaces_and_distances_are_those_of_the_package_to_the_bit(
    spacing: tuple[float, float, float], far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a map of distances, and by a search where a false voxel far away would make the map large."""
    searches, query = [], KDTree.query
    monkeypatch.setattr(KDTree, "query", lambda *arguments: (searches.append(1), query(*arguments))[1])
    for truth, predicted in random_pairs():
        if far:
            room = [(0, 60 - n) for n in truth.shape]
            truth, predicted = np.pad(truth, room), np.pad(predicted, room) | cube((60, 60, 60), (59, 59, 59), 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            expected = surface_distance.compute_surface_distances(truth, predicted, spacing)
        found = surfaces.surface_distances(truth, predicted, spacing)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert bool(searches) == far


def monai_scores(truth: np.ndarray, predicted: np.ndarray, spacing: tuple[float, float, float]) -> tuple[float, float]:
    """HD95 between voxels at the edge, and NSD of sub-voxel surfaces as surface-distance has them."""
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice  # takes four seconds

    y_pred, y = (torch.from_numpy(mask[None, None]).float() for mask in (predicted, truth))
    options = {"include_background": True, "spacing": list(spacing)}
    hd95 = compute_hausdorff_distance(y_pred, y, percentile=95, **options)
    nsd = compute_surface_dice(y_pred, y, [surfaces.TOLERANCE], use_subvoxels=True, **options)
    return hd95.item(), nsd.item()


@pytest.mark.parametrize("spacing", [ISOTROPIC, THICK])
def test_monai_agrees(spacing: tuple[float, float, float]) -> None:
    """NSD is the same. HD95 of MONAI takes voxels for a surface and counts each alike, whatever its area."""
    for truth, predicted in random_pairs():
        hd95, nsd = surfaces.surface_scores(truth, predicted, spacing)
        theirs, their_nsd = monai_scores(truth, predicted, spacing)
        assert nsd == pytest.approx(their_nsd, abs=1e-6)
        assert hd95 == pytest.approx(theirs, abs=float(np.linalg.norm(spacing)))


# On real tumours

real = pytest.mark.skipif("HPC_TUMOR_REAL_DATA" not in os.environ, reason="HPC_TUMOR_REAL_DATA names no real samples")

PERTURBED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "moved": lambda labels: np.roll(labels, (1, -2, 3), (0, 1, 2)),
    "no enhancing tumour": lambda labels: np.where(labels == 3, 1, labels),
    "cut at the border": lambda labels: np.concatenate([labels[:60], 0 * labels[60:]]),
    "specks": lambda labels: np.where(np.random.default_rng(0).random(labels.shape) < 2e-6, 2, labels),
}


def real_truth(number: int) -> np.ndarray:
    """`(Z, Y, X)` labels 0 to 3 of a real patient."""
    name = f"BraTS2021_0165{number}"
    seg = np.asarray(
        nibabel.load(Path(os.environ["HPC_TUMOR_REAL_DATA"]) / "brats" / name / f"{name}_seg.nii.gz").dataobj
    )
    return np.where(seg == 4, 3, seg).T.astype(np.uint8)


@real
@pytest.mark.slow
@pytest.mark.parametrize("number", [7, 8])
@pytest.mark.parametrize("how", PERTURBED)
def test_real_tumours_against_the_package_on_whole_volumes(how: str, number: int) -> None:
    truth = real_truth(number)
    predicted = PERTURBED[how](truth)
    found = surfaces.case_surfaces(codes_of(truth, predicted), ISOTROPIC)
    for name, members in MEMBERS.items():
        masks = np.isin(truth, members), np.isin(predicted, members)
        ours = tuple(found[NAMES.index(name)])
        if masks[0].any() and masks[1].any():
            assert ours == by_the_library(*masks, ISOTROPIC), name
        elif masks[0].any() or masks[1].any():
            assert ours == (pytest.approx(373.13, abs=0.005), 0), name


@real
@pytest.mark.slow
@pytest.mark.parametrize("number", [7, 8])
def test_real_tumours_against_monai_on_whole_volumes(number: int) -> None:
    truth = real_truth(number)
    predicted = PERTURBED["moved"](truth)
    found = surfaces.case_surfaces(codes_of(truth, predicted), ISOTROPIC)
    for name in ("WT", "ET"):
        masks = (np.isin(volume, MEMBERS[name]) for volume in (truth, predicted))
        theirs, their_nsd = monai_scores(*masks, ISOTROPIC)
        assert found[NAMES.index(name), 1] == pytest.approx(their_nsd, abs=1e-6)
        assert found[NAMES.index(name), 0] == pytest.approx(theirs, abs=np.sqrt(3))

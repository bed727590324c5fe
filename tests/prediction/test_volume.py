"""Volumes through a network: the input is that of training, and the maps come back to where they belong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from trained_runs import untrained_run

from hpc_tumor.data.brain import brain_statistics
from hpc_tumor.data.case import walk
from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.raw.brats import all_patients
from hpc_tumor.data.store.store import Store
from hpc_tumor.prediction.patients import Patient, read_patient
from hpc_tumor.prediction.trained import Trained, load_trained
from hpc_tumor.prediction.volume import (
    Grid,
    Segmentation,
    clean,
    decide,
    segment,
    slices_with_brain,
    standardised_batches,
)
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.cleaning import Cleaning


def read(patients: Path, number: int) -> Patient:
    return read_patient(all_patients(walk(patients)).cases[number])


@pytest.fixture(scope="module")
def trained(unet_run: RunDir) -> Trained:
    return load_trained(unet_run, "cpu", "float32")


def from_store(patients: Path, case: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All slices of a case as training sees them, and their labels."""
    store = Store.open(patients.with_suffix(".zarr"))
    part = SlicePart(store, np.array([(case, z) for z in range(store.slices(case))]), torch.device("cpu"))
    (batch,) = BatchLoader(part, len(part)).whole_batches(np.arange(len(part)))
    return batch.images.clone(), batch.targets.clone()


@pytest.mark.parametrize("case", [0, 3])
def test_the_input_is_what_training_sees(patients: Path, case: int) -> None:
    patient = read(patients, case)
    images, targets = from_store(patients, case)
    chosen = np.arange(len(images))
    ((_, found),) = standardised_batches(patient.image, patient.brain, chosen, len(chosen), torch.device("cpu"))
    assert torch.equal(found, images)
    np.testing.assert_array_equal(patient.label, targets.numpy())


def test_labels_are_those_of_the_network_on_what_training_sees(patients: Path, trained: Trained) -> None:
    patient = read(patients, 2)
    images, _ = from_store(patients, 2)
    chosen = slices_with_brain(patient.image, patient.brain)
    found = segment(trained, patient.image, patient.brain, batch_size=4)
    assert found.slices == len(chosen) > 4
    with torch.inference_mode():
        logits = torch.cat([trained.network(images[chosen[start : start + 4]]) for start in range(0, len(chosen), 4)])
    bits = sum((logits[:, label] > 0).numpy().astype(np.uint8) << label for label in range(3))
    np.testing.assert_array_equal(found.bits[chosen], bits)
    labels = np.where(logits.amax(1) > 0, logits.argmax(1) + 1, 0)
    np.testing.assert_array_equal(found.labels[chosen], labels)
    assert len(np.unique(labels)) > 1


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_batch_size_changes_no_more_than_rounding(patients: Path, trained: Trained, batch_size: int) -> None:
    patient = read(patients, 1)
    first, second = (
        segment(trained, patient.image, patient.brain, batch_size=size, keep_probabilities=True)
        for size in (8, batch_size)
    )
    np.testing.assert_allclose(second.probabilities, first.probabilities, atol=1e-5)


def test_slices_without_brain_are_not_looked_at(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((4, 6, 32, 32), np.int16)
    image[:, 2:4, 8:20, 8:20] = np.random.default_rng(0).integers(1, 900, (4, 2, 12, 12))
    seen: list[int] = []
    logits = Trained.logits

    def counted(self: Trained, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return logits(self, images) + 100

    monkeypatch.setattr(Trained, "logits", counted)
    found = segment(trained, image, brain_statistics(image), batch_size=8, keep_probabilities=True)
    assert seen == [2]
    assert found.labels[2:4].all()
    assert not found.labels[[0, 1, 4, 5]].any()
    assert found.probabilities is not None
    assert not found.probabilities[:, [0, 1, 4, 5]].any()


@pytest.mark.parametrize("exclusive", [False, True])
def test_decisions_are_those_that_are_scored(exclusive: bool) -> None:
    scores = torch.randn(3, 3, 20, 24, generator=torch.Generator().manual_seed(1))
    scores[0, :, 0, :3] = torch.tensor([[0.0, 1, 2], [0, 1, 1], [0, 1, 2]])  # none, three alike, two alike
    bits, labels = decide(scores, exclusive)
    truth = torch.randint(0, 4, (3, 20, 24), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    codes = truth.int() * 8 + bits
    counts = torch.stack([torch.bincount(one.flatten(), minlength=32) for one in codes]).view(3, 4, 8)
    assert torch.equal(counts, metrics.count_labels(scores, truth, exclusive=exclusive))
    assert labels[0, 0, :3].tolist() == [0, 1, 1]
    chosen = labels > 0
    assert torch.equal(chosen, (scores > 0).any(1))
    assert torch.equal(
        scores.gather(1, (labels.long() - 1).clamp_min(0)[:, None])[:, 0][chosen], scores.amax(1)[chosen]
    )


def test_exclusive_probabilities_leave_room_for_the_background() -> None:
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64)  # of float32, some draws are off by more than a rounding
    chances = metrics.label_probabilities(logits, exclusive=True)
    rest = 1 - chances.sum(1)
    torch.testing.assert_close(chances / rest[:, None], logits.exp())  # the background's logit is 0
    torch.testing.assert_close(metrics.label_probabilities(logits, exclusive=False), logits.sigmoid())


@pytest.mark.parametrize("exclusive", [False, True])
def test_flips_are_a_mean_over_four(patients: Path, tmp_path: Path, exclusive: bool) -> None:
    run = untrained_run(tmp_path, "improved-unet", 32, filters=4, exclusive=exclusive)
    trained, patient = load_trained(run, "cpu", "float32", flips=True), read(patients, 0)
    image = patient.image[:, 4:7]
    found = segment(trained, image, patient.brain, keep_probabilities=True)
    ((_, x),) = standardised_batches(image, patient.brain, np.arange(3), 3, torch.device("cpu"))
    with torch.inference_mode():
        views = [trained.network(x.flip(axes)).flip(axes) for axes in ((), (2,), (3,), (2, 3))]
        logits = torch.stack(views).mean(0)
    assert (views[0] - views[3]).abs().max() > 1e-3
    wanted = metrics.label_probabilities(logits, exclusive).numpy().swapaxes(0, 1)
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)
    sure = (logits.abs().amin(1) > 1e-4).numpy()
    labels = np.where(logits.amax(1).numpy() > 0, logits.argmax(1).numpy() + 1, 0)
    np.testing.assert_array_equal(found.labels[sure], labels[sure])


def test_cleaned_labels_agree_with_cleaned_bits() -> None:
    bits, labels = np.zeros((6, 8, 8), np.uint8), np.zeros((6, 8, 8), np.uint8)
    bits[1:4, 1:5, 1:5], labels[1:4, 1:5, 1:5] = 2, 2
    bits[2, 2, 2:5], labels[2, 2, 2:5] = 4 | 2, 3  # three voxels of enhancing tumour inside
    bits[5, 7, 7], labels[5, 7, 7] = 1, 1  # a piece by itself
    found = clean(Segmentation(bits, labels, None, 6), Cleaning(component_mm3=2, enhancing_mm3=4), 1.0)
    assert found.labels[5, 7, 7] == found.bits[5, 7, 7] == 0
    assert set(found.labels[2, 2, 2:5].tolist()) == {1}
    assert set(found.bits[2, 2, 2:5].tolist()) == {1 | 2}
    untouched = np.ones(bits.shape, bool)
    untouched[2, 2, 2:5] = untouched[5, 7, 7] = False
    np.testing.assert_array_equal(found.labels[untouched], labels[untouched])
    same = clean(Segmentation(bits, labels, None, 6), Cleaning(component_mm3=2, enhancing_mm3=4), 2.0)
    np.testing.assert_array_equal(same.labels[2], labels[2])  # twice as large voxels: enough of it


def test_slices_that_training_resized_come_back(patients: Path, tmp_path: Path) -> None:
    trained = load_trained(untrained_run(tmp_path, "unet", 64, filters=4, resized=True), "cpu", "float32")
    patient = read(patients, 0)
    found = segment(trained, patient.image, patient.brain)
    assert found.labels.shape == patient.image.shape[1:] == (12, 48, 32)
    assert found.labels.any()


@pytest.mark.parametrize("size", [None, 64, 32])
@pytest.mark.parametrize("shape", [(48, 32), (40, 45), (20, 64), (32, 32)])
def test_grid_keeps_things_in_their_place(shape: tuple[int, int], size: int | None) -> None:
    grid = Grid(*shape, size, 16, 32)
    ramp = torch.linspace(0, 1, shape[1]).expand(1, 1, *shape)
    entered = grid.enter(ramp)
    assert entered.shape[2] % 16 == entered.shape[3] % 16 == 0
    back = grid.leave(entered)
    assert back.shape == ramp.shape
    torch.testing.assert_close(back, ramp, atol=0 if size is None else 1.5 / 32, rtol=0)

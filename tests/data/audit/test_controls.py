"""Controls predict without a network: what they see decides, and a fit is that of another program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL.PngImagePlugin import PngInfo
from raw_samples import picture
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hpc_tumor.data.audit.controls import classify, control_answers
from hpc_tumor.data.audit.images import INTENSITIES, intensity_statistics, scan_images
from hpc_tumor.data.audit.leakage import audit_splits
from hpc_tumor.data.audit.text import split_table
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.splits.splits import make_split
from hpc_tumor.data.store.store import Store
from hpc_tumor.experiments.request import experiment_for
from hpc_tumor.vocabulary import CLASSES, CONTROLS


def make_store(
    root: Path, per_part: int, *, padded: bool = False, brighter: bool = False, classes: tuple[str, ...] = CLASSES
) -> Store:
    """Images of which nothing tells the class but, on request, bytes behind the pixels or the brightness."""
    for number, name in enumerate(classes):
        for offset, part in enumerate(("Training", "Testing")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(per_part):
                image = picture(1000 * number + 2 * index + offset)
                info = PngInfo()
                info.add_text("note", "x" * (padded * 9000 * number))
                if brighter:
                    image = image.point(lambda value, less=50 * (3 - number): max(value - less, 0))
                image.save(folder / f"{part} {index}.png", pnginfo=info)
    prepare_dataset(BrainMRIReader(size=48), root, root.parent / "store.zarr", workers=1)
    return Store.open(root.parent / "store.zarr")


def accuracies(store: Store) -> dict[str, float]:
    split = make_split(store, "published", 0)
    known = np.concatenate([split.train, split.val])
    answers = control_answers(store, scan_images(store), split.test, known)
    assert answers.keys() == CONTROLS.keys()
    return {name: float((answer == store.label[split.test]).mean()) for name, answer in answers.items()}


def test_classes_that_differ_in_file_size_are_told_by_it_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path / "raw", 20, padded=True, classes=CLASSES[:2])
    scores = accuracies(store)
    assert scores["file_facts"] == 1
    assert scores["intensities"] == pytest.approx(0.5, abs=0.25)
    audits = audit_splits(experiment_for(store, ["split=published"]), store, None, scan_images(store))
    assert audits[0].shortcuts == {name: score for name, score in scores.items() if name != "nearest"}
    table = split_table(audits, brief=False)
    places = {column.title: place for place, column in enumerate(table.columns)}
    assert table.rows[0][places["file facts"]] == "1.000"
    assert table.rows[0][places["intensities"]] == f"{scores['intensities']:.3f}"


def test_classes_that_differ_in_brightness_are_told_by_intensities(tmp_path: Path) -> None:
    assert accuracies(make_store(tmp_path / "raw", 15, brighter=True))["intensities"] == 1


def test_nothing_is_told_of_equal_classes(tmp_path: Path) -> None:
    scores = accuracies(make_store(tmp_path / "raw", 15))
    assert max(scores.values()) < 0.5


@pytest.mark.parametrize("classes", [2, 4])
def test_the_regression_is_that_of_scikit_learn(classes: int) -> None:
    """The same penalty and standardisation; facts of large numbers, and one that never varies among the known."""
    draw = np.random.default_rng(5)
    label = draw.integers(0, classes, 400)
    seen = draw.normal(size=(400, 5)) + label[:, None] * [1.0, 0.5, 0, 0, 0]
    seen[:, 2] = 1e6 + 1e3 * seen[:, 2]
    seen[:, 3] = 7
    values = np.concatenate([seen[:100] + 0.3, draw.normal(size=(50, 5))])
    other = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=5000))
    expected = other.fit(np.delete(seen, 3, 1), label).predict(np.delete(values, 3, 1))
    found = classify(seen, label, values, classes)
    assert (found == expected).mean() > 0.98  # the fits end where the loss changes by less than about 1e-8
    assert (classify(seen, label, values, classes) == found).all()
    assert len(np.unique(found)) == classes


def test_a_class_without_training_images_is_never_predicted() -> None:
    values = np.random.default_rng(0).normal(size=(60, 3))
    label = np.repeat([0, 2], 30)
    assert set(classify(values, label, values, 3).tolist()) <= {0, 2}


def test_the_ten_intensity_statistics() -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 21, 30)).astype(np.uint8)
    images[2] = 9
    found = dict(zip(INTENSITIES, intensity_statistics(images).T, strict=True))
    assert len(INTENSITIES) == 10
    flat = images.reshape(3, -1).astype(np.float64)
    assert found["mean"] == pytest.approx(flat.mean(axis=1))
    assert found["deviation"] == pytest.approx(flat.std(axis=1), abs=1e-4)
    for rank in (10, 25, 50, 75, 90, 99):
        expected = np.percentile(flat, rank, axis=1, method="inverted_cdf")
        assert (found[f"percentile {rank}"] == expected).all()
    assert found["share of bright"] == pytest.approx((flat >= 128).mean(axis=1))
    for row, value in zip(flat, found["entropy"], strict=True):
        share = np.unique(row, return_counts=True)[1] / row.size
        assert value == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-5)


def test_only_chosen_images_are_scanned(tmp_path: Path) -> None:
    store = make_store(tmp_path / "raw", 2)
    every, some = scan_images(store), scan_images(store, chosen=np.array([5, 1]))
    for name in ("thumbnails", "intensities", "frame"):
        assert (getattr(some, name)[[1, 5]] == getattr(every, name)[[1, 5]]).all()
        assert np.isnan(getattr(some, name)[[0, 2]]).all()

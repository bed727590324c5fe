"""Splits by source: all images of one source are tested on, and nothing of them trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raw_samples import picture, real_data, write_pictures

from hpc_tumor.config import Experiment
from hpc_tumor.data.convert.prepare import inspect_sources, prepare_sources
from hpc_tumor.data.splits.splits import Split, image_notes, split_of
from hpc_tumor.data.splits.units import image_patients
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, UsageError


def convert(store: Path, *sources: Path) -> Store:
    prepare_sources(inspect_sources([str(source) for source in sources], store), store, workers=1)
    return Store.open(store)


def split_on(store: Store, **settings: object) -> Split:
    data = {"store": store.path, **settings}
    return split_of(Experiment(model={"name": "cnn"}, data=data, task="classification"), store)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("real")
    return convert(folder / "real.zarr", real_data("brain-mri"), real_data("brain-mri-native"))


@pytest.mark.parametrize("source", ["brain-mri", "brain-mri-native"])
def test_nothing_of_the_tested_source_trains(real: Store, source: str) -> None:
    split = split_on(real, test_source=source)
    sources, units = np.array(real.sources), image_patients(real)
    assert set(sources[split.test]) == {source}
    training = np.concatenate([split.train, split.val])
    assert source not in sources[training]
    assert not np.isin(units[training], units[sources == source]).any()
    assert split.shared > 9
    assert split.leakage is not None
    assert (split.leaks, split.leakage.units, split.leakage.same_patient) == (False, 0, 0)
    assert not np.isin(units[split.val], units[split.train]).any()
    assert any(note.startswith(f"{split.shared} images of other sources left out") for note in image_notes(split))


def test_images_that_are_copied_or_of_the_same_patient_are_counted(tmp_path: Path) -> None:
    a, b = write_pictures(tmp_path / "a", 3, twins=False), write_pictures(tmp_path / "b", 1, twins=False)
    store = convert(tmp_path / "s.zarr", a, b)
    split = split_on(store, test_source="b")
    units, sources = image_patients(store), np.array(store.sources)
    expected = np.isin(units, units[sources == "b"]) & (sources == "a")
    assert split.shared == expected.sum() >= 4  # the first images of each class are the same
    assert split.kind == "test source b"


def test_what_is_refused(tmp_path: Path) -> None:
    single = convert(tmp_path / "single.zarr", write_pictures(tmp_path / "a", 1))
    with pytest.raises(UsageError, match="no such source: it has one source, without a name"):
        split_on(single, test_source="a")
    other = tmp_path / "b" / "glioma"
    other.mkdir(parents=True)
    picture(0).save(other / "copy.png")  # a copy of an image of the first source
    both = convert(tmp_path / "both.zarr", tmp_path / "a", tmp_path / "b")
    with pytest.raises(UsageError, match=r"'c': .* has no such source: its sources are a and b"):
        split_on(both, test_source="c")
    with pytest.raises(DataError, match="no image is left for the training part of a test on source a"):
        split_on(both, test_source="a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 1}, "data.fold = 1 conflicts with data.test_source"),
        ({"split_file": "x.json"}, "data.test_source = 'a' conflicts with data.split_file"),
        ({"split": "published"}, "data.split = 'published' conflicts with data.test_source"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment(
            model={"name": "cnn"}, data={"store": "s.zarr", "test_source": "a", **settings}, task="classification"
        )


def test_patients_scans_have_no_sources() -> None:
    with pytest.raises(ValueError, match=r"data.test_source = 'a' is not for segmentation"):
        Experiment(model={"name": "unet"}, data={"store": "s.zarr", "test_source": "a"}, task="segmentation")

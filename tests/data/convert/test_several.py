"""Several sources of one store: names, growth, updates of some of them, removal, and what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from earlier_stores import make_schema_1
from raw_samples import picture, real_data, tree, write_patients, write_pictures

from hpc_tumor.data.convert import writers
from hpc_tumor.data.convert.prepare import PrepareSummary, inspect_sources, prepare_sources
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.store.nodes import group_json
from hpc_tumor.data.store.store import Store, read_about
from hpc_tumor.errors import DataError, UsageError


def prepare(
    given: Sequence[Path | str],
    store: Path,
    *,
    remove: Sequence[str] = (),
    overwrite: bool = False,
    prune: bool = False,
) -> PrepareSummary:
    sources = inspect_sources([str(source) for source in given], store, remove=remove, overwrite=overwrite)
    return prepare_sources(sources, store, workers=1, overwrite=overwrite, prune=prune)


def contents(store: Path) -> dict[str, bytes]:
    assert read_about(store)["complete"] is True
    return {name: data for name, data in tree(store).items() if not name.startswith(".")}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "all.zarr"


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "a", 2, twins=False)


@pytest.fixture
def b(tmp_path: Path) -> Path:
    """A source with class folders of other names, without parts, and a copy of an image of `a`."""
    for number, name in enumerate(("glioma_tumor", "meningioma tumor", "normal", "no_tumor")):
        folder = tmp_path / "b" / name
        folder.mkdir(parents=True)
        picture(900 + number).save(folder / "1.png")
    picture(0).save(tmp_path / "b" / "glioma_tumor" / "copy.png")
    return tmp_path / "b"


def test_two_sources_make_one_store(a: Path, b: Path, store: Path) -> None:
    sources = inspect_sources([str(a), str(b)], store)
    summary = prepare_sources(sources, store, workers=1)
    made = Store.open(store)
    assert (summary.cases, summary.converted, summary.parts) == (21, 21, {"train": 13, "test": 8})
    assert set(made.sources) == {"a", "b"}
    assert all(path.startswith(f"{name}/") for path, name in zip(made.paths, made.sources, strict=True))
    assert sources.reports["a"].spellings == {}
    assert sources.reports["b"].spellings == {
        "glioma_tumor": "glioma", "meningioma tumor": "meningioma", "no_tumor": "notumor", "normal": "notumor",
    }  # fmt: skip
    copy, twin = (made.paths.index(name) for name in ("b/glioma_tumor/copy.png", "a/Training/glioma/Tr-gl (0).png"))
    assert made.identical[copy] == made.identical[twin]
    assert {name: (own["images"], own["copies"]) for name, own in summary.sources.items()} == {
        "a": (16, 1),
        "b": (5, 1),
    }
    assert made.about["sources"] == {"a": "brain-mri", "b": "brain-mri"}


def test_the_order_of_sources_does_not_matter_and_nothing_is_done_twice(a: Path, b: Path, store: Path) -> None:
    prepare([a, b], store)
    before = contents(store)
    assert prepare([b, a], store).converted == 0
    assert contents(store) == before


def test_a_store_of_one_source_grows_without_converting_it_again(a: Path, b: Path, store: Path, tmp_path: Path) -> None:
    assert set(prepare([a], store) and Store.open(store).sources) == {""}
    summary = prepare([b, a], store)
    assert (summary.converted, summary.kept, summary.removed) == (5, 16, 0)
    prepare([a, b], tmp_path / "fresh.zarr")
    assert contents(store) == contents(tmp_path / "fresh.zarr")


def test_an_earlier_store_grows_too(a: Path, b: Path, store: Path, tmp_path: Path) -> None:
    prepare([a], store)
    make_schema_1(store)
    assert (prepare([a, b], store).converted, len(Store.open(store))) == (5, 21)
    prepare([a, b], tmp_path / "fresh.zarr")
    assert contents(store) == contents(tmp_path / "fresh.zarr")


def test_a_store_grows_only_with_the_source_that_it_was_made_of(a: Path, b: Path, store: Path) -> None:
    prepare([a], store)
    before = contents(store)
    with pytest.raises(DataError, match="16 images of one source, which is none of those given"):
        prepare([f"n={b}"], store)
    assert contents(store) == before


def test_some_sources_are_updated_and_the_others_kept(a: Path, b: Path, store: Path, tmp_path: Path) -> None:
    prepare([a, b], store)
    shutil.move(b, tmp_path / "elsewhere")
    picture(77).save(a / "Training" / "glioma" / "new.png")
    (a / "Training" / "glioma" / "Tr-gl (0).png").unlink()
    summary = prepare([a], store)
    assert (summary.converted, summary.kept, summary.removed) == (1, 20, 1)
    assert "not given, so kept as converted before: b (5 images)" in summary.notes
    prepare([a, f"b={tmp_path / 'elsewhere'}"], tmp_path / "fresh.zarr")
    assert contents(store) == contents(tmp_path / "fresh.zarr")


def test_removal_of_a_source(a: Path, b: Path, store: Path, tmp_path: Path) -> None:
    prepare([a, b], store)
    summary = prepare([], store, remove=["a"])
    assert (summary.cases, summary.converted, summary.removed) == (5, 0, 16)
    assert "removed from the store: a (16 images)" in summary.notes
    prepare([f"b={b}"], tmp_path / "fresh.zarr")
    assert contents(store) == contents(tmp_path / "fresh.zarr")
    before = contents(store)
    for remove, given, message in (
        ("a", [], "no source of this name: its sources are b"),
        ("b", [], "no image would be left"),
        ("b", [b], "leave out one of them"),
    ):
        with pytest.raises(UsageError, match=message):
            prepare(given, store, remove=[remove])
    assert contents(store) == before


def test_vanished_images_are_counted_by_source(a: Path, b: Path, store: Path) -> None:
    """Most of a small source is not most of the store."""
    prepare([a, b], store)
    before = contents(store)
    for file in list(b.rglob("*.png"))[:3]:
        file.unlink()
    with pytest.raises(DataError, match=rf"{b} lacks 3 of the 5 cases .*--prune"):
        prepare([a, b], store)
    assert contents(store) == before
    assert prepare([a, b], store, prune=True).removed == 3


def test_unreadable_images_are_counted_by_source(a: Path, b: Path, store: Path) -> None:
    prepare([a, b], store)
    for file in list(b.rglob("*.png"))[:3]:
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"3 of the 5 cases .* cannot be converted again"):
        prepare([a, b], store)
    assert len(Store.open(store)) == 21


def test_overwrite_needs_all_sources(a: Path, b: Path, store: Path) -> None:
    prepare([a, b], store)
    before = contents(store)
    with pytest.raises(DataError, match=r"also has b \(5 images\): give all sources"):
        prepare([a], store, overwrite=True)
    assert prepare([a, b], store, overwrite=True).converted == 21
    assert contents(store) == before


def test_damage_does_not_lose_a_source_that_is_not_given(a: Path, b: Path, store: Path) -> None:
    prepare([a, b], store)
    shutil.rmtree(store / "index" / "thumbnail")
    with pytest.raises(DataError, match="the images of b cannot be read"):
        prepare([a], store)
    assert prepare([a, b], store).cases == 21


def test_a_damaged_store_is_converted_again_from_all_of_its_sources(a: Path, b: Path, store: Path) -> None:
    prepare([a, b], store)
    before = contents(store)
    (store / "index" / "zarr.json").write_text("{")
    with pytest.raises(DataError, match="the index is missing"):
        prepare([a, b], store)
    with pytest.raises(DataError, match="is damaged: give its sources b too"):
        prepare([a], store, overwrite=True)
    prepare([a, b], store, overwrite=True)
    assert contents(store) == before


def test_another_folder_of_the_same_name_replaces_no_source(a: Path, b: Path, store: Path, tmp_path: Path) -> None:
    prepare([a, b], store)
    before, other = contents(store), tmp_path / "elsewhere" / "a"
    for number, file in enumerate(sorted(a.rglob("*.png"))):
        path = other / file.relative_to(a)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(500 + number, (70, 40)).save(path)
    with pytest.raises(DataError, match=r"another dataset than the source a .* give a=.*elsewhere/a; to add it"):
        prepare([other], store)
    assert contents(store) == before
    assert prepare([f"a={other}"], store).converted == 16
    moved = shutil.copytree(b, tmp_path / "moved" / "b")  # the same files, copied: the times differ
    assert prepare([moved], store).cases == 21


@pytest.mark.parametrize(
    "record",
    [
        {"gone": ["../precious"]}, {"names": ["../precious"]}, {"staging": "../precious"}, {"staging": ".staging-1/.."},
        {"staging": None}, {"names": None}, {"gone": [["images"]]}, {"about": []}, {"ome": "x"}, None,
    ],
)  # fmt: skip
def test_a_strangers_store_moves_nothing_of_the_user(
    record: dict[str, object] | None, a: Path, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    prepare([a], store)
    (store / ".staging-deadbeef" / "images").mkdir(parents=True)
    sound = {"staging": ".staging-deadbeef", "names": [], "gone": [], "about": {}, "ome": None}
    about = {**read_about(store), "complete": False, "finishing": "x" if record is None else {**sound, **record}}
    (store / "zarr.json").write_bytes(group_json({"hpc_tumor": about}))
    assert prepare([a], store).cases == 16
    assert (tmp_path / "precious" / "file").exists()


def test_names_of_folders_are_made_unique_and_found_again(tmp_path: Path, store: Path) -> None:
    one = write_pictures(tmp_path / "x" / "My data!", 1, twins=False)
    two = write_pictures(tmp_path / "y" / "My data!", 2, twins=False)
    prepare([one, two], store)
    assert set(Store.open(store).sources) == {"x-My-data", "y-My-data"}
    assert prepare([two], store).converted == 0
    third = write_pictures(tmp_path / "z" / "My data!", 1, twins=False)
    prepare([third], store)
    assert set(Store.open(store).sources) == {"x-My-data", "y-My-data", "My-data"}


def test_sources_that_are_not_separate_are_refused(a: Path, b: Path, store: Path, tmp_path: Path) -> None:
    prepare([a, b], store)
    (tmp_path / "link").symlink_to(a)
    for given, message in (
        ([a, tmp_path / "link"], "are the same folder: give it once"),
        ([a, f"n={a / 'Training'}"], "is inside the source"),
        ([a, store], "is the store itself"),
        ([a, store / "images"], "is inside the store"),
        ([f"n={a}", f"n={b}"], "would both be source n"),
        ([f"-n={a}"], "cannot name a source"),
        (["n="], "name a folder after the ="),
        ([], "name the folder of the raw scans"),
    ):
        with pytest.raises(UsageError, match=message):
            inspect_sources([str(source) for source in given], store)


def test_unknown_classes_are_refused_by_name(a: Path, b: Path, store: Path) -> None:
    (b / "normal").rename(b / "schwannoma")
    with pytest.raises(DataError, match=f"{b}/schwannoma: unknown class 'schwannoma'"):
        prepare([a, b], store)
    assert not store.exists()


def test_patients_cannot_be_combined(a: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains brats: only images can have several or named sources"):
        prepare([a, write_patients(tmp_path / "patients", 1)], store)


def test_sources_of_one_class_each(a: Path, store: Path, tmp_path: Path) -> None:
    parts = [tmp_path / name for name in ("glioma", "normal")]
    for part, name in zip(parts, ("glioma", "notumor"), strict=True):
        shutil.copytree(a / "Training" / name, part)
    with pytest.raises(DataError, match="only one class, glioma"):
        prepare([f"g={parts[0]}"], store)
    prepare(parts, store)
    assert set(Store.open(store).label.tolist()) == {0, 2}


def test_an_unmounted_source_stops_the_conversion(
    a: Path, b: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other source can still be read."""
    monkeypatch.setattr(writers, "IMAGES_PER_UNIT", 2)
    sources = inspect_sources([str(a), str(b)], store)
    shutil.rmtree(b)
    with pytest.raises(DataError, match=rf"{b} can no longer be read"):
        prepare_sources(sources, store, workers=1)


def test_an_interrupted_exchange_is_finished_first(
    a: Path, b: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after the old images have left the store, whose source is not given any more."""
    prepare([a, b], store)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "images" and ".staging" in str(path):
            raise OSError(5, os.strerror(5))
        return rename(path, target)

    picture(77).save(a / "Training" / "glioma" / "new.png")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", fail)
        with pytest.raises(DataError, match="could not be stored"):
            prepare([a], store)
    assert not (store / "images").exists()
    summary = prepare([a], store)
    assert (summary.converted, summary.cases) == (0, 22)


def test_the_cheng_set_shares_patients_with_images_made_of_it(a: Path, store: Path, tmp_path: Path) -> None:
    make_phantom(tmp_path / "cheng", "cheng", 6, 1)
    prepare([tmp_path / "cheng"], store)
    alone = Store.open(store)
    masks = alone.masks.read(range(6))
    sources = inspect_sources([str(tmp_path / "cheng"), str(a)], store)
    assert sources.reports["cheng"].spellings == {"1": "meningioma", "2": "glioma", "3": "pituitary"}
    summary = prepare_sources(sources, store, workers=1)
    made = Store.open(store)
    assert (summary.kept, summary.converted) == (6, 16)
    assert made.about["sources"] == {"a": "brain-mri", "cheng": "cheng"}
    own = [i for i, name in enumerate(made.sources) if name == "cheng"]
    assert [made.patients[i] for i in own] == alone.patients
    assert made.masks.present.tolist() == [name == "cheng" for name in made.sources]
    assert (made.masks.read(own) == masks).all()
    prepare([], store, remove=["cheng"])
    assert not Store.open(store).masks.present.any()
    prepare([f"a={a}"], tmp_path / "fresh.zarr")
    assert contents(store) == contents(tmp_path / "fresh.zarr")


def test_real_sources_share_copies_and_patients(tmp_path: Path, store: Path) -> None:
    """Of the ancestor, eleven images are slices of the Cheng set."""
    summary = prepare([real_data("brain-mri-native"), real_data("brain-mri")], store)
    own = summary.sources["brain-mri-native"]
    assert (own["images"], own["patients"]) == (64, 11)
    made = Store.open(store)
    assert sum(map(bool, made.patients)) == 544 + 11

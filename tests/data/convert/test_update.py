"""Update of image stores of an earlier schema: the same bytes as a new conversion, whenever it is interrupted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from earlier_stores import make_schema_1

from hpc_tumor.cli.views.conversion import split_table
from hpc_tumor.data.convert import writers
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.convert.target import locked
from hpc_tumor.data.convert.update import bring_up_to_date
from hpc_tumor.data.patients.recognise import Recognised, recognise
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.splits.splits import make_split
from hpc_tumor.data.store.nodes import group_json, read_attributes
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, StoreError


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("update") / "raw"
    make_phantom(folder, "brain-mri", 12, 0)
    return folder


@pytest.fixture(scope="module")
def new(raw: Path) -> Path:
    store = raw.parent / "new.zarr"
    prepare_dataset(BrainMRIReader(), raw, store, workers=1)
    return store


@pytest.fixture
def old(new: Path, tmp_path: Path) -> Path:
    """A store as the first schema had it."""
    store = tmp_path / "old.zarr"
    shutil.copytree(new, store)
    make_schema_1(store)
    return store


def files_of(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def test_an_updated_store_has_the_bytes_of_a_new_one(old: Path, new: Path) -> None:
    update = bring_up_to_date(old)
    assert update is not None
    assert update.images == 12
    assert "Its fingerprint changed: collect shows earlier runs on it apart, and unfinished ones must be" in update.note
    assert files_of(old) == files_of(new)
    assert bring_up_to_date(old) is None


def test_an_old_store_is_read_but_names_no_patients(old: Path, new: Path) -> None:
    store, other = Store.open(old), Store.open(new)
    assert store.group.tolist() == other.group.tolist()
    for name in ("patients", "sources", "heads", "known_slice", "correlation"):
        with pytest.raises(StoreError, match=r"names no patients\. Bring it up .*hpc-tumor patients .*old.zarr"):
            getattr(store, name)
    (note,) = (note for note in split_table(make_split(store, "published", 0), store).notes if "patients " in note)
    assert note.endswith(f"of an earlier version and names no patients: hpc-tumor patients {old} adds them.")


def test_a_conversion_updates_an_old_store_and_reads_no_image_again(raw: Path, old: Path, new: Path) -> None:
    summary = prepare_dataset(BrainMRIReader(), raw, old, workers=1)
    assert (summary.converted, summary.kept) == (0, 12)
    assert any("brought up to date: 0 of 12 images" in note for note in summary.notes)
    assert files_of(old) == files_of(new)


@pytest.mark.parametrize("step", range(8))
def test_a_store_is_complete_wherever_an_update_ends(
    old: Path, new: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renames are the only steps that are seen outside of the staging folder."""
    done = 0

    def counted(way: Any) -> Any:
        def move(self: Path, target: Path) -> Path:
            nonlocal done
            done += 1
            if done > step:
                raise OSError(28, "No space left on device")
            moved: Path = way(self, target)
            return moved

        return move

    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        if step < 6:  # four columns and two groups
            with pytest.raises(DataError, match="no space is left"):
                bring_up_to_date(old)
        else:
            bring_up_to_date(old)
    assert Store.open(old).group.tolist() == Store.open(new).group.tolist()
    bring_up_to_date(old)
    assert files_of(old) == files_of(new)


@pytest.mark.slow
def test_two_updates_at_once_leave_one_store(old: Path, new: Path) -> None:
    """Each updates it, finds that the other has, or says that the other is at it."""
    code = "import sys; from hpc_tumor import cli; sys.exit(cli.main(['patients', sys.argv[1]]))"
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(old)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[1].decode() for process in both]
    assert 0 in [process.returncode for process in both]
    assert all(
        process.returncode == 0 or "is being converted by process" in text
        for process, text in zip(both, said, strict=True)
    )
    assert sum("was brought up to date" in text for text in said) == 1
    assert files_of(old) == files_of(new)


def test_a_store_that_is_being_converted_is_left_alone(old: Path) -> None:
    before = files_of(old)
    with locked(old), pytest.raises(DataError, match="is being converted by process"):
        bring_up_to_date(old)
    assert files_of(old) == before


def test_read_only_stores(old: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one needs no update, an old one cannot be updated; root may write everywhere, so access is denied here."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert bring_up_to_date(new) is None
    before = files_of(old)
    with pytest.raises(StoreError, match=r"old\.zarr was converted .* cannot write to it\. Copy it .* patients COPY"):
        bring_up_to_date(old)
    assert files_of(old) == before


@pytest.mark.parametrize("column", ["thumbnail", "label", "part", "identical", "group"])
def test_a_damaged_old_store_is_refused_unchanged_and_converted_again(old: Path, raw: Path, column: str) -> None:
    shard = next((old / "index" / column / "c").rglob("0*"))
    while shard.is_dir():
        shard = next(shard.iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    before = files_of(old)
    with pytest.raises(DataError, match=f"the index column {column} is missing or damaged.*--overwrite"):
        prepare_dataset(BrainMRIReader(), raw, old, workers=1)
    assert files_of(old) == before
    assert prepare_dataset(BrainMRIReader(), raw, old, workers=1, overwrite=True).converted == 12


def test_an_unfinished_old_store_is_refused_with_what_helps(old: Path) -> None:
    about = (read_attributes(old) or {})["hpc_tumor"]
    (old / "zarr.json").write_bytes(group_json({"hpc_tumor": {**about, "complete": False}}))
    assert bring_up_to_date(old) is None
    with pytest.raises(StoreError, match=r"unfinished\. Convert again: .*prepare-data SOURCE .*old\.zarr --overwrite"):
        Store.open(old)


def test_other_options_of_an_old_store_are_kept(old: Path) -> None:
    about = (read_attributes(old) or {})["hpc_tumor"]
    options = {**about["options"], "crop": "none"}
    (old / "zarr.json").write_bytes(group_json({"hpc_tumor": {**about, "options": options}}))
    bring_up_to_date(old)
    assert Store.open(old).options == {**BrainMRIReader().options, "crop": "none"}


def test_images_that_are_kept_are_not_recognised_again(
    raw: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, store = tmp_path / "more", tmp_path / "grown.zarr"
    shutil.copytree(raw, more)
    shutil.copytree(new, store)
    first = sorted(raw.rglob("*.jpg"))[0]
    (more / first.relative_to(raw).parent / "another.jpg").write_bytes(first.read_bytes())
    prepare_dataset(BrainMRIReader(), more, tmp_path / "whole.zarr", workers=1)
    counts: list[int] = []

    def count(thumbnails: Any, heads: Any) -> Recognised:
        counts.append(len(thumbnails))
        return recognise(thumbnails, heads)

    monkeypatch.setattr(writers, "recognise", count)
    prepare_dataset(BrainMRIReader(), more, store, workers=1)
    assert counts == [1]
    assert files_of(store) == files_of(tmp_path / "whole.zarr")

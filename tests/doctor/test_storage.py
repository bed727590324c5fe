"""Folders: quotas as commands and CephFS print them, room, locks, and what is said of it."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from hpc_tumor.config import ClusterProfile
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import READERS
from hpc_tumor.data.store.store import Store
from hpc_tumor.doctor import filesystems
from hpc_tumor.doctor.filesystems import Allowance, Room, Trial, ceph_quota, read_quota, read_room, try_writing
from hpc_tumor.doctor.finding import error
from hpc_tumor.doctor.storage import check_storage, check_writing, judge_room
from hpc_tumor.errors import DataError
from hpc_tumor.system import atomic
from hpc_tumor.validation import build

GB = 1024**3
QUOTA = """Disk quotas for user anna (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/home 1048576  2097152 3145728           90000   95000  100000
"""
LUSTRE = "/mnt/lustre 3145728*  2097152 4194304 6d23h50m 90000 0 0 -\n"


def profile(scratch: str | None = None) -> ClusterProfile:
    environment = {"scratch": scratch} if scratch else {}
    return build(ClusterProfile, {"name": "p", "description": "made up", "environment": environment}, "test")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (QUOTA, Allowance(GB, 5000, "your quota")),
        (LUSTRE, Allowance(0, None, "your quota")),  # beyond the soft limit
        ("Disk quotas for user anna (uid 1000): none\n", None),
        ("/home 10 0 0 20 0 0\n", None),
        ("/home 10 0 40 20 0 0\n", Allowance(30 * 1024, None, "your quota")),
        ("quota: error while getting quota\n", None),
    ],
)
def test_quotas_as_printed(text: str, left: Allowance | None) -> None:
    assert read_quota(text) == left


def test_the_nearest_quota_of_cephfs_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {
        (tmp_path, "ceph.quota.max_bytes"): b"100", (tmp_path, "ceph.quota.max_files"): b"0",
        (tmp_path, "ceph.dir.rbytes"): b"70", (tmp_path, "ceph.dir.rentries"): b"5",
        (tmp_path.parent, "ceph.quota.max_bytes"): b"1",
    }  # fmt: skip

    def getxattr(path: Path, name: str) -> bytes:
        if (path, name) not in limits:
            raise OSError(errno.ENODATA, "No data available")
        return limits[path, name]

    monkeypatch.setattr(filesystems.os, "getxattr", getxattr)
    (tmp_path / "runs").mkdir()
    assert ceph_quota(tmp_path / "runs") == Allowance(30, None, f"quota of {tmp_path}")


def test_a_quota_below_what_is_free_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "quota"
    command.write_text("#!/bin/sh\necho '/dev/x 10 0 12 99 0 100'; exit 1\n")  # 1: a limit is exceeded
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    room = read_room(tmp_path)
    assert (room.bytes_left, room.files_left, room.quota) == (2 * 1024, 1, "your quota")
    found = judge_room(("runs",), tmp_path, room)
    assert found.level == "error"
    assert "by your quota" in found.text


@pytest.mark.parametrize(
    ("names", "bytes_left", "files_left", "level"),
    [
        (("runs", "home"), 10**12, 10**6, "ok"), (("runs",), 5 * 10**9, 10**6, "warning"),
        (("runs",), 10**8, 10**6, "error"), (("runs",), 10**12, 1000, "warning"), (("runs",), 10**12, 10, "error"),
        (("runs",), None, None, "ok"), (("store",), 0, 0, "ok"), (("home",), 0, 10**6, "warning"),
    ],
)  # fmt: skip
def test_how_much_room_is_enough(
    names: tuple[str, ...], bytes_left: int | None, files_left: int | None, level: str
) -> None:
    found = judge_room(names, Path("/runs"), Room("ceph", Path("/"), bytes_left, files_left))
    assert found.level == level
    assert bool(found.way_out) is (level != "ok")


def test_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    trial = try_writing(tmp_path)
    assert (trial.refused, trial.locks, trial.renames) == ("", True, True)
    assert abs(trial.skew) < 1
    assert list(tmp_path.iterdir()) == []


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert try_writing(tmp_path).locks is None
    assert "--cluster local" in check_writing(tmp_path, try_writing(tmp_path))[0].way_out
    monkeypatch.setattr(fcntl, "flock", lambda handle, operation: None)
    assert try_writing(tmp_path).locks is False


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, data: bytes) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(atomic, "write_bytes", write)
    (found,) = check_writing(tmp_path, try_writing(tmp_path))
    assert found.level == "error"
    assert "Disk quota exceeded" in found.text
    assert "free some space" in found.way_out


def test_clocks_and_slow_disks_are_warned_of() -> None:
    for trial, words in ((Trial(skew=-40.0), "40 s behind"), (Trial(seconds=7.0), "took 7.0 s")):
        (found,) = check_writing(Path("/runs"), trial)
        assert (found.level, words in found.text) == ("warning", True)


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (found,) = check_writing(Path("/proc/runs"), try_writing(Path("/proc")))
    assert found.level == "error"
    assert "--runs" in found.way_out


def test_node_local_folders_are_warned_of_on_clusters_alone() -> None:
    def texts(used: ClusterProfile | None, tried: bool = False) -> list[str]:
        found = check_storage(runs, None, used, tried)
        return [item.text for item in found if item.level == "warning" and str(runs) in item.text]

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        runs = Path(folder) / "new" / "runs"
        assert texts(None) == []
        assert texts(profile()) == [f"runs in {runs}: on a cluster, each node has its own /tmp"]
        assert texts(profile(), tried=True) == []
        assert list(Path(folder).iterdir()) == []


def test_the_store(tmp_path: Path) -> None:
    make_phantom(tmp_path / "raw", "brain-mri", 20, seed=1)
    store = tmp_path / "scratch" / "images.zarr"
    store.parent.mkdir()
    summary = prepare_dataset(READERS["brain-mri"](), tmp_path / "raw", store, workers=1)

    def told(path: Path, scratch: str | None = None) -> tuple[str, str]:
        found = check_storage(tmp_path, path, profile(scratch), tried=True)[-1]
        return found.level, found.text

    level, text = told(store)
    assert level == "ok"
    assert f"20 images, fingerprint {summary.fingerprint[:12]}" in text
    assert told(store, str(tmp_path / "scratch"))[0] == "ok"
    assert told(store, str(tmp_path / "elsewhere"))[0] == "warning"
    assert told(store, "~nobody-of-that-name/scratch") == ("ok", text)  # known on the cluster alone
    missing = check_storage(tmp_path, tmp_path / "no.zarr", None)[-1]
    assert (missing.level, missing.text) == ("error", f"there is no store {tmp_path / 'no.zarr'}")
    assert "prepare-data" in missing.way_out


@pytest.mark.parametrize(
    ("failure", "words"),
    [(DataError("damaged."), "damaged"), (OSError(errno.EACCES, "Permission denied"), "s.zarr: Permission denied")],
)
def test_a_store_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, words: str
) -> None:
    monkeypatch.setattr(Store, "open", MagicMock(side_effect=failure))
    found = check_storage(tmp_path, tmp_path / "s.zarr", None)[-1]
    assert (found.level, found.text.endswith(words)) == ("error", True)


def test_folders_whose_file_system_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = OSError(errno.ESTALE, "Stale file handle")
    monkeypatch.setattr("hpc_tumor.doctor.storage.read_room", MagicMock(side_effect=stale))
    found = [item for item in check_storage(tmp_path, None, profile()) if "Stale" in item.text]
    assert found[0] == error(f"runs {tmp_path}: Stale file handle", "choose another folder, or ask an administrator")


@pytest.mark.parametrize(("kind", "warned"), [("ceph", False), ("xfs", True)])
def test_local_disks_are_warned_of_on_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, warned: bool
) -> None:
    room = Room(kind, Path("/data"), None, None)
    monkeypatch.setattr("hpc_tumor.doctor.storage.read_room", lambda folder: room)
    monkeypatch.setattr("hpc_tumor.doctor.storage.nearest_existing", lambda path: Path("/data"))
    found = [item.text for item in check_storage(tmp_path, None, profile()) if item.level == "warning"]
    assert any("runs on xfs /data, probably this machine's local disk" in text for text in found) is warned


def test_kinds_of_file_systems(tmp_path: Path) -> None:
    for kind, shared in (("nfs4", True), ("fuse.ceph", True), ("lustre", True), ("gpfs", True), ("ext4", False),
                         ("tmpfs", False), ("xfs", False), ("overlay", False)):  # fmt: skip
        assert Room(kind, Path("/"), 0, 0).shared is shared
    assert read_room(Path("/proc")).kind == "proc"
    assert read_room(tmp_path).mount in (tmp_path, *tmp_path.parents)
    assert os.path.ismount(read_room(tmp_path).mount)

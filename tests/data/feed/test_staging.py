"""The store on a node's own disk: copied once, whole, only where there is room; and whatever goes wrong is one line."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.feed import staging
from hpc_tumor.data.feed.node_disk import lock_path, user_folder
from hpc_tumor.data.feed.staging import list_files, stage_store
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.store.store import Store, read_about

# A job on the same node: says what it did, and holds the copy until it is told to go on.
_JOB = """
import os, signal, sys
from pathlib import Path
from hpc_tumor.data.feed.staging import stage_store

copied = []

def die(event, arguments):
    if event == "open" and ".part/" in str(arguments[0]):
        copied.append(arguments[0])
        if len(copied) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3:] == ["killed"]:
    sys.addaudithook(die)
with stage_store(Path(sys.argv[1]), sys.argv[2], lambda text: print(text, flush=True)) as path:
    print("reads", path, flush=True)
    sys.stdin.readline()
"""


def made_store(folder: Path, seed: int = 1) -> Path:
    make_phantom(folder / "raw", "brats", 2, seed=seed, shape=(32, 32, 12))
    report = inspect_source(folder / "raw")
    prepare_dataset(report.reader, folder / "raw", folder / "store.zarr", workers=1)
    return folder / "store.zarr"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_store(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another disk than the tests' own."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="hpc-tumor-test-", dir=memory))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def said() -> list[str]:
    return []


def leave(monkeypatch: pytest.MonkeyPatch, room: Callable[[Path], tuple[float, float]]) -> None:
    """Let each disk have so much left, in bytes and in entries."""

    def statvfs(folder: Path) -> SimpleNamespace:
        size, entries = room(folder)
        return SimpleNamespace(f_bavail=size, f_frsize=1, f_favail=entries, f_files=entries)

    monkeypatch.setattr(os, "statvfs", statvfs)


def stage(store: Path, disk: Path | str, said: list[str], **options: object) -> Path | None:
    with stage_store(store, str(disk), said.append, **options) as path:  # type: ignore[arg-type]
        return path


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_files(folder)}


def start_job(store: Path, disk: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _JOB, str(store), str(disk), *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_store_is_copied_once_and_for_its_owner_alone(store: Path, disk: Path, said: list[str]) -> None:
    copy = stage(store, disk, said)
    assert copy is not None
    assert copy.is_relative_to(disk)
    assert contents(copy) == contents(store)
    assert Store.open(copy).fingerprint == Store.open(store).fingerprint
    (own,) = disk.iterdir()
    assert own.stat().st_mode & 0o777 == 0o700
    assert [line.split()[1] for line in said] == ["copying", "copied"]
    said.clear()
    assert stage(store, disk, said) == copy
    assert [line.split()[1] for line in said] == ["read"]


def test_nothing_is_copied_where_no_disk_is_named(store: Path, said: list[str]) -> None:
    with stage_store(store, None, said.append) as path:
        assert path is None
    assert said == []


def test_jobs_that_start_together_copy_once(store: Path, disk: Path) -> None:
    jobs = [start_job(store, disk) for _ in range(3)]
    texts = [job.communicate("\n", timeout=60)[0] for job in jobs]
    assert sum("copying" in text for text in texts) == 1
    assert len({text.splitlines()[-1] for text in texts}) == 1
    assert all(f"reads {disk}" in text for text in texts)


def test_a_copy_whose_maker_was_killed_is_made_again(store: Path, disk: Path, said: list[str]) -> None:
    assert start_job(store, disk, "killed").wait(60) == -9
    (own,) = disk.iterdir()
    assert [path.suffix for path in sorted(own.iterdir())] == [".lock", ".part"]
    copy = stage(store, disk, said)
    assert copy is not None
    assert contents(copy) == contents(store)
    assert not list(own.glob("*.part"))


@pytest.mark.parametrize("what", ["a file is gone", "a file is short", "another boot"])
def test_a_copy_that_is_not_whole_is_made_again(
    store: Path, disk: Path, said: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = stage(store, disk, said)
    assert copy is not None
    shard = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if what == "a file is gone":
        shard.unlink()
    elif what == "a file is short":
        os.truncate(shard, 10)
    else:
        monkeypatch.setattr(staging, "this_boot", lambda: "later")
    said.clear()
    assert stage(store, disk, said) == copy
    assert "copying" in said[0]
    assert contents(copy) == contents(store)


def test_where_it_cannot_be_the_store_is_read_where_it_is(
    store: Path, disk: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NODE_DISK", raising=False)
    monkeypatch.setenv("EMPTY", "")
    (disk / "file").touch()
    cases = {
        "$NODE_DISK/here": "$NODE_DISK is not set",
        "$EMPTY": "not an absolute path",
        "scratch": "not an absolute path",
        str(disk / "a" / "b"): "No such file",
        str(disk / "file"): "File exists",
        str(tmp_path): "is on the same disk",
    }
    for named, why in cases.items():
        assert stage(store, named, said) is None
        assert len(said) == 1, said
        assert said[0].startswith("store: not copied to the node's disk: ")
        assert why in said.pop()
    own = user_folder(str(disk), store)
    own.rmdir()
    own.symlink_to(tmp_path)
    assert stage(store, disk, said) is None
    assert "another user" in said[0]
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.parametrize(("free", "why"), [((1000.0, 1e9), "kB, but"), ((1e9, 3.0), "3 files, but")])
def test_it_is_not_begun_without_room(
    store: Path, disk: Path, said: list[str], free: tuple[float, float], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, lambda folder: free)
    assert stage(store, disk, said) is None
    assert len(said) == 1
    assert why in said[0]
    (own,) = disk.iterdir()
    assert [path.suffix for path in own.iterdir()] == [".lock"]


def test_old_copies_go_where_room_is_needed_and_nobody_reads_them(
    store: Path, disk: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, third = made_store(tmp_path / "other", seed=2), made_store(tmp_path / "third", seed=3)
    size = sum(-(-size // 4096) * 4096 for size, _ in list_files(store).values())
    room = 2.3 * size

    def free(folder: Path) -> tuple[float, float]:
        return room - sum(path.stat().st_blocks * 512 for path in folder.rglob("*")), 1e9

    leave(monkeypatch, free)
    with stage_store(store, str(disk), said.append) as first, stage_store(other, str(disk), said.append) as second:
        assert first is not None
        assert second is not None
        assert stage(third, disk, said) is None  # both are in use
        assert "space for" in said[-1]
        assert first.exists()
        assert second.exists()
    room = 3.3 * size
    with stage_store(other, str(disk), said.append):
        assert stage(third, disk, said) is not None
        assert second.exists()
        assert first.exists()  # there was room for all
    room = 2.3 * size
    shutil.rmtree(made := (disk / next(disk.iterdir()).name / str((read_about(third) or {})["fingerprint"])[:16]))
    with stage_store(other, str(disk), said.append):
        assert stage(third, disk, said) is not None
        assert made.exists()
        assert second.exists()
        assert not first.exists()


def test_links_are_not_followed(store: Path, disk: Path, tmp_path: Path, said: list[str]) -> None:
    linked = tmp_path / "linked.zarr"
    shutil.copytree(store, linked)
    (tmp_path / "secret").write_text("of somebody")
    (linked / "cases" / "more").symlink_to(tmp_path / "secret")
    assert stage(linked, disk, said) is None
    assert said == [f"store: not copied to the node's disk: {linked}/cases/more is a link, not a file"]
    entry = tmp_path / "entry.zarr"
    entry.symlink_to(store)  # the way to the store may be one
    assert stage(entry, disk, said) is not None


def test_a_store_that_changes_meanwhile_is_not_used(store: Path, disk: Path, tmp_path: Path, said: list[str]) -> None:
    changing = tmp_path / "changing.zarr"
    shutil.copytree(store, changing)

    def change(line: str) -> None:
        """Touch the store when the first line comes: that it is being copied."""
        said.append(line)
        os.utime(changing / "zarr.json")

    with stage_store(changing, str(disk), change) as copy:
        assert copy is None
    assert said[0].startswith("store: copying ")
    assert said[-1] == "store: not copied to the node's disk: the store changed while it was copied"
    (own,) = disk.iterdir()
    assert [path.suffix for path in own.iterdir()] == [".lock"]


@pytest.mark.slow
def test_a_run_that_is_to_stop_does_not_wait(store: Path, disk: Path, said: list[str]) -> None:
    copy = stage(store, disk, said)
    assert copy is not None
    shutil.rmtree(copy.parent)
    with lock_path(copy.parent).open() as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)  # another job copies
        looks = iter([None, None])
        assert stage(store, disk, said, stop=lambda: next(looks, "USR2")) is None
        assert "waiting for another job" in said[-2]
        assert said[-1].endswith("the run is stopping")
        assert stage(store, disk, said, patience=0.5) is None  # or hangs
        assert "no progress" in said[-1]


def test_progress_is_said_while_it_is_copied(
    store: Path, disk: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_SAY_SECONDS", -1)
    monkeypatch.setattr(staging, "_SIGN_SECONDS", -1)
    assert stage(store, disk, said) is not None
    assert re.fullmatch(r"store: 100% copied, \d+ MB/s, about 0 s left", said[-2])


def test_a_store_that_is_not_complete_is_left_to_whoever_opens_it(
    store: Path, disk: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for about, lines in (
        ({"complete": False, "fingerprint": "0" * 16}, []),
        ({"complete": True}, []),
        ({"complete": True, "fingerprint": "../../x"}, ["store: not copied to the node's disk: invalid fingerprint"]),
    ):
        monkeypatch.setattr(staging, "read_about", lambda path, about=about: about)
        assert stage(store, disk, said) is None
        assert said == lines
    assert list(disk.iterdir()) == []


def test_work_of_a_conversion_is_not_copied(store: Path, disk: Path, tmp_path: Path, said: list[str]) -> None:
    shutil.copytree(store, tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / ".staging-1").mkdir()
    (tmp_path / "s.zarr" / ".staging-1" / "half").touch()
    copy = stage(tmp_path / "s.zarr", disk, said)
    assert copy is not None
    assert contents(copy) == contents(store)


def test_a_full_disk_is_said(store: Path, disk: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "make_room", MagicMock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    assert stage(store, disk, said) is None
    assert said == [f"store: not copied to the node's disk: {disk} is full"]


def test_a_rank_that_does_not_lead_copies_nothing(store: Path, disk: Path, said: list[str]) -> None:
    assert stage(store, disk, said, leads=False) is None
    copy = user_folder(str(disk), store) / str((read_about(store) or {})["fingerprint"])[:16]
    with lock_path(copy).open("w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        assert stage(store, disk, said, leads=False) is None
    assert said == []
    assert not copy.exists()


def test_a_copy_that_is_not_whole_and_that_others_read_is_not_waited_for(
    store: Path, disk: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_MOST_TRIES", 1)
    copy = stage(store, disk, said)
    assert copy is not None
    shutil.rmtree(copy)
    with lock_path(copy.parent).open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert stage(store, disk, said) is None
    assert said[-1].endswith("is incomplete, but another job holds its lock")


def test_where_another_rank_is_lost_copying_ends(store: Path, disk: Path, said: list[str]) -> None:
    before = threading.active_count()
    with pytest.raises(ConnectionError, match="rank 1 is gone"):
        stage(store, disk, said, agree=MagicMock(side_effect=ConnectionError("rank 1 is gone")))
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert threading.active_count() == before


def test_ranks_of_a_node_share_the_copy_and_go_on_together(store: Path, disk: Path) -> None:
    agree, logs, paths = _agreement(3), [[], [], []], [None, None, None]

    def rank(number: int) -> None:
        leads = number == 0
        paths[number] = stage(store, disk, logs[number], leads=leads, agree=lambda *flags: agree(number, *flags))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert paths[0] is not None
    assert paths[0] == paths[1] == paths[2]
    assert [[line.split()[1] for line in log] for log in logs] == [["copying", "copied"], ["read"], ["read"]]


def _agreement(ranks: int) -> Callable[..., list[bool]]:
    barrier, raised = threading.Barrier(ranks, timeout=60), [[False, False]] * ranks

    def agree(number: int, *flags: bool) -> list[bool]:
        raised[number] = list(flags)
        barrier.wait()
        all_flags = [any(flags) for flags in zip(*raised, strict=True)]
        barrier.wait()
        return all_flags

    return agree

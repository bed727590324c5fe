"""The record of a run: complete files only, and readers that take whatever they find."""

from __future__ import annotations

import errno
import json
import math
import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from hpc_tumor.config import Experiment
from hpc_tumor.errors import HpcTumorError, UsageError
from hpc_tumor.run_dir import RunDir, find_runs, is_run, read_json, read_json_lines
from hpc_tumor.system import atomic
from hpc_tumor.validation import build


@pytest.fixture
def experiment() -> Experiment:
    values = {"model": {"name": "unet"}, "data": {"store": "a.zarr"}, "task": "segmentation", "seed": 4}
    return build(Experiment, values, where="here")


def test_a_new_run_holds_its_settings(tmp_path: Path, experiment: Experiment) -> None:
    run = RunDir.create(tmp_path / "runs", experiment)
    assert run.experiment() == experiment
    assert "-unet-" in run.name
    assert is_run(run.path)
    assert not run.is_finished()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]


def test_runs_made_in_the_same_second_are_different(tmp_path: Path, experiment: Experiment) -> None:
    assert len({RunDir.create(tmp_path, experiment).name for _ in range(20)}) == 20


def test_reading_takes_what_is_absent_torn_or_foreign(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "foreign")
    run.path.mkdir()
    assert (read_json(run.status), run.read_metrics(), run.read_events(), run.is_finished()) == (None, [], [], False)
    run.status.write_text('{"epoch": ')
    run.result.write_text("[1, 2]")
    run.metrics.write_bytes(b'{"epoch": 1, "part": "train"}\n\xff\xfe\n[]\n{"epoch": 2, "par')
    assert read_json(run.status) is None
    assert not run.is_finished()
    assert run.read_metrics() == [{"epoch": 1, "part": "train"}]
    with pytest.raises(UsageError, match="is not a run directory"):
        run.experiment()


def test_scores_that_are_no_numbers_become_null(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.add_metrics(1, "val", dice=math.nan, loss=math.inf)
    assert json.loads(run.metrics.read_text()) == {"epoch": 1, "part": "val", "dice": None, "loss": None}


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for epoch in (1, 2, 3):
        run.add_metrics(epoch, "train", loss=1 / epoch)
    run.keep_metrics(up_to_epoch=2)
    assert [line["epoch"] for line in run.read_metrics()] == [1, 2]


def _append(path: str, writer: int) -> None:
    for i in range(100):
        RunDir(Path(path)).add_event("beat", writer=writer, i=i, filling="x" * 500)


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    context = get_context("fork")
    writers = [context.Process(target=_append, args=(str(tmp_path), n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = RunDir(tmp_path).read_events("beat")
    assert len(events) == 300
    for n in range(3):
        assert [event["i"] for event in events if event["writer"] == n] == list(range(100))


def test_runs_are_found_by_name_part_and_glob(tmp_path: Path) -> None:
    names = ["20260101-120000-unet-aaaaaa", "20260101-120001-cnn-bbbbbb", "20260102-120000-unet-cccccc"]
    for name in (*names, ".20260103-120000-unet-dddddd", "notes"):
        (tmp_path / name).mkdir()
    assert [run.name for run in find_runs(tmp_path)] == names
    assert [run.name for run in find_runs(tmp_path, ["all"])] == names
    assert [run.name for run in find_runs(tmp_path, ["*unet*"])] == [names[0], names[2]]
    assert [run.name for run in find_runs(tmp_path, ["bbbbbb", names[0]])] == names[:2]
    with pytest.raises(UsageError, match=r"no run in .* matches 'vit'"):
        find_runs(tmp_path, ["cnn", "vit"])
    with pytest.raises(UsageError, match="no runs folder"):
        find_runs(tmp_path / "elsewhere")


def test_the_name_of_a_network_means_its_runs_and_those_of_others_only_where_it_has_none(tmp_path: Path) -> None:
    unet = "20260101-120000-unet-aaaaaa"
    others = ["20260101-120001-improved-unet-bbbbbb", "20260101-120002-attention-unet-cccccc"]
    for name in (unet, *others):
        (tmp_path / name).mkdir()
    for pattern, names in {
        "unet": [unet], "improved-unet": others[:1], "attention": others[1:], "unet-": [unet, *others],
        "*unet*": [unet, *others], unet: [unet], "cccccc": others[1:], "-unet": [unet, *others],
    }.items():  # fmt: skip
        assert [run.name for run in find_runs(tmp_path, [pattern])] == names, pattern
    (tmp_path / unet).rmdir()
    assert [run.name for run in find_runs(tmp_path, ["unet"])] == others


def _write_half(file: Path) -> None:
    with atomic.atomic_file(file) as half:
        half.write(b'{"epoch"')
        raise RuntimeError("interrupted")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    atomic.write_json(file, {"epoch": 1})
    with pytest.raises(RuntimeError, match="interrupted"):
        _write_half(file)
    assert read_json(file) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_files_get_the_permissions_that_the_user_asked_for(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic.write_text(tmp_path / "a", "")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_lines_of_json_leave_out_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"a": 1}\n\nnull\n"text"\n{"a": 2}\n')
    assert read_json_lines(tmp_path / "a") == [{"a": 1}, {"a": 2}]


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.add_event("started")
    with run.events.open("a") as file:
        file.write('{"event": "checkp')  # killed in the middle of a write
    run.add_event("resumed")
    assert [event["event"] for event in run.read_events()] == ["started", "resumed"]


@pytest.mark.parametrize(
    ("number", "exit_code", "says"),
    [
        (errno.ENOSPC, 1, "the disk is full"),
        (errno.EDQUOT, 1, "the disk is full"),
        (errno.EROFS, 2, "read-only"),
        (errno.EACCES, 2, "permission denied"),
    ],
)
def test_a_disk_that_refuses_a_run(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch, number: int, exit_code: int, says: str
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(atomic, "write_json", refuse)
    (tmp_path / "old").mkdir()
    for runs in (tmp_path / "old", tmp_path / "new" / "runs"):
        with pytest.raises(HpcTumorError, match=f"{runs}: .*{says}") as caught:
            RunDir.create(runs, experiment)
        assert caught.value.exit_code == exit_code
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


def test_a_runs_folder_that_is_a_file(tmp_path: Path, experiment: Experiment) -> None:
    (tmp_path / "runs").write_text("mine")
    for runs in (tmp_path / "runs", tmp_path / "runs" / "deeper"):
        with pytest.raises(UsageError, match=rf"{runs}: {tmp_path}/runs is not a folder"):
            RunDir.create(runs, experiment)
    assert (tmp_path / "runs").read_text() == "mine"


def test_leftovers_of_a_killed_write_go_and_nothing_else(tmp_path: Path, experiment: Experiment) -> None:
    run = RunDir.create(tmp_path, experiment)
    kept = [run.config, run.last_checkpoint, run.path / "notes.tmp", run.path / ".hidden", run.logs / ".a.tmp"]
    left = [run.path / ".status.json.x1.tmp", run.checkpoints / ".last.pt.y2.tmp"]
    for path in kept[1:] + left:
        path.write_text("half")
    run.remove_leftovers()
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in left)


def test_a_line_that_did_not_fit_is_an_error(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.create(tmp_path, experiment)
    monkeypatch.setattr(os, "write", lambda handle, line: len(line) - 1)
    with pytest.raises(OSError, match="could not be written completely") as raised:
        run.add_event("started")
    assert raised.value.errno == errno.ENOSPC


def test_a_file_larger_than_any_of_a_run_is_not_read(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.create(tmp_path, experiment)
    size = run.config.stat().st_size
    for most, is_read in ((size, True), (size - 1, False)):
        monkeypatch.setattr("hpc_tumor.run_dir.MOST_BYTES", most)
        assert (read_json(run.config) is not None) is is_read

"""What a person, and what a log, gets to see."""

from __future__ import annotations

import json

import pytest

from hpc_tumor import console
from hpc_tumor.console import Output, View, duration, size
from hpc_tumor.results.layout import Column, Table

TABLE = Table("Title", (Column("name", "left"), Column("value"), Column("more", keep=1)), (("a", "1", "x" * 60),))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99.4, "99 s"), (99.6, "2 min"), (5_940, "99 min"),
     (7_500, "2 h 05 min"), (200_000, "2 d 7 h")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (44_140_000, "44.1 MB"), (2e12, "2.0 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_results_go_to_stdout_and_everything_else_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.table(TABLE)
    out.note("a note")
    out.warning("a warning")
    out.hints("Next:", [("command", "does it")])
    with out.progress("converting", "cases") as progress:
        progress(2, 2)
    shown = capsys.readouterr()
    assert "Title" in shown.out
    assert "note" not in shown.out
    assert all(text in shown.err for text in ("a note", "warning: a warning", "command", "converting: 2 of 2 cases"))
    assert "\x1b" not in shown.out + shown.err


def test_json_is_the_only_thing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(json=True)
    out.result({"a": float("nan"), "b": [1]}, show=lambda: out.text("not this"))
    out.hints("Next:", [("command", "does it")])
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"a": None, "b": [1]}
    assert shown.err == ""


def test_a_narrow_window_gets_fewer_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width, all_of_it in (("120", True), ("40", False)):
        monkeypatch.setenv("COLUMNS", width)
        Output().table(TABLE)
        assert ("x" * 60 in capsys.readouterr().out) is all_of_it


def test_progress_in_a_log_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1_000))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with Output().progress("converting", "cases") as progress:
        for done in range(101):
            progress(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == pytest.approx(100 / console.LOG_SECONDS, abs=2)
    assert lines[9].startswith("converting: 49 of 100 cases, about 5")
    assert lines[-1] == "converting: 100 of 100 cases"


def test_watching_in_a_log_says_each_thing_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.time, "sleep", lambda seconds: None)
    views = iter([View(TABLE, "epoch 1", False), View(TABLE, "epoch 1", False), View(TABLE, "epoch 2", True)])
    Output().watch(lambda: next(views), seconds=1)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["epoch 1", "epoch 2"]
    assert shown.out == ""


def test_nobody_is_asked_without_a_terminal() -> None:
    assert Output().confirm("cancel 3 runs?")

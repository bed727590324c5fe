"""Output for a terminal and for a log."""

from __future__ import annotations

import io
import json
import re
import signal
import sys

import pytest
from rich.console import Console

from hpc_tumor import console
from hpc_tumor.console import Output, View, draw, prepare_streams, size
from hpc_tumor.errors import UsageError
from hpc_tumor.table import Column, Table
from hpc_tumor.vocabulary import duration

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


def test_states_are_coloured_in_their_own_column_alone() -> None:
    file = io.StringIO()
    table = Table("", (Column("run"), Column("state", key="state")), (("failed", "failed"),))
    Console(file=file, force_terminal=True, color_system="standard", width=80, no_color=False).print(draw(table))
    assert file.getvalue().count("\x1b[31mfailed") == 1


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


def stdout_in(encoding: str, monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Capture the output of a command on a standard output of that encoding."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding, write_through=True))
    prepare_streams()
    return shown


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("ascii", "2 x 4 - Julich +/-1 10 deg a... -> b >= 3 - ? + * \\xff"),
     ("latin-1", "2 × 4 - Jülich ±1 10° a... -> b >= 3 · ? + * \\xff"),
     ("utf-8", "2 × 4 – Jülich ±1 10° a… → b ≥ 3 · 肿 ┼ ⠋ \\xff")],
)  # fmt: skip
def test_what_a_stream_cannot_carry_is_spelled_in_characters_that_it_can(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str
) -> None:
    shown = stdout_in(encoding, monkeypatch)
    Output().text("2 × 4 – Jülich ±1 10° a… → b ≥ 3 · 肿 ┼ ⠋ \udcff")
    assert shown.getvalue().decode(encoding) == f"{text}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_tables_stay_aligned_where_characters_become_several(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    shown = stdout_in(encoding, monkeypatch)
    rows = (("a → b … c ≥ d", "1"), ("x", "2"))
    Output().table(Table("", (Column("name", "left"), Column("value", "left")), rows))
    _, first, second = shown.getvalue().decode().splitlines()
    assert first.startswith("a -> b ... c >= d  1")
    assert first.index("1") == second.index("2")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_loses_nothing_on_any_stream(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    shown = stdout_in(encoding, monkeypatch)
    value = {"run": "肿瘤 × Jülich \udcff"}
    Output(json=True).result(value, show=list)
    assert json.loads(shown.getvalue()) == value


@pytest.mark.parametrize("columns", ["0", "1", "-5", "wide", ""])
def test_a_width_that_nothing_can_be_shown_in_is_not_obeyed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    prepare_streams()
    Output().table(TABLE)
    assert "x" * 60 in capsys.readouterr().out


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


class Terminal(io.StringIO):
    """A stream that says that a person sits at it."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch, typed: str = "") -> Terminal:
    """What is shown from now on, at a terminal where somebody has typed that."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    return shown


@pytest.mark.parametrize(("answer", "agreed"), [("y\n", True), (" YES \n", True), ("n\n", False), ("", False)])
def test_a_question_is_answered_with_yes_alone(monkeypatch: pytest.MonkeyPatch, answer: str, agreed: bool) -> None:
    shown = terminal(monkeypatch, answer)
    assert Output().confirm("cancel 3 runs?") is agreed
    assert shown.getvalue() == "cancel 3 runs? [y/N] "


def test_an_interrupted_question_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    monkeypatch.setattr(sys.stdin, "readline", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        Output().confirm("cancel 3 runs?")
    assert shown.getvalue().endswith("[y/N] \n")


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    with Output().progress("converting", "cases") as progress:
        progress(3, 7)
    text = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown.getvalue())
    assert "converting" in text
    assert "3/7 cases" in text


def test_without_a_terminal_a_question_is_refused_with_the_option_that_answers_it() -> None:
    with pytest.raises(UsageError, match=r"cancel 3 runs\? Confirm with --yes"):
        Output().confirm("cancel 3 runs?")

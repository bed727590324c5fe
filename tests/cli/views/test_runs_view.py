from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc_tumor import cli
from hpc_tumor.cli.views.runs import MAX_REASONS, MAX_WATCHED, count_states, filter_runs, runs_table, runs_view
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import RunDir


def state(number: int = 0, state: str = "running", model: str = "unet", **values: Any) -> RunState:
    name = f"20260101-0000{number:02}-{model}-{number:06x}"
    return RunState(RunDir(Path("runs") / name), "orfeo", str(number), State(state), **values)


def cells(item: RunState, width: int = 250) -> dict[str, str]:
    table = runs_table([item], width)
    return dict(zip([column.title for column in table.columns], table.rows[0], strict=True))


def test_states_networks_and_order_can_be_chosen() -> None:
    states = [
        state(1, "finished", best=0.7), state(2, "failed", "attention-unet"), state(3, best=0.9), state(4, "lost"),
    ]  # fmt: skip

    def numbers(wanted: str | None = None, models: list[str] | None = None, sort: str | None = None) -> list[int]:
        return [int(item.job_id or 0) for item in filter_runs(states, wanted, models, sort)]

    assert numbers() == [1, 2, 3, 4]
    assert numbers("failed, lost") == [2, 4]
    assert numbers("ended") == [2, 4]
    assert numbers("open") == [3]
    assert numbers(None, ["attention-unet"]) == [2]
    assert numbers(None, ["vit"]) == []
    assert numbers(None, None, "best") == [3, 1, 2, 4]
    with pytest.raises(UsageError, match="Did you mean 'failed'"):
        numbers("faild")
    with pytest.raises(UsageError, match="Did you mean 'unet'"):
        numbers(None, ["u-net"])
    with pytest.raises(UsageError, match="--sort"):
        numbers(None, None, "size")


def test_a_huge_loss_does_not_widen_the_table() -> None:
    assert cells(state(loss=1.0123e29))["loss"] == "1.01e+29"
    assert cells(state(loss=0.25))["loss"] == "0.250"


def test_time_is_set_against_the_limit() -> None:
    found = cells(state(elapsed=41 * 60, limit=7200, eta=3 * 3600, checkpoint_age=125, heartbeat_age=2))
    assert found["elapsed"] == "0:41 of 2:00 h"
    assert found["left"] == "3 h 00 min, +1 start"
    assert (found["heard"], found["saved"]) == ("2.0 s ago", "2 min ago")
    assert cells(state(elapsed=41 * 60, limit=7200, eta=600))["left"] == "10 min"
    assert cells(state(state="finished", elapsed=90, limit=7200))["elapsed"] == "90 s"


def test_of_many_failures_the_latest_are_told_and_equal_ones_once() -> None:
    states = [state(number, "failed", reason=f"reason {number}") for number in range(20)]
    notes = runs_table(states, 40).notes
    assert notes[0] == "20 failed"
    assert [note for note in notes if "reason 19" in note]
    assert len(notes) == MAX_REASONS + 2
    assert notes[-1].startswith("and 15 other reasons: ")
    alike = [state(number, "timeout", reason="the time limit was reached") for number in range(20)]
    assert runs_table(alike, 40).notes[1:] == ("20 runs timeout: the time limit was reached",)


def test_runs_that_lost_their_best_weights_are_named_however_many_failed() -> None:
    states = [state(number, "failed", reason=f"reason {number}") for number in range(30, 50)]
    marked = "scored with the weights of its last epoch: those of its best epoch were damaged"
    lost = [state(number, "finished", reason=marked, weights_lost="damaged") for number in (1, 2)]
    (note,) = [note for note in runs_table([*lost, *states], 60).notes if marked in note]
    assert all(item.name in note for item in lost)
    assert cells(lost[0])["why"] == marked
    assert lost[0].as_dict()["weights_lost"] == "damaged"


def test_of_many_runs_those_at_work_are_watched() -> None:
    states = [state(number % 60, "finished" if number < 90 else "running") for number in range(100)]
    view = runs_view(states, 200)
    assert len(view.table.rows) == 10 <= MAX_WATCHED
    assert view.table.notes[0] == count_states(states) == "10 running, 90 finished"
    assert not view.over
    assert view.line == "100 runs: 10 running, 90 finished"


def test_runs_are_completed_by_their_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell asks for it: in the folder that the line names, without loading what trains or draws."""
    for number in range(3):
        (tmp_path / "my runs" / f"2026010{number}-000000-unet-abc{number}").mkdir(parents=True)
    (tmp_path / "my runs" / ".queue-0").mkdir()
    code = (
        "import sys; from hpc_tumor.cli import main; code = main([])\n"
        "sys.exit(f'loaded {bad}' if (bad := {'torch', 'rich.console', 'pydantic'} & set(sys.modules)) else 0)"
    )
    variables = {
        "PATH": "/usr/bin:/bin", "_HPC_TUMOR_COMPLETE": "complete_bash", "COMP_CWORD": "4",
        "COMP_WORDS": "hpc-tumor cancel --runs my\\ runs 2026",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [f"2026010{number}-000000-unet-abc{number}" for number in (2, 1, 0)], done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_help_needs_nothing_that_trains_or_draws_tables() -> None:
    code = (
        "import sys; from hpc_tumor.cli import main\n"
        "main([*sys.argv[1:], '--help'])\n"
        "sys.exit(f'loaded {bad}' if (bad := {'torch', 'zarr', 'numpy', 'submitit'} & set(sys.modules)) else 0)"
    )
    for command in ("submit", "status", "collect", "doctor", "clusters", "rerun", "efficiency"):
        done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Usage: hpc-tumor" in done.stdout


def test_logs_of_several_runs_are_for_errors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [RunDir(tmp_path / f"20260101-00000{number}-unet-00000{number}") for number in range(3)]
    for number, run in enumerate(runs):
        run.logs.mkdir(parents=True)
        (run.logs / "rank-0.0.out").write_text(f"one\ntwo\nthree {number}\n")
    (runs[1].logs / "failure.0.json").write_text('{"rank": 0, "reason": "a reason", "expected": true}')
    (runs[1].logs / "rank-0.0.error.txt").write_text("Traceback\n")
    at = ["--runs", str(tmp_path)]
    assert cli.main(["logs", "unet", *at]) == 2
    assert "matches 3 runs" in capsys.readouterr().err
    assert cli.main(["logs", "unet", *at, "--errors"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"=== {runs[1].name}\na reason\n(traceback of rank 0: ")
    assert "2 of 3 runs: no errors so far" in said.err
    assert cli.main(["logs", runs[2].name, *at, "-n", "1"]) == 0
    assert capsys.readouterr().out == "three 2\n"

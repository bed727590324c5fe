from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from launching import small_experiment

from hpc_tumor.cluster.observe.logs import follow, list_logs, log_text
from hpc_tumor.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path, small_experiment())


def test_files_by_rank_and_start(run: RunDir) -> None:
    for name in ("rank-10.0.out", "rank-2.0.out", "rank-0.1.out", "rank-0.0.out", "rank-2.0.error.txt"):
        (run.logs / name).write_text(f"{name}\n")
    (run.logs / "rank-0.2.out").write_text("")
    (run.submission / "42_0_log.out").write_text("srun says\n")
    (run.submission / "42_submission.sh").write_text("not a log\n")
    found = [(log.kind, log.rank, log.start) for log in list_logs(run)]
    assert found == [
        ("output", 0, 0), ("output", 2, 0), ("error", 2, 0), ("output", 10, 0), ("output", 0, 1),
        ("launch", None, None),
    ]  # fmt: skip
    assert log_text(run, rank=10) == "rank-10.0.out\n"
    assert log_text(run) == "--- rank 0\nrank-0.0.out\n--- rank 0, restart 1\nrank-0.1.out\n"
    assert log_text(run, start=1) == "rank-0.1.out\n"


def test_what_the_launcher_said_where_no_rank_came_to_speak(run: RunDir) -> None:
    assert log_text(run) == ""
    (run.submission / "42_0_log.out").write_text("No module named hpc_tumor\n")
    assert log_text(run) == "No module named hpc_tumor\n"
    assert "No module named" in log_text(run, errors=True)


def test_errors_begin_with_the_rank_that_failed_first(run: RunDir) -> None:
    (run.logs / "rank-0.1.error.txt").write_text("Connection closed by peer\n")
    (run.logs / "rank-3.1.error.txt").write_text("ValueError: here\n")
    (run.logs / "rank-0.0.error.txt").write_text("of an earlier start\n")
    (run.logs / "failure.0.json").write_text(json.dumps({"rank": 0, "reason": "old"}))
    (run.logs / "failure.1.json").write_text(json.dumps({"rank": 3, "reason": "ValueError: here"}))
    text = log_text(run, errors=True)
    assert text.startswith("ValueError: here\n--- rank 3, restart 1\nValueError: here\n(1 more, ")
    assert "rank-0.1.error.txt)" in text
    assert "earlier start" not in text


def test_followed_across_a_restart(run: RunDir) -> None:
    done = threading.Event()

    def job() -> None:
        first = run.logs / "rank-0.0.out"
        first.write_text("one\n")
        time.sleep(0.1)
        with first.open("ab") as file:
            file.write(b"tumor: tumeur " + "é".encode()[:1])
            file.flush()
            time.sleep(0.1)
            file.write("é".encode()[1:] + b"\n")
        time.sleep(0.1)
        (run.logs / "rank-0.1.out").write_text("two\n")
        done.set()

    worker = threading.Thread(target=job)
    worker.start()
    pieces = list(follow(run, ended=done.is_set, every=0.02))
    worker.join()
    assert "".join(pieces) == "one\ntumor: tumeur é\ntwo\n"
    assert len(pieces) >= 4


NOISE = """submitit INFO (2026-11-23 07:51:22,001) - Starting with JobEnvironment(job_id=42, local_rank=0(2))
submitit INFO (2026-11-23 07:51:22,002) - Loading pickle: /runs/42_submitted.pkl
submitit WARNING (2026-11-23 07:52:00,000) - Bypassing signal SIGCONT
srun: Job step aborted: Waiting up to 62 seconds for job step to finish.
slurmstepd: error: *** STEP 42.0 ON gpu001 CANCELLED AT 2026-11-23T07:52:00 ***
"""


def test_a_run_without_error_has_none(run: RunDir) -> None:
    log = run.submission / "42_0_log.out"
    log.write_text(NOISE)
    assert log_text(run, errors=True) == ""
    assert log_text(run) == NOISE
    real = "slurmstepd: error: *** STEP 42.0 ON gpu001 CANCELLED AT 2026-11-23T07:52:00 DUE TO TIME LIMIT ***\n"
    log.write_text(NOISE + real)
    assert log_text(run, errors=True) == f"--- {log.name}\n{real}"
    log.write_text(NOISE + "srun: error: gpu001: task 0: Exited with exit code 1\n")
    run.add_event("submitted")
    run.add_event("cancelled")
    assert log_text(run, errors=True) == ""
    run.add_event("submitted")
    assert "exit code 1" in log_text(run, errors=True)
    run.result.write_text("{}")
    assert log_text(run, errors=True) == ""

"""The command as a whole, on a machine without SLURM; what its lines look like; and answers of nodes, made up."""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from hpc_tumor import cli
from hpc_tumor.cli.views.doctor import Waiting, show_section
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.config import ClusterProfile
from hpc_tumor.doctor import examine
from hpc_tumor.doctor.finding import Finding, Section, error
from hpc_tumor.doctor.node import judge
from hpc_tumor.doctor.node_job import Outcome
from hpc_tumor.doctor.probe import Gpu, Probe, TorchFacts
from hpc_tumor.errors import ClusterError, UsageError
from hpc_tumor.system.torch_builds import TorchBuild
from hpc_tumor.validation import build

Captured = pytest.CaptureFixture[str]
PLAN = Plan("p", 2, 1, 4, 8.0, 5, 1)
TORCH = TorchFacts(
    TorchBuild("2.14.1+cu130", cuda="13.0"), archs=("sm_80",), nccl="2.30.7", precision=("bfloat16", "the best"),
    gpus=(Gpu("NVIDIA A100-SXM4-40GB", (8, 0)),),
)  # fmt: skip
HERE = Probe("login", "3.11.7", sys.executable, {"torch": "2.14.1"}, torch=TORCH, cpus=4)
PROFILE = build(
    ClusterProfile,
    {"name": "p", "description": "d", "node": {"gpus": 4, "gpu_model": "A100 SXM 40 GB", "cpus": 32}},
    "test",
)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, on a machine without SLURM."""
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path / "configuration"))
    for name in ("HPC_TUMOR_CLUSTER", "HPC_TUMOR_RUNS", "PYTHONPATH", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.slow
def test_this_machine(capsys: Captured, work: Path) -> None:
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr()
    assert all(len(line) <= 80 or " " not in line.strip() for line in said.out.splitlines())  # a path is not broken
    assert said.out.splitlines()[-1].startswith(("Ready to run", "No errors"))
    assert said.err == ""
    assert list(work.iterdir()) == []


@pytest.mark.slow
def test_json_and_exit_code_of_a_cluster_that_is_not_here(capsys: Captured, work: Path) -> None:
    assert cli.main(["doctor", "--cluster", "orfeo-gpu", "--json"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 4
    sections = {section["section"]: section["findings"] for section in found["sections"]}
    assert list(sections) == ["python", "gpu", "machine", "configuration", "slurm", "storage"]
    assert sections["slurm"][0]["level"] == "error"
    assert all(item["way_out"] for items in sections.values() for item in items if item["level"] != "ok")


@pytest.mark.parametrize(
    "arguments", [["--submit"], ["--submit", "--cluster", "local"], ["--cluster", "orfeo"]], ids=" ".join
)
def test_what_is_refused(capsys: Captured, arguments: list[str]) -> None:
    assert cli.main(["doctor", *arguments]) == 2


@pytest.mark.slow
def test_a_broken_configuration_is_a_finding_not_the_end(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "configuration").mkdir()
    (tmp_path / "configuration" / "config.toml").write_text("[recipe\n")
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "cannot be read as TOML" in said
    assert "Folders" in said


def test_long_lines_are_broken_and_hostile_ones_harmless(capsys: Captured) -> None:
    show_section(Section("x", "X", [error(f"{'word ' * 40}\x1b[2J", f"do {'this ' * 40}")]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    assert lines[1].startswith("  error    word")
    assert lines[2].startswith("           word")


# -- the steps of the command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (None, "not submitted because of the cluster errors above"),
        (ClusterError("Invalid account."), "Invalid account"), (UsageError("no log here."), "no log here"),
        (OSError("no space"), "no space"),
    ],
)  # fmt: skip
def test_why_the_test_job_gives_no_answer(
    work: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception | None, words: str
) -> None:
    clusters = work.parent / "configuration" / "clusters"
    clusters.mkdir(parents=True)
    (clusters / "p.toml").write_text('description = "d"\n[node]\ngpus = 2\ncpus = 24\n')
    monkeypatch.setattr(examine, "probe_here", lambda: HERE)
    monkeypatch.setattr(examine, "try_on_node", MagicMock(side_effect=failure))
    if failure:
        monkeypatch.setattr(examine.slurm, "check_commands", lambda facts: [])
    *_, last = examine.examine(cluster="p", submit=True)
    assert (last.key, [item.text for item in last.findings]) == ("job", [words])


def test_on_a_terminal_the_current_step_is_shown_until_something_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    waiting = Waiting()
    waiting("importing torch", False)
    waiting("waiting for a node", True)
    waiting.pause()
    waiting.pause()
    assert "waiting for a node …" in shown.getvalue()
    assert "\x1b[?25h" in shown.getvalue()  # the cursor is back


def test_in_a_log_each_long_step_is_a_line(capsys: Captured) -> None:
    waiting = Waiting()
    for line, long in (("importing torch", False), ("waiting", True), ("waiting", True)):
        waiting(line, long)
    waiting.pause()
    assert capsys.readouterr().err == "waiting\n"


# -- answers of nodes -------------------------------------------------------------------------------------------------


def outcome(**changes: Any) -> Outcome:
    """Two nodes that answered well."""
    answers = {
        rank: {
            "token": "t", "node": f"gpu00{rank + 1}", "time": time.time(), "requested_cpus": 4, "visible": "0",
            "store": None, "local": {"path": "/tmp", "kind": "xfs", "bytes_left": 10**12}, "probe": HERE.as_dict(),
        }
        for rank in (0, 1)
    }  # fmt: skip
    met = {rank: {"backend": "NCCL and gloo", "seconds": 1.0, "right": True} for rank in (0, 1)}
    whole = Outcome("42", PLAN, "t", Path("/scratch/.doctor-0-1"), answers, met, "COMPLETED", printed="setup done\n")
    return replace(whole, nodes="gpu[001-002]", **changes)


def found(result: Outcome, here: Probe = HERE) -> dict[str, list[Finding]]:
    by_level: dict[str, list[Finding]] = {"ok": [], "warning": [], "error": []}
    for item in judge(result, here, PROFILE, time.time() - 10):
        by_level[item.level].append(item)
        assert item.level == "ok" or item.way_out
    return by_level


def with_answer(rank: int, **changes: Any) -> Outcome:
    good = outcome()
    return replace(good, answers={**good.answers, rank: {**good.answers[rank], **changes}})


def test_nodes_that_are_fit() -> None:
    levels = found(outcome())
    assert not levels["warning"]
    assert not levels["error"]
    assert not any("gpu001" in item.text for item in levels["ok"])  # what both have is said once


@pytest.mark.parametrize(
    ("result", "level", "words"),
    [
        (outcome(waited=True, reason="waiting for jobs of higher priority", answers={}), "warning", "still queued"),
        (outcome(answers={}, meetings={}, printed="", state="FAILED", exit_code="0:53"), "error", "does not see"),
        (outcome(answers={}, printed="setup done\n", state="TIMEOUT"), "error", "did not answer within 5 minutes"),
        (outcome(answers={}, printed="a: b: No such file\n", state="FAILED"), "error", "in its setup lines; last"),
        (outcome(answers={}, printed="sh: module: command not found\n", state="FAILED"), "error", "has no `module`"),
        (outcome(answers={}, printed=f"{sys.executable}: No such file or directory\n"), "error", "no Python at"),
        (outcome(answers={}, printed="setup done\nNo module named 'numpy'\n"), "error", "cannot import numpy"),
        (outcome(printed="bash: conda: command not found\nsetup done\n"), "warning", "a setup line failed: conda"),
        (with_answer(1, token="other"), "error", "does not read the file"),
        (with_answer(1, time=time.time() - 1e6), "warning", "behind"),  # made when tests are collected, long before
        (with_answer(1, time=time.time() + 1e6), "warning", "ahead"),
        (with_answer(1, visible=None, probe=replace(HERE, torch=replace(TORCH, gpus=())).as_dict()), "error",
         "gpu002: SLURM allocated no GPU"),
        (with_answer(0, probe=replace(HERE, cpus=1).as_dict()), "warning", "gpu001: a task may use only 1 CPU"),
        (with_answer(0, store="Permission denied"), "error", "the node cannot read the store"),
        (with_answer(0, probe=replace(HERE, versions={"torch": "2.6.0"}).as_dict()), "warning", "other versions"),
        (with_answer(0, probe=replace(HERE, torch=replace(TORCH, gpus=(Gpu("Tesla V100", (7, 0)),))).as_dict()),
         "error", "Tesla V100 (compute capability 7.0)"),
        (outcome(meetings={0: {"error": "RuntimeError: Unable to find address for: ib7"}}), "error", "ib7"),
        (outcome(meetings={}), "error", "could not communicate"),
        (outcome(meetings={rank: {"seconds": 1.0, "right": False} for rank in (0, 1)}), "error", "a wrong sum"),
        (outcome(answers={0: outcome().answers[0]}), "error", "1 task of 2 did not answer"),
        (with_answer(1, local={"path": "/tmp", "kind": "xfs", "bytes_left": 10**6}), "warning", "local disk /tmp"),
    ],
)  # fmt: skip
def test_nodes_that_are_not(result: Outcome, level: str, words: str) -> None:
    assert any(words in item.text for item in found(result)[level]), found(result)


def test_what_a_node_does_not_tell_is_left_out() -> None:
    """No second task that could be met, no disk of its own, and more CPUs than a task was given."""
    alone = with_answer(0, local={"bytes_left": None}, probe=replace(HERE, cpus=8).as_dict())
    levels = found(replace(alone, plan=replace(PLAN, nodes=1), answers={0: alone.answers[0]}))
    assert not levels["warning"] + levels["error"]
    texts = " ".join(item.text for item in levels["ok"])
    assert "CPU affinity is not enforced: 8 usable" in texts
    assert "communicate" not in texts
    assert "local disk" not in texts


def test_another_gpu_than_the_profile_says() -> None:
    h100 = replace(TORCH, gpus=(Gpu("NVIDIA H100", (9, 0)),), archs=("sm_90",))
    (item,) = found(with_answer(0, probe=replace(HERE, torch=h100).as_dict()))["warning"]
    assert "the profile says A100 SXM 40 GB, but the node has NVIDIA H100" in item.text

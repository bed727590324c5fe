"""The number of a job in what sbatch prints on sites that print more, and what becomes of jobs whose number is lost."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import profile_with, small_experiment
from local_slurm import LOCAL_TEST

from hpc_tumor.cluster.convert.command import conversion_on
from hpc_tumor.cluster.describe.facts import Facts
from hpc_tumor.cluster.describe.profiles import find_profile
from hpc_tumor.cluster.launch import sbatch
from hpc_tumor.cluster.launch.planned import PlannedRun
from hpc_tumor.cluster.launch.sbatch import parse_job_id, submit_script
from hpc_tumor.cluster.launch.submit import submit_all
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.cluster.slurm import read_queue
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.doctor.node_job import plan_of, try_on_node
from hpc_tumor.errors import ClusterError, UsageError

BANNER = "Welcome, 2024!\naccount 123 has 42 hours left; your last job 77 used 3\n"
PROFILE = profile_with()
PLAN = make_plan(PROFILE, 1)
Site = Callable[[str], Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Makes an sbatch that runs these lines, and a scancel that writes down what it is asked for."""
    monkeypatch.setattr("hpc_tumor.cluster.slurm.WATCH_SECONDS", 0.1)
    tools = tmp_path / "bin"
    tools.mkdir()

    def made(lines: str) -> Path:
        cancelled = tmp_path / "cancelled"
        for name, text in (("sbatch", lines), ("scancel", f'echo "$*" >> {cancelled}'), ("squeue", "")):
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
        return cancelled

    return made


@pytest.mark.parametrize(
    ("printed", "number"),
    [
        ("Submitted batch job 42\n", "42"),
        ("Submitted batch job 42 on cluster big\n", "42"),
        (f"{BANNER}Submitted batch job 42\n7 jobs of yours wait\n2025\n", "42"),
        ("42\n", "42"),  # of a wrapper that adds --parsable
        (f"{BANNER}42;big\nGoodbye 9\n", "42"),
        ("2024\n\n 42 \n", "42"),
        (BANNER, None),
        ("", None),
        ("job 42 was accepted\n", None),
    ],
)
def test_the_number_among_what_a_site_prints(printed: str, number: str | None) -> None:
    assert parse_job_id(printed) == number


def test_all_that_is_submitted_finds_its_number(site: Site, tmp_path: Path) -> None:
    """A run, an array of runs, a conversion and the test job, through a site whose banner is no UTF-8."""
    banner = BANNER.replace("\n", "\\n") + "\\351t\\351\\n"
    cancelled = site(f"printf '{banner}'; echo Submitted batch job 4242; echo 5 more; cat > /dev/null")
    for count in (1, 2):
        wanted = [PlannedRun(small_experiment(seed=seed), PLAN) for seed in range(count)]
        submitted = submit_all(wanted, PROFILE, tmp_path / f"runs-{count}")
        assert submitted.error is None
        assert [item.job_id for item in submitted.started] == (["4242"] if count == 1 else ["4242_0", "4242_1"])
    said: list[str] = []
    make_phantom(tmp_path / "raw", "brats", 1, 1, shape=(32, 32, 12))
    convert = conversion_on(str(LOCAL_TEST), 1, said.append)
    with pytest.raises(ClusterError, match="array job 4242 ended without"):  # as squeue knows nothing of it
        prepare_dataset(inspect_source(tmp_path / "raw").reader, tmp_path / "raw", tmp_path / "s.zarr", convert=convert)
    outcome = try_on_node(PROFILE, plan_of(PROFILE, Facts()), tmp_path, None, said.append)
    assert outcome.job_id == "4242"
    assert set(cancelled.read_text().split()) == {"4242"}  # by those that gave up, by its number


@pytest.mark.parametrize(
    ("lines", "words", "cancels"),
    [
        (
            "echo Thanks for all the fish",
            "printed no job id, but: Thanks for all the fish. The job",
            "--name=unique",
        ),
        ("true", "printed no job id, but: nothing. The job unique was cancelled", "--name=unique"),
        ("echo Submitted batch job 42; echo no log >&2; exit 3", "refused the job for two-gpu-nodes: no log", "42"),
        ("echo 12345; echo no account >&2; exit 1", "refused the job for two-gpu-nodes: no account", None),
        ("sleep 20", "sbatch did not answer within 0 seconds", "--name=unique"),
        ("echo Invalid account >&2; exit 1", "Invalid account: choose one of your accounts", None),
    ],
)
def test_a_job_whose_number_is_not_known_is_cancelled(
    site: Site, monkeypatch: pytest.MonkeyPatch, lines: str, words: str, cancels: str | None
) -> None:
    cancelled = site(lines)
    if "sleep" in lines:
        monkeypatch.setattr(sbatch, "SECONDS", 0.1)
    with pytest.raises(ClusterError, match=words) as caught:
        submit_script("#!/bin/sh", "unique", PROFILE, PLAN)
    assert "\n" not in str(caught.value)
    assert (cancelled.read_text().strip() if cancelled.exists() else None) == cancels


def test_a_job_that_cannot_be_cancelled_is_named(site: Site) -> None:
    site("true").parent.joinpath("bin", "scancel").write_text("#!/bin/sh\necho scancel: error: down >&2; exit 1\n")
    with pytest.raises(ClusterError, match=r"Cancel the job unique, if squeue shows it: .*\(down\)"):
        submit_script("#!/bin/sh", "unique", PROFILE, PLAN)


def test_paths_that_slurm_would_misread_are_refused_before_anything_is_submitted(site: Site, tmp_path: Path) -> None:
    site("echo Submitted batch job 1; touch $0.submitted")
    for name in ("100%j", "back\\slash", "two\nlines"):
        folder = tmp_path / name
        make_phantom(folder / "raw", "brats", 1, 1, shape=(32, 32, 12))
        convert = conversion_on(str(LOCAL_TEST), 1, print)
        with pytest.raises(UsageError, match="cannot contain a backslash"):
            prepare_dataset(inspect_source(folder / "raw").reader, folder / "raw", folder / "s.zarr", convert=convert)
        assert not (folder / "s.zarr").exists()
        with pytest.raises(UsageError, match="cannot contain a backslash"):
            try_on_node(PROFILE, plan_of(PROFILE, Facts()), folder, None, print)
    assert not (tmp_path / "bin" / "sbatch.submitted").exists()


@pytest.mark.slow
def test_a_banner_around_the_real_sbatch(
    slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hides the number: nothing stays in the queue; one that does not: the number is that of the job."""
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    profile, wrapper = find_profile(LOCAL_TEST), tmp_path / "sbatch"
    plan = make_plan(profile, 1, walltime="5m", memory_gb=1)
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    name = f"hpc-tumor-test-{time.time_ns()}"
    options = (f"--job-name={name}", "--hold", "--account=hpc", "--output=/dev/null")

    def queued() -> str:
        ask = ["squeue", "--noheader", f"--name={name}", "--format=%i"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout

    for more in ("", "--parsable"):
        wrapper.write_text(f"#!/bin/sh\necho '{BANNER}'\n{real} {more} \"$@\"\necho you have 3 hours left\n")
        wrapper.chmod(0o755)
        job_id = submit_script("#!/bin/sh\ntrue\n", name, profile, plan, *options)
        assert queued().split() == [job_id]
        subprocess.run(["scancel", job_id], check=True)
        assert (read_queue([job_id]) or {})[job_id].state == "CANCELLED"
    wrapper.write_text(f"#!/bin/sh\n{real} \"$@\" > /dev/null\necho '{BANNER}'\n")
    with pytest.raises(ClusterError, match="printed no job id, but: Welcome, 2024!"):
        submit_script("#!/bin/sh\ntrue\n", name, profile, plan, *options)
    assert queued() == ""

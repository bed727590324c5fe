from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launching import events, profile_with, small_experiment, submit_experiment

import hpc_tumor
from hpc_tumor.cli.planning import parse_sbatch_options, plan_runs
from hpc_tumor.cluster.launch.script import setup_lines
from hpc_tumor.cluster.launch.snapshot import CODE_LOST, snapshot_path
from hpc_tumor.cluster.launch.submit import array_script, job_script, resume_run
from hpc_tumor.cluster.observe.causes import recognise
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.errors import ClusterError, UsageError

ACCEPTS = '#!/bin/sh\ncp "$1" "$0.script"; env > "$0.env"; echo "Submitted batch job 42"\n'
REFUSES = (
    "#!/bin/sh\n"
    "echo 'sbatch: error: Batch job submission failed: Invalid account or account/partition combination' >&2\n"
    "exit 1\n"
)


def made_up_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    sbatch = folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    for path, script in (
        (sbatch, text),
        (sbatch.with_name("squeue"), "#!/bin/sh\n"),
        (sbatch.with_name("sacct"), "#!/bin/sh\n"),
    ):
        path.write_text(script)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    return sbatch


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {line.partition("=")[0]: "".join(shlex.split(line.partition("=")[2])) for line in lines}


def test_script_asks_for_the_plan(tmp_path: Path) -> None:
    profile = profile_with(slurm={"account": "physics", "gpu_type": "V100", "reservation": "course"})
    script = job_script(small_experiment(gpus=4), profile, make_plan(profile, 4), tmp_path)
    asked = directives(script)
    assert asked["nodes"] == "2"
    assert asked["ntasks-per-node"] == "2"
    assert asked["gres"] == "gpu:V100:2"
    assert asked["cpus-per-task"] == "12"
    assert asked["mem"] == f"{234 * 1024}M"
    assert asked["time"] == "120"
    assert asked["signal"] == "USR2@360"
    assert asked["account"] == "physics"
    assert asked["reservation"] == "course"
    assert asked["open-mode"] == "append"
    assert "requeue" in asked
    assert "wckey" not in asked
    srun = next(line for line in script.splitlines() if line.startswith("srun "))
    assert {"--cpus-per-task=12", "--kill-on-bad-exit=1", "--wait=60", sys.executable} <= set(shlex.split(srun))


def test_other_ways_to_ask_for_gpus(tmp_path: Path) -> None:
    for request, key, value in (("gpus-per-node", "gpus-per-node", "2"), ("none", None, None)):
        profile = profile_with(slurm={"gpu_request": request, "requeue": False})
        asked = directives(job_script(small_experiment(gpus=2), profile, make_plan(profile, 2), tmp_path))
        assert {name: asked[name] for name in ("gres", "gpus-per-node") if name in asked} == (
            {key: value} if key else {}
        )
        assert "no-requeue" in asked
        assert "requeue" not in asked


def test_extra_options_replace_ours_once(tmp_path: Path) -> None:
    profile = profile_with(
        slurm={"extra": {"comment": "ours", "mail_type": "FAIL", "exclusive": True, "spread-job": False}}
    )
    plan = make_plan(profile, 1, options={"comment": "mine"})
    script = job_script(small_experiment(), profile, plan, tmp_path)
    assert script.count("#SBATCH --comment=") == 1
    assert directives(script)["comment"] == "mine"
    assert directives(script)["mail-type"] == "FAIL"
    assert "#SBATCH --exclusive\n" in script
    assert "spread-job" not in script


def test_variables_and_modules_are_quoted(tmp_path: Path) -> None:
    nasty = 'it\'s $(touch OOPS); "x"\nsecond línea'
    profile = profile_with(environment={"modules": ["cuda/12.4; touch OOPS"], "variables": {"NOTE": nasty}})
    setup = "\n".join(setup_lines(profile)).replace("module load", "echo module load")
    done = subprocess.run(
        ["bash", "-c", f'{setup}\nprintf %s "$NOTE"'], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith(nasty)
    assert not (tmp_path / "OOPS").exists()


def test_dry_run_writes_nothing_and_needs_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    profile = profile_with()
    script = job_script(small_experiment(), profile, make_plan(profile, 1), tmp_path / "runs")
    assert script.startswith("#!/bin/bash")
    assert list(tmp_path.iterdir()) == []


def test_what_is_submitted_is_what_the_dry_run_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = made_up_sbatch(tmp_path, monkeypatch, ACCEPTS)
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # as if submitted from inside a job
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x1")
    monkeypatch.setenv("SBATCH_PARTITION", "of-the-other-job")
    monkeypatch.setenv("SLURM_CONF", "/etc/there/slurm.conf")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.chdir(tmp_path)
    profile, experiment = profile_with(), small_experiment(gpus=4)
    plan = make_plan(profile, 4)
    submission = submit_experiment(experiment, profile, plan, Path("my runs"))
    script = Path(f"{sbatch}.script").read_text()
    assert script == job_script(experiment, profile, plan, tmp_path / "my runs", submission.run.name)
    given = Path(f"{sbatch}.env").read_text().splitlines()
    assert "SLURM_CONF=/etc/there/slurm.conf" in given
    assert not any(line.startswith(("SLURM_JOB_ID", "SLURM_CPU_BIND", "SBATCH_", "RANK=")) for line in given)
    assert os.environ["RANK"] == "3"

    run = submission.run
    assert submission.job_id == "42"
    assert events(run) == ["submitted"]
    assert run.experiment().data.store == tmp_path / "brats.zarr"
    job = json.loads(run.job.read_text())
    assert (job["cluster"], job["job_id"], job["start"], job["plan"]["nodes"]) == (profile.name, "42", 0, 2)
    provenance = json.loads(run.provenance.read_text())
    assert provenance["script"] == script
    assert provenance["versions"]["torch"]
    assert directives(script)["job-name"] == run.name


def test_defaults_of_the_user_stay_where_the_script_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch lets its variables go before what a script says."""
    sbatch = made_up_sbatch(tmp_path, monkeypatch, ACCEPTS)
    for name in ("ACCOUNT", "PARTITION", "JOB_NAME", "TIMELIMIT", "SIGNAL", "NO_REQUEUE", "QOS", "EXCLUSIVE"):
        monkeypatch.setenv(f"SBATCH_{name}", "mine")
    profile = profile_with(slurm={"account": "physics"})
    submit_experiment(small_experiment(), profile, make_plan(profile, 1), tmp_path / "runs")
    given = {line.partition("=")[0] for line in Path(f"{sbatch}.env").read_text().splitlines()}
    assert {name for name in given if name.startswith("SBATCH_")} == {"SBATCH_QOS", "SBATCH_EXCLUSIVE"}
    assert os.environ["SBATCH_ACCOUNT"] == "mine"


@pytest.mark.parametrize("option", ["job-name", "time", "nodes", "export", "cpus_per_task", "signal"])
def test_options_on_which_the_launching_stands_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match="set by hpc-tumor"):
        profile_with(slurm={"extra": {option: "x"}})
    with pytest.raises(UsageError, match="set by hpc-tumor"):
        parse_sbatch_options([f"--{option}=x"])


def test_no_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    profile = profile_with()
    with pytest.raises(ClusterError, match="no sbatch on this machine") as caught:
        submit_experiment(small_experiment(), profile, make_plan(profile, 1), tmp_path / "runs")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "runs").exists()


def test_refusal_is_told_in_slurms_words_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made_up_sbatch(tmp_path, monkeypatch, REFUSES)
    profile = profile_with()
    with pytest.raises(
        ClusterError, match=r"refused .*two-gpu-nodes: .*Invalid account or account/partition"
    ) as caught:
        submit_experiment(small_experiment(), profile, make_plan(profile, 1), tmp_path / "runs")
    assert "sbatch: error" not in str(caught.value)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "runs").exists()


def test_path_that_slurm_would_misread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_sbatch(tmp_path, monkeypatch, ACCEPTS)
    profile = profile_with()
    for name in ("100%j", "back\\slash", "two\nlines"):
        with pytest.raises(UsageError, match="--runs"):
            submit_experiment(small_experiment(), profile, make_plan(profile, 1), tmp_path / name)


def test_a_percent_in_a_path_is_escaped(tmp_path: Path) -> None:
    """Both for sbatch and for srun; the last --output of srun counts."""
    profile, runs = profile_with(), tmp_path / "50% of it"
    folder = f"{tmp_path}/50%% of it"
    for script, number in (
        (job_script(small_experiment(), profile, make_plan(profile, 1), runs), "%j"),
        (array_script(3, profile, make_plan(profile, 1), runs), "%A_%a"),
    ):
        srun = shlex.split(next(line for line in script.splitlines() if line.startswith("srun ")))
        outputs = directives(script)["output"], [word for word in srun if word.startswith("--output=")][-1]
        assert all(folder.replace(" ", "") in text.replace(" ", "") for text in outputs)
        assert outputs[0].endswith(f"/{number}_0_log.out")
        assert outputs[1].endswith(f"/{number}_%t_log.out")
        assert f"-m submitit.core._submit '{tmp_path}/50% of it/" in script


def test_resume_goes_into_the_same_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = made_up_sbatch(tmp_path, monkeypatch, ACCEPTS)
    profile = profile_with()
    run = submit_experiment(small_experiment(), profile, make_plan(profile, 1), tmp_path / "runs").run
    (run.logs / "rank-0.0.out").write_text("first\n")
    (run.logs / "rank-0.1.out").write_text("requeued once\n")
    again = resume_run(run)
    job = json.loads(run.job.read_text())
    assert again.run.path == run.path
    assert (job["start"], job["earlier"]) == (2, ["42"])
    assert events(run) == ["submitted", "submitted"]

    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    sbatch.write_text(REFUSES)
    with pytest.raises(ClusterError):
        resume_run(run)
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before

    run.result.write_text("{}")
    with pytest.raises(UsageError, match="is finished"):
        resume_run(run)


def test_a_job_imports_the_snapshot_and_then_what_the_user_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = str(Path(hpc_tumor.__file__).resolve().parent.parent)
    monkeypatch.setenv("PYTHONPATH", f"{home}:/elsewhere")
    script = job_script(small_experiment(), profile_with(), make_plan(profile_with(), 1), tmp_path)
    assert f'export PYTHONPATH={snapshot_path(tmp_path)}:/elsewhere"${{PYTHONPATH:+:$PYTHONPATH}}"\n' in script

    for theirs in ("/theirs", "::/theirs:::"):  # an empty entry is the current folder
        profile = profile_with(environment={"variables": {"PYTHONPATH": theirs}})
        setup = "\n".join(setup_lines(profile, snapshot_path(tmp_path)))
        command = ["bash", "-c", f"{setup}\nprintf %s $PYTHONPATH"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{snapshot_path(tmp_path)}:/elsewhere:/theirs"


DAMAGED = {
    "gone": (lambda code: code.unlink(), "the code of this run is gone: "),
    "cut": (lambda code: os.truncate(code, 1000), "the code of this run is damaged: "),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("when", ["queued", "begun"])
def test_a_job_whose_code_is_lost_runs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, when: str
) -> None:
    """Python would go on with any hpc_tumor that is installed: neither the batch script nor a rank may."""
    sbatch = made_up_sbatch(tmp_path, monkeypatch, ACCEPTS)
    profile = profile_with()
    run = submit_experiment(small_experiment(), profile, make_plan(profile, 1), tmp_path / "runs").run
    code, (lose, words) = snapshot_path(tmp_path / "runs"), DAMAGED[damage]
    kept = code.read_bytes()
    begin = 'while [ "$1" != "$PYTHON" ]; do shift; done; mv "$CODE.new" "$CODE" 2> /dev/null || rm "$CODE"; "$@"'
    (sbatch.parent / "srun").write_text(f"#!/bin/sh\necho the ranks start\n{begin}\n")
    (sbatch.parent / "srun").chmod(0o755)
    if when == "queued":
        lose(code)
    elif damage == "cut":
        code.with_name(f"{code.name}.new").write_bytes(kept[:1000])
    variables = {**os.environ, "SLURM_JOB_ID": "42", "PYTHON": sys.executable, "CODE": str(code)}
    done = subprocess.run(
        ["bash", f"{sbatch}.script"], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == CODE_LOST
    assert words in said
    assert ("the ranks start" in said) is (when == "begun")
    assert events(run) == ["submitted"]
    assert "hpc-tumor resume" in str(recognise(said))


def test_resume_on_another_number_of_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = made_up_sbatch(tmp_path, monkeypatch, ACCEPTS)
    profile = profile_with()
    plan = make_plan(profile, 1, walltime="90m", account="physics")
    run = submit_experiment(small_experiment(gpus=1), profile, plan, tmp_path / "runs").run
    resume_run(run, 4)
    asked = directives(sbatch.with_suffix(".script").read_text())
    assert (asked["nodes"], asked["ntasks-per-node"]) == ("2", "2")
    assert (asked["time"], asked["account"]) == ("90", "physics")
    assert run.experiment().hardware.gpus == 4
    assert run.experiment().recipe.batch_size == 32
    before = run.config.read_bytes(), run.job.read_bytes()
    with pytest.raises(UsageError, match="--gpus 64 is not possible"):
        resume_run(run, 64)
    assert (run.config.read_bytes(), run.job.read_bytes()) == before


def test_options_of_sbatch_with_and_without_a_value() -> None:
    assert parse_sbatch_options(["mail-type=END", "--exclusive"]) == {"mail-type": "END", "exclusive": True}


def test_a_chain_is_no_array(tmp_path: Path) -> None:
    profile = profile_with(slurm={"requeue": False})
    with pytest.raises(UsageError, match="--at-once: two-gpu-nodes does not requeue jobs, so each run is a chain"):
        plan_runs([small_experiment()], profile, at_once=2, walltime="6h")

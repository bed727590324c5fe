"""Command: `python -m gpu_report`, from tools/, or tools/gpu_report.sh."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from gpu_report.conductor import Conductor
from gpu_report.job import Job
from gpu_report.plan import Part, first_parts, other_parts
from gpu_report.report import Report, checks, missing
from gpu_report.tables import render, summary
from hpc_tumor.models import MODELS

RESERVE = 6.0  # seconds to end a child that hangs and to write the report
_CHILDREN_WITHOUT = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS",
)  # fmt: skip
_DESCRIPTION = """Check and measure the GPU of this machine on synthetic data; write report.md, report.json and log.txt.

The report is valid whenever it ends. See docs/how-to/gpu-report.md.
"""
_signals: list[str] = []


def main() -> int:
    """Run the report; return 0 if it is complete and every check passed, 1 if not, 2 if it was cut short."""
    given = _options()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, frame: _signals.append(signal.Signals(number).name))
    deadline = time.monotonic() + 60 * given.minutes - min(RESERVE, 6 * given.minutes)
    given.output.mkdir(parents=True, exist_ok=True)
    log = given.output / "log.txt"
    log.unlink(missing_ok=True)
    about = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"), "minutes": given.minutes, "device": given.device,
        "quick": given.quick, "command": " ".join(sys.argv[1:]),
    }  # fmt: skip
    report = Report(given.output, about, render)
    conductor = Conductor(report, deadline, lambda: _signals[0] if _signals else None, log)
    folder = tempfile.mkdtemp(prefix="gpu-report-")
    try:
        _prepare_environment(folder)
        _run(conductor, given, Job(given.device, given.quick, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    values = report.values
    print("\n".join(["", *summary(values), f"{report.markdown}  {report.json}"]), file=sys.stderr)
    if values["state"] == "cut short":
        return 2
    failed = any(check["passed"] is False for _, _, check in checks(values))
    return 1 if failed or values["state"] == "incomplete" else 0


def _run(conductor: Conductor, given: argparse.Namespace, job: Job) -> None:
    """Run all parts that were asked for, and end the report."""
    report, parts = conductor.report, first_parts()
    report.plan(parts)
    # The plan depends on the device: these stand in the report in case it is cut short before the device is known.
    later = other_parts(given.networks, ["float32"], given.device, 1, given.quick)
    report.plan(_chosen(later, given.parts))
    conductor.run(parts[0], job)
    if report.is_done("machine"):
        machine = report.items("machine")["device"]
        job = Job(machine["device"], job.quick, job.folder, tuple(machine["formats"]))
        facts = machine["formats"], machine["device"], machine["gpus"]
        later = other_parts(given.networks, *facts, given.quick, machine["graphs"])
        report.plan(_chosen(later, given.parts))
    for part in [parts[1], *_chosen(later, given.parts)]:
        print(f"[{report.values['seconds']:5.0f} s] {part.title}", file=sys.stderr, flush=True)
        conductor.run(part, job)
    left = [why for _, _, why in missing(report.values) if why == "not run" or why.startswith("cut short")]
    report.end(conductor.reason_to_stop() if left else None)


def _chosen(parts: list[Part], names: list[str] | None) -> list[Part]:
    return [part for part in parts if part.items and (names is None or part.name in names)]


def _prepare_environment(folder: str) -> None:
    """Keep ranks of a job, the user's settings and earlier caches out of the children."""
    for name in (*_CHILDREN_WITHOUT, *(name for name in os.environ if name.startswith("HPC_TUMOR_"))):
        os.environ.pop(name, None)
    os.environ["HPC_TUMOR_CONFIG_DIR"] = f"{folder}/no-configuration"
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"
    os.environ["TRITON_CACHE_DIR"] = f"{folder}/triton"
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silences the profiler's reports of its stages


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="tools/gpu_report.sh", description=_DESCRIPTION,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    options.add_argument("--minutes", type=float, default=8.0, help="end after so many minutes; default: 8")
    options.add_argument("--output", type=Path, default=Path("gpu-report"), metavar="DIR", help="default: gpu-report")
    options.add_argument("--device", default="gpu", choices=("gpu", "cpu"), help="gpu (the default), or cpu")
    options.add_argument("--quick", action="store_true", help="try the script: tiny networks, images and batches")
    options.add_argument("--networks", default="all", metavar="NAMES", help="with commas between them; default: all")
    options.add_argument("--parts", metavar="NAMES", help="only these, besides machine and data; default: all")
    given = options.parse_args()
    parts = [part.name for part in other_parts(list(MODELS), ["float32"], "gpu", 1, False)]
    given.networks = _names(options, "--networks", given.networks, list(MODELS))
    given.parts = None if given.parts is None else _names(options, "--parts", given.parts, parts)
    if given.minutes <= 0:
        options.error(f"--minutes {given.minutes:g} must be above 0.")
    if platform.system() == "Windows":
        options.error("runs on Linux: use WSL.")
    return given


def _names(options: argparse.ArgumentParser, flag: str, text: str, known: list[str]) -> list[str]:
    names = known if text == "all" else [name for name in text.split(",") if name]
    if wrong := [name for name in names if name not in known]:
        options.error(f"{flag} {wrong[0]!r} is not known: choose among {', '.join(known)}.")
    return names


if __name__ == "__main__":
    sys.exit(main())

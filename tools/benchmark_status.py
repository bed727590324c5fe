#!/usr/bin/env python3
"""Measure how long `hpc-tumor status` takes for many runs, against one squeue and one sacct per run.

    python tools/benchmark_status.py --runs 1000 --json status.json

Makes run directories as after some epochs, half of them in the queue as arrays, and replaces SLURM's commands with
scripts that answer at once: the time measured is that of reading runs, calling commands and drawing the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark_machine import describe_machine

EPOCHS, TASKS = 50, 100


def make_runs(folder: Path, count: int) -> None:
    """Make run directories: in turn running, waiting, finished and failed."""
    queue = []
    for number in range(count):
        run = folder / f"20260101-{number // 3600:02}{number // 60 % 60:02}{number % 60:02}-unet-{number:06x}"
        (run / "logs" / "submission").mkdir(parents=True)
        (run / "checkpoints").mkdir()
        job_id, kind = f"{1000 + number // TASKS}_{number % TASKS}", number % 4
        plan = {"cluster": "c", "nodes": 1, "tasks_per_node": 2, "cpus_per_task": 1, "memory_gb": 4.0, "walltime": 120,
                "gpus_per_node": 2}  # fmt: skip
        job = {"cluster": "c", "job_id": job_id, "job_name": "many", "plan": plan}
        (run / "config.json").write_text("{}")
        (run / "job.json").write_text(json.dumps(job))
        events = [{"time": 1.0, "event": "submitted"}, {"time": 2.0, "event": "started"}]
        events += [{"time": 3.0, "event": "checkpoint", "epoch": epoch, "step": 0} for epoch in range(EPOCHS)]
        (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
        status = {"state": "training", "epoch": 3, "epochs": EPOCHS, "step": 1, "loss": 0.5, "eta_s": 9e3}
        (run / "status.json").write_text(json.dumps({"time": time.time(), **status}))
        (run / "logs" / "rank-0.0.out").write_text("x\n")
        (run / "checkpoints" / "last.pt").write_text("x")
        if kind == 2:
            (run / "result.json").write_text("{}")
        if kind == 3:
            (run / "logs" / "failure.0.json").write_text(json.dumps({"rank": 0, "reason": f"reason {number}"}))
        if kind < 2:
            queue.append(f"{job_id}|many|{('RUNNING', 'PENDING')[kind]}|10:00|1|N/A|gpu001|None")
    tools = folder.parent / "bin"
    tools.mkdir()
    (tools / "queue").write_text("\n".join(queue) + "\n")
    for name, text in (("squeue", f"cat {tools}/queue"), ("sacct", "true")):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)


def seconds_of(*command: str, environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="run directories")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions; the median is shown")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "runs"
        make_runs(folder, options.runs)
        environment = {**os.environ, "PATH": f"{name}/bin:{os.environ['PATH']}", "COLUMNS": "160"}
        ours = sorted(
            seconds_of(sys.executable, "-m", "hpc_tumor", "status", "--runs", str(folder), environment=environment)
            for _ in range(options.repeats)
        )[options.repeats // 2]
        sample = min(options.runs, 50)
        each = sum(
            seconds_of(tool, f"--jobs={number}", environment=environment)
            for number in range(sample)
            for tool in ("squeue", "sacct")
        ) * options.runs / sample  # fmt: skip
    figures = {"machine": describe_machine(), "runs": options.runs, "seconds": ours, "calls_per_run_s": each}
    print(f"{figures['machine']}\n{options.runs} runs: {ours:.2f} s; the calls alone, one by one: {each:.1f} s,"
          f" {each / ours:.1f} × as long")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

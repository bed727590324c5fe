#!/usr/bin/env python3
"""Measure the seven networks on a GPU.

    python tools/benchmark_gpu.py [--networks unet,vit] [--json FILE]     everything; about ten minutes
    python tools/benchmark_gpu.py --device cpu --quick                    a trial of the script on a CPU

For every network, in float32 and in bfloat16 (float16 where the GPU has no bfloat16), compiled or not: images per
second of training (`train_step` on a batch in memory), the share of the fastest product of large matrices in the same
format, and peak memory. Each combination runs in its own process, so one that runs out of memory is reported in its
row. Then a short run of `train` on synthetic data, for the share of time that training waits for data, and an estimate
of the whole published study on this GPU: all networks, their epochs, 28,413 slices for each U-Net and 5,712 images for
each classifier, training only, in the fastest variant measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmark_machine import describe_machine
from benchmark_networks import (
    CPU_BATCH,
    SIDES,
    experiment_of,
    flops_of_sample,
    names_of,
    own_training,
    product_rate,
    seconds_of,
)
from benchmark_workers import Answer, Job, Worker, WorkerError, cores, make_stores, network_options, serve

from hpc_tumor.config import Experiment
from hpc_tumor.models import MODELS
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.loop import train
from hpc_tumor.training.recipe import choose_precision
from hpc_tumor.training.watch.memory import peak_memory_gb

PUBLISHED = {"segmentation": 28_413, "classification": 5_712}  # samples of an epoch
WARM = 5  # steps before the first that counts; torch.compile and cuDNN settle in them
STEPS = 16  # of an epoch of the real run
QUICK: dict[str, Any] = {"batch": 4, "filters": 4, "seconds": 0.0, "steps": 2, "rounds": 1}
Row = dict[str, Any]


def main() -> None:
    given = _options()
    torch.set_num_threads(cores())
    if given.worker:
        serve(lambda: {"rate": _rate_worker, "wait": _wait_worker}[given.worker["kind"]](given.worker))
        return
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} finds no GPU: run this on a machine with one (on a cluster: in a job)."
            " --device cpu --quick tries this script on a CPU."
        )
    about = [describe_machine(), _describe_gpu(device)]
    print("\n".join(about))
    names = names_of(given.networks)
    with tempfile.TemporaryDirectory(prefix="benchmark-gpu-") as folder:
        stores = make_stores(
            Path(folder), argparse.Namespace(data=None, images=None), {MODELS[name].task for name in names}
        )
        jobs = {name: _job(name, stores, folder, given) for name in names}
        rows = measure_rates(jobs, formats_of(device), given)
        waiting = measure_waiting(jobs)
    study = project(names, rows)
    if given.json:
        found = {"machine": about, "rows": rows, "waiting": waiting, "study_minutes": study}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="rounds of each")
    options.add_argument("--seconds", type=float, default=1.0, help="minimum seconds of steps per round")
    options.add_argument("--batch", type=int, help="batch size; default: the published 64 images and 32 slices")
    options.add_argument("--no-compile", action="store_true", help="without torch.compile")
    options.add_argument("--device", default="cuda", help="cuda, or cpu")
    options.add_argument("--quick", action="store_true", help="a trial: tiny batches and networks, one step of each")
    options.add_argument("--json", type=Path, metavar="FILE", help="file to write all figures to")
    network_options(options)
    given = options.parse_args()
    given.steps = STEPS
    if given.quick:
        vars(given).update(QUICK)
    return given


def _describe_gpu(device: torch.device) -> str:
    if device.type == "cpu":
        return "on the CPU: a trial, not a measurement of a GPU"
    about = torch.cuda.get_device_properties(device)
    runtime = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, capability {about.major}.{about.minor}, {runtime}"


def formats_of(device: torch.device) -> list[str]:
    """Return float32 and the fastest number format of the device."""
    return list(dict.fromkeys(["float32", choose_precision("auto", device).name]))


def _job(name: str, stores: dict[str, str], folder: str, given: argparse.Namespace) -> Job:
    task = MODELS[name].task
    batch = given.batch or (CPU_BATCH[task] if given.device == "cpu" else None)
    return {
        "network": name, "store": stores[task], "runs": f"{folder}/runs", "device": given.device, "batch": batch,
        "filters": given.filters if task == "segmentation" else None, "seconds": given.seconds, "quick": given.quick,
        "steps": given.steps, "rounds": given.rounds,
    }  # fmt: skip


def measure_rates(jobs: dict[str, Job], formats: list[str], given: argparse.Namespace) -> list[Row]:
    """Print and return a row for each network and format, compiled or not."""
    print(f"\n{'network':<16}{'format':>10}{'compiled':>10}{'batch':>7}{'images/s':>10}{'TFLOP/s':>9}{'of peak':>9}"
          f"{'memory':>10}")  # fmt: skip
    rows: list[Row] = []
    for name, job in jobs.items():
        for kind in formats:
            # A trial compiles the first network alone: the others would take a minute each, and show nothing new.
            ways = [False] if given.no_compile or (given.quick and name != next(iter(jobs))) else [False, True]
            for compiled in ways:
                row = {"network": name, "format": kind, "compiled": compiled, **_ask({**job, "kind": "rate",
                       "format": kind, "compiled": compiled})}  # fmt: skip
                rows.append(row)
                _print_rate(row)
    return rows


def _ask(job: Job) -> Row:
    """Return the worker's answer, or the reason for its failure."""
    try:
        with Worker(job) as worker:
            answer: Row = worker.ask()
            return answer
    except WorkerError as error:
        text = str(error)
        lines = [line for line in text.splitlines() if line.strip()]
        memory = "out of memory" in text.lower() or "ended with code -9" in text
        return {"error": "out of memory" if memory else lines[-1]}


def _print_rate(row: Row) -> None:
    start = f"{row['network']:<16}{row['format']:>10}{'yes' if row['compiled'] else 'no':>10}"
    if "error" in row:
        print(f"{start}   {row['error']}", flush=True)
        return
    print(f"{start}{row['batch']:>7}{row['rate']:>10,.0f}{row['flops'] / 1e12:>9.2f}{row['flops'] / row['peak']:>9.0%}"
          f"{row['memory_gb']:>7.2f} GB", flush=True)  # fmt: skip


def measure_waiting(jobs: dict[str, Job]) -> dict[str, Row]:
    """Print and return the metrics of a run's second epoch, which reads all samples from the store again."""
    print(f"\n{'a real run':<16}{'steps':>7}{'images/s':>10}{'waiting for data':>18}")
    found: dict[str, Row] = {}
    for name, job in jobs.items():
        row = found[name] = _ask({**job, "kind": "wait", "format": "auto", "compiled": False})
        if "error" in row:
            print(f"{name:<16}   {row['error']}", flush=True)
        else:
            print(f"{name:<16}{row['steps']:>7}{row['rate']:>10,.0f}{row['waiting']:>18.2%}", flush=True)
    return found


def project(names: list[str], rows: list[Row]) -> dict[str, float]:
    """Print and return the minutes of training of each published recipe, and their sum."""
    print("\nthe published study on this device, training alone, each network in its fastest way")
    minutes: dict[str, float] = {}
    for name in names:
        fastest = max((row for row in rows if row["network"] == name and "rate" in row), key=_rate, default=None)
        if fastest is None:
            print(f"{name:<16}   cannot be trained here with these settings")
            continue
        epochs, samples = experiment_of(name, Path("store")).recipe.epochs, PUBLISHED[MODELS[name].task]
        minutes[name] = epochs * samples / fastest["rate"] / 60
        way = f"{fastest['format']}{', compiled' if fastest['compiled'] else ''}"
        print(f"{name:<16}{epochs:>4} epochs × {samples:>6,} at {fastest['rate']:>8,.0f}/s: {minutes[name]:>9,.1f} min"
              f"   ({way})")  # fmt: skip
    minutes["all"] = sum(minutes.values())
    print(f"{'all of these':<16}{minutes['all']:>48,.1f} min")
    return minutes


def _rate(row: Row) -> float:
    rate: float = row["rate"]
    return rate


def _experiment(job: Job, **settings: Any) -> Experiment:
    return experiment_of(
        job["network"], Path(job["store"]), model={"filters": job["filters"]},
        hardware={"precision": job["format"], "compile": "on" if job["compiled"] else "off"},
        recipe={**({"batch_size": job["batch"]} if job["batch"] else {}), **settings.pop("recipe", {})}, **settings,
    )  # fmt: skip


def _rate_worker(job: Job) -> Answer:
    """Measure images per second, FLOP/s, the peak FLOP/s of the device, and memory."""
    experiment, device = _experiment(job), torch.device(job["device"])
    training = own_training(experiment, Path(job["runs"]), Distributed(device=device))
    for _ in range(1 if job["quick"] else WARM):
        training.step()

    def answer(_: str) -> Row:
        seconds = statistics.median(seconds_of(training.step, device, job["seconds"]) for _ in range(job["rounds"]))
        memory = peak_memory_gb(device)  # before the large matrices are allocated
        batch = len(training.batch.images)
        rate = batch / seconds
        peak = product_rate(getattr(torch, job["format"]), device, sides=SIDES[:1] if job["quick"] else SIDES)
        flops = rate * flops_of_sample(experiment)
        return {"batch": batch, "rate": rate, "flops": flops, "peak": peak, "memory_gb": memory}

    return answer


def _wait_worker(job: Job) -> Answer:
    """Return the metrics that `train` writes of the second of two short epochs."""
    experiment = _experiment(job, limit_batches=job["steps"], recipe={"epochs": 2})

    def answer(_: str) -> Row:
        run = RunDir.create(Path(job["runs"]), experiment)
        train(experiment, run, Distributed(device=torch.device(job["device"])))
        line = [line for line in run.read_metrics() if line["part"] == "train"][-1]
        steps = round(line["rate"] * line["seconds"] / experiment.recipe.batch_size)
        return {"steps": steps, "rate": line["rate"], "waiting": line["data_wait"]}

    return answer


if __name__ == "__main__":
    main()

"""Training without torch, for tests of launching: Python imports this first in every rank.

The variable STAND_IN selects what the ranks do; a word after a colon selects one rank. Several tasks, separated by
commas, are those of runs with the seeds 0, 1, 2 ….
"""

import os
import signal
import sys
import time
import types
from typing import Any


def init_distributed(*_arguments: object) -> Any:
    rank = int(os.environ.get("RANK") or os.environ["SLURM_PROCID"])
    world_size = int(os.environ.get("WORLD_SIZE") or os.environ["SLURM_NTASKS"])
    return types.SimpleNamespace(
        rank=rank, local_rank=rank, world_size=world_size, device="cpu", shutdown=lambda: None, any=None
    )


def train(experiment: Any, run: Any, distributed: Any, stop: Any, **_more: Any) -> str:
    tasks = os.environ["STAND_IN"].split(",")
    task, _, about = tasks[experiment.seed % len(tasks)].partition(":")
    mine = distributed.rank == int(about or 0)
    if distributed.rank == 0:
        run.add_event("started")
        run.write_status(
            state="training", epoch=1, epochs=3, step=2, steps=9, loss=0.5, best=None, rate=8.0, restarts=0
        )
    if task == "refuse" and mine:
        from hpc_tumor.errors import DataError

        raise DataError("the store is of a newer schema.")
    if task == "crash" and mine:
        raise ValueError("a defect\nin two lines")
    if task == "die" and mine:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "finish":
        if distributed.rank == 0:
            from hpc_tumor.system import atomic

            atomic.write_json(run.result, {"run": run.name, "gpus": distributed.world_size})
            run.add_event("finished")
        return "finished"
    while task == "deaf" or stop() is None:
        time.sleep(0.02)
    if distributed.rank == 0:
        run.write_status(state="stopped", epoch=1, epochs=3)
    return "stopped"


if "STAND_IN" in os.environ:
    for name, function in (("distributed", init_distributed), ("loop", train)):
        module = types.ModuleType(f"hpc_tumor.training.{name}")
        setattr(module, function.__name__, function)
        sys.modules[module.__name__] = module

"""Real training that takes its time: each step waits a little for as long as the file that SLOW_UNTIL names is absent.

Python imports this first in every rank that is started with this folder on its path.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

STEP_SECONDS = float(os.environ.get("STEP_SECONDS", 0.4))


def _slow_down(done: Path) -> None:
    while "hpc_tumor.training.loop" not in sys.modules or not hasattr(
        sys.modules["hpc_tumor.training.loop"], "train_epoch"
    ):
        time.sleep(0.01)
    loop: Any = sys.modules["hpc_tumor.training.loop"]
    step = loop.train_step

    def slow_step(*arguments: Any) -> Any:
        if not done.exists():
            time.sleep(STEP_SECONDS)
        return step(*arguments)

    loop.train_step = slow_step


if "SLOW_UNTIL" in os.environ and "SLURM_PROCID" in os.environ:
    threading.Thread(target=_slow_down, args=(Path(os.environ["SLOW_UNTIL"]),), daemon=True).start()

"""Measure items of one part in a process of its own: `python -m gpu_report.child REQUEST`, as the conductor does.

It ends with the first item that fails, since a GPU may be unusable after an error: the conductor starts another one for
the rest.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from importlib import import_module

from gpu_report.job import Job, tell_conductor
from hpc_tumor.system.processes import end_with_parent


def main() -> None:
    """Measure the items of the request in order."""
    request = json.loads(sys.argv[1])
    end_with_parent(signal.SIGKILL, request["parent"])
    tell, job, code = tell_conductor(), Job.from_json(request["job"]), 0
    try:
        measure = import_module(request["module"]).measure
        for number, item in enumerate(request["items"]):
            tell.send({"begin": number})
            began = time.perf_counter()
            measure(item, job, tell)
            tell.send({"end": number, "seconds": time.perf_counter() - began})
            gc.collect()  # frees the device's memory: training states contain themselves
    except BaseException as error:
        traceback.print_exc()
        tell.send({"error": f"{type(error).__name__}: {str(error).strip()[:600]}"})
        code = 1
    sys.stderr.flush()
    os._exit(code)  # CUDA's libraries take seconds to unload


if __name__ == "__main__":
    main()

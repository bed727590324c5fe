"""Order in which pytest-xdist distributes the test files, and measurements that all tests find in the cache."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hpc_tumor.console import out
from hpc_tumor.system import measurements
from hpc_tumor.system.cpu import computing_facts

for name in ("COLUMNS", "LINES"):  # readline has set them in the process that starts others
    os.environ.pop(name, None)
# What CPUs choose by a measurement is the same on all machines: float32 and channels-last.
_cache = tempfile.TemporaryDirectory(prefix="hpc-tumor-cache-")
os.environ["HPC_TUMOR_CACHE_DIR"] = _cache.name
_SECONDS = {
    "float32 channels-last": 1.0, "float32 contiguous": 2.0, "bfloat16 channels-last": 4.0, "bfloat16 contiguous": 8.0,
}  # fmt: skip
for kernels in ("convolutions", "bottlenecks", "attention"):
    measurements.write(f"cpu-{kernels}", computing_facts(), _SECONDS)

# A busy machine must not fail a test.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the random order of files, but start with those that mostly wait for SLURM, then those with slow tests.

    Tests that use the SLURM exclusively come last of these, so that no others wait for it.
    """
    points = {"alone": 1e-3, "cluster": 1e3, "slow": 1.0}
    weight: dict[Path, float] = {}
    for item in items:
        mark = next((name for name in points if item.get_closest_marker(name)), "")
        # Tests on the null GPU take a second or more each, and start a server for their process.
        point = points.get(mark, 0.3 if "null_gpu" in getattr(item, "fixturenames", ()) else 0.0)
        weight[item.path] = weight.get(item.path, 0.0) + point
    items.sort(key=lambda item: -weight[item.path])


@pytest.fixture(autouse=True)
def _plain_output() -> None:
    """Reset --json and --verbose of a command that an earlier test called in this process."""
    out.json = out.verbose = False

"""The order in which pytest-xdist shares out the files of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hpc_tumor.console import out

for name in ("COLUMNS", "LINES"):  # readline, in the process that starts others, has set them
    os.environ.pop(name, None)
# A busy machine is no fault of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the random order of files, but those first that mostly wait for SLURM, then those with slow tests.

    Those that want the SLURM for themselves come after these: no other should wait for it then.
    """
    points = {"alone": 1e-3, "cluster": 1e3, "slow": 1.0}
    weight: dict[Path, float] = {}
    for item in items:
        mark = next((name for name in points if item.get_closest_marker(name)), "")
        weight[item.path] = weight.get(item.path, 0.0) + points.get(mark, 0.0)
    items.sort(key=lambda item: -weight[item.path])


@pytest.fixture(autouse=True)
def _plain_output() -> None:
    """Forget the --json and --verbose of a command that an earlier test called in this process."""
    out.json = out.verbose = False

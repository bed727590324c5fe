"""How tests are marked, and how pytest-xdist shares them out: file by file, and those first that take longest."""

from __future__ import annotations

import os

import pytest

for name in ("COLUMNS", "LINES"):  # readline, in the process that starts others, has set them
    os.environ.pop(name, None)

MARKS = {"slurm": "cluster", "browser": "browser"}  # fixture → mark of the tests that use it


def pytest_itemcollected(item: pytest.Item) -> None:
    for fixture, mark in MARKS.items():
        if fixture in getattr(item, "fixturenames", ()):
            item.add_marker(mark)
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the random order within each group, and let the groups that wait for SLURM start before all others."""

    def group(item: pytest.Item) -> str:
        mark = item.get_closest_marker("xdist_group")
        return mark.args[0] if mark else ""

    weight: dict[str, int] = {}
    for item in items:
        heavy = 2 if item.get_closest_marker("cluster") else 1 if item.get_closest_marker("slow") else 0
        weight[group(item)] = max(heavy, weight.get(group(item), 0))
    items.sort(key=lambda item: -weight[group(item)])

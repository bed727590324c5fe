"""Fixture `browser`; tests that use it get the mark `browser`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, start_browser


def pytest_itemcollected(item: pytest.Item) -> None:
    if "browser" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests. Without it they are skipped, or fail with HPC_TUMOR_REQUIRE_PROGRAMS=1."""
    with start_browser() as browser:
        yield browser

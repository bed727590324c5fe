"""A browser for tests that ask for the fixture `browser`, which marks them so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, start_browser


def pytest_itemcollected(item: pytest.Item) -> None:
    if "browser" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests. Skipped where it is not installed; HPC_TUMOR_REQUIRE_PROGRAMS=1 makes them fail."""
    with start_browser() as browser:
        yield browser

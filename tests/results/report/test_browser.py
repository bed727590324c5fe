"""Assumptions of the report's tests: the browser reports errors, dark mode, width and requests."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from browser import Browser
from selenium.common.exceptions import WebDriverException

from hpc_tumor.results.report.serve import ReportServer

PAGE = """<!doctype html><meta charset="utf-8"><title>page</title><link rel="icon" href="data:,">
<style>
  body { margin: 0; height: 3000px; background: #ffffff }
  @media (prefers-color-scheme: dark) { body { background: #102030 } }
</style>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page ± 1.html"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_a_good_page_is_quiet_and_asks_for_nothing(browser: Browser, page: Path) -> None:
    for offline in (False, True):
        with browser.open_page(page, offline=offline) as opened:
            assert opened.run("return document.title") == "page"
            assert opened.messages() == []
            assert opened.requests() == [page.as_uri()]


def test_errors_are_seen_and_only_on_their_page(browser: Browser, page: Path) -> None:
    good = page.read_text(encoding="utf-8")
    page.write_text(good + "<script>console.log('said'); console.error('shouted'); undefinedFunction()</script>")
    with browser.open_page(page) as opened:
        assert [any(word in line for line in opened.messages()) for word in ("said", "shouted")] == [True, True]
        severe = "\n".join(opened.messages("SEVERE"))
        assert "shouted" in severe
        assert "undefinedFunction is not defined" in severe
        assert "said" not in severe
    page.write_text(good)
    with browser.open_page(page) as opened:
        assert opened.messages() == []


@pytest.mark.parametrize("width", [360, 1280])
def test_dark_and_light_in_the_width_asked_for(browser: Browser, page: Path, width: int, tmp_path: Path) -> None:
    for dark, colour in ((False, (255, 255, 255)), (True, (16, 32, 48))):
        with browser.open_page(page, width=width, dark=dark) as opened:
            assert opened.run("return window.innerWidth") == width
            image = opened.screenshot(tmp_path / "page.png")
            assert image.size == (width, 3000)
            assert image.getpixel((width - 1, 2999)) == colour
            assert (tmp_path / "page.png").stat().st_size > 100


@pytest.mark.parametrize("offline", [False, True])
def test_requests_are_seen_whether_they_succeed_or_not(browser: Browser, page: Path, offline: bool) -> None:
    style, picture = "https://cdn.example/style.css", "http://127.0.0.1:9/picture.png"
    page.write_text(f'<link rel="icon" href="data:,"><link rel="stylesheet" href="{style}"><img src="{picture}">')
    with browser.open_page(page, offline=offline) as opened:
        assert opened.requests()[0] == page.as_uri()
        assert sorted(opened.requests()[1:]) == [picture, style]
        assert len(opened.messages("SEVERE")) == 2


def test_what_is_served_opens_but_offline_and_loads_nothing(browser: Browser, page: Path) -> None:
    fetch = "const done = arguments[arguments.length - 1]; fetch(location.href).then(() => done(1), () => done(0))"
    with ReportServer(page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        with browser.open_page(server.url) as opened:
            assert opened.run("return document.title") == "page"
            assert opened.messages() == []
            assert opened.requests() == [server.url]
            # It may load nothing, not even from where it came.
            assert opened.driver.execute_async_script(fetch) == 0
            assert "Content Security Policy" in "".join(opened.messages("SEVERE"))
        with (
            pytest.raises(WebDriverException, match="ERR_INTERNET_DISCONNECTED"),
            browser.open_page(server.url, offline=True),
        ):
            pass
        server.shutdown()
        thread.join()

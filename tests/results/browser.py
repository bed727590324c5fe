"""Debian's Chromium without a window, to look at pages as a reader would: how wide, how dark, with what complaints."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from programs import program
from selenium import webdriver

ARGUMENTS = (
    "--headless=new",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",  # a container's /dev/shm is too small
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no test leaves this machine
)


@dataclass
class Page:
    """An open page. What it complained of and asked for is kept from its opening on."""

    driver: webdriver.Chrome
    width: int
    _logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def messages(self, level: str = "") -> list[str]:
        """Console messages, uncaught errors and what the browser itself had to say, of one `level` (SEVERE) or all."""
        return [entry["message"] for entry in self._log("browser") if not level or entry["level"] == level]

    def requests(self) -> list[str]:
        """Addresses that were asked for, in order, this page's own first; what stands in the page (data:) left out."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        urls = []
        for event in events:
            if event["method"] == "Network.requestWillBeSent":
                urls.append(event["params"]["request"]["url"])
            elif event["method"] == "Network.webSocketCreated":
                urls.append(event["params"]["url"])
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def run(self, script: str, *arguments: Any) -> Any:
        """What the JavaScript `script` returns."""
        return self.driver.execute_script(script, *arguments)

    def screenshot(self, path: Path | None = None) -> Image.Image:
        """The whole page, also what is below the window, as wide as it was opened; written to `path` too."""
        height = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]["height"]
        area = {"x": 0, "y": 0, "width": self.width, "height": max(1, height), "scale": 1}
        options = {"format": "png", "captureBeyondViewport": True, "clip": area}
        data = base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"])
        if path is not None:
            path.write_bytes(data)
        return Image.open(io.BytesIO(data)).convert("RGB")

    def _log(self, kind: str) -> list[dict[str, Any]]:
        # The driver gives every entry once.
        self._logs.setdefault(kind, []).extend(self.driver.get_log(kind))
        return self._logs[kind]


class Browser:
    """One Chromium, with a fresh tab for every page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    @contextmanager
    def open_page(
        self, page: Path | str, width: int = 1200, height: int = 800, dark: bool = False, offline: bool = False
    ) -> Iterator[Page]:
        """Open a file or an address in a window of `width` × `height` pixels, for a reader who likes `dark` pages.

        A page from a file still opens `offline`; it then finds no other machine, nor any port of this one.
        """
        home = self.driver.current_window_handle
        self.driver.switch_to.new_window("tab")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        network = {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.driver.execute_cdp_cmd("Network.enable", {})
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", network)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)
            yield Page(self.driver, width)
        finally:
            self.driver.close()
            self.driver.switch_to.window(home)


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Chromium, stopped at the end. Skips or fails the test where it is not installed (see `program`)."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    service = webdriver.ChromeService(program("chromedriver"))  # named, so that selenium looks for none on the network
    for argument in ARGUMENTS:
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium does not start as root with one
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_page_load_timeout(60)
        yield Browser(driver)
    finally:
        driver.quit()

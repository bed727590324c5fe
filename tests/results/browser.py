"""Headless Chromium of Debian, to check pages as a reader sees them: width, dark mode, errors."""

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
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # tests use no other machine
)


@dataclass
class Page:
    """An open page, with its console messages and requests since it was opened."""

    driver: webdriver.Chrome
    width: int
    _logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def messages(self, level: str = "") -> list[str]:
        """Return console messages, uncaught errors and messages of the browser, of one `level` (SEVERE) or all."""
        return [entry["message"] for entry in self._log("browser") if not level or entry["level"] == level]

    def requests(self) -> list[str]:
        """Return the requested addresses in order, this page's first, without data: addresses."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        urls = []
        for event in events:
            if event["method"] == "Network.requestWillBeSent":
                urls.append(event["params"]["request"]["url"])
            elif event["method"] == "Network.webSocketCreated":
                urls.append(event["params"]["url"])
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the result of the JavaScript `script`."""
        return self.driver.execute_script(script, *arguments)

    def screenshot(self, path: Path | None = None) -> Image.Image:
        """Return a picture of the whole page, also below the window, at its width; also write it to `path`."""
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
    """One Chromium, with a new tab for every page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    @contextmanager
    def open_page(
        self, page: Path | str, width: int = 1200, height: int = 800, dark: bool = False, offline: bool = False
    ) -> Iterator[Page]:
        """Open a file or an address in a window of `width` × `height` pixels, optionally in `dark` mode.

        A file also opens `offline`; it then reaches no other machine, nor any port of this one.
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
    """Start Chromium and stop it at the end. Skips or fails the test if it is not installed (see `program`)."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    service = webdriver.ChromeService(program("chromedriver"))  # explicit path, so that selenium downloads none
    for argument in ARGUMENTS:
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium does not start as root with a sandbox
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_page_load_timeout(60)
        yield Browser(driver)
    finally:
        driver.quit()

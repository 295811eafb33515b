"""A real Chromium without a window, and what it asked of whom."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@contextmanager
def browser(*, dark: bool = False, size: str = "1400,1000") -> Iterator[Any]:
    """Give a Selenium driver; skip the test where Chromium or Selenium is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",  # tests may run as root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-proxy-server",
        "--enable-precise-memory-info",
        f"--window-size={size}",
        *(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield opened
    finally:
        opened.quit()


def requests(opened: Any) -> list[str]:
    """Return the addresses that the page asked since this was last called."""
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def complaints(opened: Any) -> list[str]:
    """Return what the browser's console said, security violations included."""
    return [entry["message"] for entry in opened.get_log("browser") if entry["level"] != "INFO"]


def renderer_bytes(opened: Any) -> int:
    """Return the memory that the page's own process has to itself (private, dirty or clean)."""
    sizes = []
    for process in _descendants(opened.service.process.pid):
        folder = Path(f"/proc/{process}")
        if b"--type=renderer" in (folder / "cmdline").read_bytes():
            rollup = (folder / "smaps_rollup").read_text()
            found = re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", rollup, flags=re.M)
            sizes.append(1024 * sum(map(int, found)))
    return max(sizes)


def _descendants(process: int) -> Iterator[int]:
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            yield child
            yield from _descendants(child)

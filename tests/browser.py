"""Headless Chromium for tests that look at a page: the browser, what its console said, what its screenshot shows.

A test module gets the fixture by ``from tests.browser import browser``. Debian's packages are ``chromium`` and
``chromium-driver``. Without them the tests are skipped, and fail where ``CI=true``.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NEEDED = ("chromium", "chromedriver")


def skip_or_fail(reason: str) -> None:
    """Skip the test that calls this, with the reason; where ``CI=true`` everything is there, so it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def open_browser(profile: Path, *, width: int = 1280, height: int = 900) -> webdriver.Chrome:
    """Start Chromium with an empty profile; the caller quits it.

    Args:
        profile: folder for the profile, made where it is missing.
        width: of the window, in pixels.
        height: of the window, in pixels.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    return driver


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """Chromium with an empty profile and a window of 1280 × 900 pixels."""
    if missing := [program for program in NEEDED if shutil.which(program) is None]:
        skip_or_fail(f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver")
    driver = open_browser(tmp_path / "profile")
    yield driver
    driver.quit()


def wait_for_text(driver: webdriver.Chrome, *texts: str, seconds: float = 60) -> str:
    """Wait until the page shows every one of the texts, and return all that it shows."""

    def shown(_: Any) -> str | None:
        text = str(driver.execute_script("return document.body ? document.body.innerText : ''"))
        return text if all(wanted in text for wanted in texts) else None

    return str(WebDriverWait(driver, seconds).until(shown, f"the page does not show all of {texts}"))


def console_errors(driver: webdriver.Chrome) -> list[str]:
    """Return what the console has called an error since this was last asked."""
    log: list[dict[str, Any]] = driver.get_log("browser")  # type: ignore[no-untyped-call]
    return [str(entry["message"]) for entry in log if entry["level"] == "SEVERE"]


def screenshot(driver: webdriver.Chrome, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Write a screenshot of the window as PNG and return its pixels, (height, width, 3), 0 to 255."""
    png = driver.get_screenshot_as_png()
    path.write_bytes(png)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def assert_not_blank(pixels: np.ndarray[Any, np.dtype[np.uint8]], *, least: float = 0.01) -> None:
    """Fail unless the picture holds something: at least a share of pixels that differ from its commonest colour.

    Args:
        pixels: (height, width, 3), 0 to 255.
        least: the share, 0 to 1.
    """
    assert min(pixels.shape[:2]) >= 300, f"a picture of {pixels.shape[1]} × {pixels.shape[0]} pixels"
    colours = pixels.reshape(-1, 3).astype(np.int64) @ np.array([65536, 256, 1])
    counts = np.unique(colours, return_counts=True)[1]
    share = 1 - counts.max() / counts.sum()
    assert share >= least, f"{share:.2%} of the pixels differ from the background"
    assert len(counts) >= 10, f"only {len(counts)} colours"
    assert pixels.std() > 2, f"the pixels vary by {pixels.std():.2f}"

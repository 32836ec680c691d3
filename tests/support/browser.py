"""A headless Chromium that tells what went wrong on a page, and whether the page asked for anything from elsewhere."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium import webdriver

OPTIONS = (
    *"--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split(),
    *"--disable-component-update".split(),
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
AT_HOME = {"127.0.0.1", "localhost"}


class Browser:
    """One window; `driver` is selenium's."""

    def __init__(self, driver, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def open(self, address: str | Path, width: int = 1280, height: int = 1000) -> None:
        """Show a page, of the disk where a path is given, in a window whose inside is `width` x `height` pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(address if isinstance(address, str) else address.resolve().as_uri())

    def complaints(self) -> list[str]:
        """Errors of the console, and addresses that do not lie on this machine, since the last call."""
        errors = [row["message"] for row in self.driver.get_log("browser") if row["level"] == "SEVERE"]
        asked = []
        for row in self.driver.get_log("performance"):
            event = json.loads(row["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                asked.append(event["params"]["request"]["url"])
            elif event["method"] == "Network.webSocketCreated":
                asked.append(event["params"]["url"])
        parts = [urlsplit(url) for url in asked]
        return errors + [part.geturl() for part in parts if part.hostname and part.hostname not in AT_HOME]

    def misfits(self) -> list[str]:
        """Pictures of the page at hand that did not load, and elements that stick out of a narrower body."""
        return self.driver.execute_script("""
            const broken = [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => `broken ${i.src}`);
            const page = document.documentElement, body = document.body;
            const wide = Math.max(page.scrollWidth, body.scrollWidth) - page.clientWidth;
            return wide > 0 ? [...broken, `${wide} pixels wider than the window`] : broken;
        """)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A fresh Chromium whose files lie under `folder`; skips the test where there is none."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("chromium or chromedriver is not in the PATH: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for option in (*OPTIONS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(option)
    downloads = folder / "downloads"
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    try:
        driver.get("about:blank")
        for log in ("browser", "performance"):  # of the page that a new window shows
            driver.get_log(log)
        yield Browser(driver, downloads)
    finally:
        driver.quit()

"""A headless Chromium, driven by Selenium: where it is, how it starts, and what it says about a page."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --window-size=1400,900
""".split()
ENTER, ESCAPE, DOWN = "\ue007", "\ue00c", "\ue015"
NEEDED = "FXPRUNE_BROWSER"
"""The environment variable: with 1 the tests of the browser fail where there is none."""


def missing() -> str:
    """The thing that is missing for a browser, "" if nothing is."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed (pip install selenium)"
    names = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"there is no {' and no '.join(names)} (apt-get install chromium chromium-driver)" if names else ""


def skip_or_fail(why: str) -> None:
    """Skips, or fails where the environment asks for a browser."""
    if why and os.environ.get(NEEDED) == "1":
        pytest.fail(f"{NEEDED}=1, but {why}")
    if why:
        pytest.skip(why)


class Browser:
    """One window. `errors` and `requests` are those since the page was opened."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver, self.folder = driver, folder
        self.run = driver.execute_script

    def open(self, name: str, text: str, hash: str = "") -> None:
        path = self.folder / f"{name}.html"
        path.write_text(text, encoding="ascii")
        self.driver.get("about:blank")
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(f"{path.as_uri()}{hash}")

    def errors(self) -> list[str]:
        """All that the page wrote to the console: warnings and errors."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for, but for those inside the file."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "blob:"))]

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def texts(self, selector: str) -> list[str]:
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector))

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def nodes(self, selector: str = "node") -> set[str]:
        """The names of the nodes of the graph that a selector of cytoscape names, without the titles of blocks."""
        return set(self.run("return fxpruneReport.cy.nodes(arguments[0]).not('.title').map(n => n.id())", selector))

    def double_click(self, node: str) -> None:
        """A double click on a node of the graph, where it stands on the screen, which changes the nodes.

        On a busy machine the two clicks may come too far apart to be a double one, so it is tried a few times.
        """
        from selenium.webdriver.common.action_chains import ActionChains

        place = "const p = fxpruneReport.cy.getElementById(arguments[0]).renderedPosition();"
        frame = "const b = document.getElementById('graph').getBoundingClientRect();"
        point = "return [Math.round(b.x + p.x), Math.round(b.y + p.y)];"
        before = self.nodes()
        for _ in range(5):
            x, y = self.run(place + frame + point, node)
            actions = ActionChains(self.driver, duration=0)
            actions.w3c_actions.pointer_action.move_to_location(x, y)
            actions.w3c_actions.pointer_action.click().click()
            actions.perform()
            if self.nodes() != before:
                return
            time.sleep(0.5)  # longer than the time in which two clicks are a double one

    def emulate(self, **features: str) -> None:
        """Sets features of CSS media, such as prefers_color_scheme="dark"."""
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": listed})


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, closed at the end."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield Browser(driver, folder)
    finally:
        driver.quit()

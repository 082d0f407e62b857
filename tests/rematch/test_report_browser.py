"""The report in a real browser: what is visible, at both widths, in both themes, from the keyboard, without a network.

Needs chromium and chromedriver (Debian: ``chromium chromium-driver``). Without them the tests are skipped, or fail where
``REMATCH_REQUIRE_BROWSER=1`` asks for them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic

from rematch.report import PAGE_COLOURS, render

PAGES = ("index.html", "simba.html")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
VISIBLE = """
return [...document.querySelectorAll(arguments[0])].map(e => {
  const box = e.getBoundingClientRect();
  return [box.width, box.height, e.checkVisibility()];
});
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "mini"
    render([synthetic.make_results(tmp_path_factory.mktemp("root"))], folder, tier="mini")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        message = f"needs a browser: chromium {chromium or 'not found'}, chromedriver {driver or 'not found'}"
        if os.environ.get("REMATCH_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


class View:
    """A page opened at a width and in a colour scheme."""

    def __init__(
        self, browser: Any, path: Path, width: int = 1280, scheme: str = "light", media: str = "screen"
    ) -> None:
        self.browser = browser
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        browser.get_log("performance")  # what other pages asked for
        browser.get("about:blank")
        browser.get(path.as_uri())

    def requests(self) -> list[str]:
        """Every URL asked for since the page was opened."""
        entries = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]

    def boxes(self, selector: str) -> list[tuple[float, float, bool]]:
        """Width, height and visibility of the elements that a selector finds."""
        return [tuple(box) for box in self.browser.execute_script(VISIBLE, selector)]

    def script(self, code: str) -> Any:
        return self.browser.execute_script(f"return {code}")

    def colour(self, element: str, what: str) -> str:
        return self.script(f"getComputedStyle(document.querySelector('{element}')).{what}")


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize("width", [375, 1280])
def test_tables_and_plots_are_there(browser: Any, out: Path, width: int) -> None:
    view = View(browser, out / "simba.html", width)
    plots = [box for box in view.boxes(".plot svg") if box[2]]
    assert len(plots) == 5  # of each pair of drawings, the one for this width
    assert all(w > 250 and h > 250 for w, h, _ in plots)
    tables = view.boxes("#claims, .board, .paper-table table")
    assert len(tables) == 1 + 1 + 4 + 4
    assert all(w > 200 and h > 20 and visible for w, h, visible in tables)
    assert view.boxes(".board tbody tr") == [box for box in view.boxes(".board tbody tr") if box[1] > 30]
    assert len(view.boxes(".board tbody tr")) == 8
    assert view.script("document.querySelectorAll('.plot svg text').length") > 50


@pytest.mark.parametrize("width", [375, 768, 1130, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_the_page_never_scrolls_sideways(browser: Any, out: Path, name: str, width: int) -> None:
    view = View(browser, out / name, width)
    view.script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert view.script("document.documentElement.scrollWidth") <= width
    view.script("window.scrollTo(500, 0)")
    assert view.script("window.scrollX") == 0


@pytest.mark.parametrize("name", PAGES)
def test_no_request_leaves_the_machine(browser: Any, out: Path, name: str) -> None:
    view = View(browser, out / name)
    asked = [url for url in view.requests() if url != "about:blank"]
    assert (out / name).as_uri() in asked
    assert all(url.startswith(("file://", "data:,")) for url in asked), asked


@pytest.mark.parametrize("name", PAGES)
def test_the_keyboard_meets_the_skip_link_first(browser: Any, out: Path, name: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    view = View(browser, out / name)
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert view.script("document.activeElement.className") == "skip"
    assert view.script("document.activeElement.getBoundingClientRect().top") >= 0
    assert view.colour(".skip", "outlineStyle") != "none"
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert view.script("document.activeElement.id") == "content"


def test_dark_follows_the_system_and_the_toggle_overrides_it(browser: Any, out: Path) -> None:
    light, dark = (rgb(colour) for colour in PAGE_COLOURS["--paper"])
    view = View(browser, out / "simba.html", scheme="dark")
    assert view.colour("body", "backgroundColor") == dark
    assert view.colour(".plot .wide line[stroke]", "stroke") != View(browser, out / "simba.html").colour(
        ".plot .wide line[stroke]", "stroke"
    )
    assert view.colour("body", "backgroundColor") == light
    view.script("document.getElementById('theme-dark').click()")
    assert view.colour("body", "backgroundColor") == dark
    view = View(browser, out / "simba.html", scheme="dark")
    view.script("document.getElementById('theme-light').click()")
    assert view.colour("body", "backgroundColor") == light


def test_print_is_light_and_without_controls(browser: Any, out: Path) -> None:
    view = View(browser, out / "simba.html", width=700, scheme="dark", media="print")
    view.script("document.getElementById('theme-dark').click()")
    assert view.colour(":root", "colorScheme") == "light"
    assert [box[2] for box in view.boxes(".theme, nav")] == [False, False]
    assert view.colour(".board", "display") == "table"
    assert len([box for box in view.boxes(".plot svg") if box[2]]) == 5


def test_a_number_opens_its_matches(browser: Any, out: Path) -> None:
    view = View(browser, out / "simba.html")
    target = "document.getElementById('m-flops-matched-merge-0.7')"
    assert not view.script(f"{target}.checkVisibility()")
    view.script("document.querySelector('a[href=\"#m-flops-matched-merge-0.7\"]').click()")
    assert view.script(f"{target}.checkVisibility()")
    assert "rematch audit simba/flops_matched/merge/0.7 --tier mini" in view.script(f"{target}.innerText")

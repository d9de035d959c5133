"""The page as a browser shows it: on a phone, on a desk, in print, in the dark, without a mouse."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import hypergrad as hg
from hypergrad.report import server as serving
from hypergrad.report.server import make_server
from tests.browser import assert_not_blank, console_errors, open_browser, screenshot, skip_or_fail
from tests.report.directories import (
    EVIL,
    cleaning_directory,
    compare_directory,
    run_directory,
    train,
    write,
)

MAKE: dict[str, Any] = {
    "run": run_directory,
    "history": lambda folder: train(folder, steps=2),
    "images": cleaning_directory,
    "texts": lambda folder: cleaning_directory(folder, kind="text", truth=False),
    "rows": lambda folder: cleaning_directory(folder, kind="row"),
    "comparison": compare_directory,
    "hostile": lambda folder: cleaning_directory(folder, kind="row", name=EVIL + "_" * 200),
}
SIZES = {"phone": (360, 800), "desk": (1280, 900)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One browser for all of these tests: starting one takes seconds."""
    import shutil

    if missing := [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]:
        skip_or_fail(f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver")
    driver = open_browser(tmp_path_factory.mktemp("browser") / "profile")
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    found = {}
    for name, make in MAKE.items():
        folder = tmp_path_factory.mktemp(name)
        make(folder)
        found[name] = hg.report.write_report(folder)
    return found


def show(browser: webdriver.Chrome, path: Path, size: str, *, dark: bool = False) -> None:
    """Open a page in a window of a size."""
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(path.as_uri())


def run(browser: webdriver.Chrome, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def violations(browser: webdriver.Chrome) -> list[str]:
    """What axe-core finds wrong."""
    axe = pytest.importorskip("axe_core_python.selenium")
    results = axe.Axe().run(browser)
    return [f"{found['id']}: {[node['html'][:200] for node in found['nodes']]}" for found in results["violations"]]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MAKE)
def test_pages_can_be_read(
    name: str, size: str, browser: webdriver.Chrome, pages: dict[str, Path], tmp_path: Path
) -> None:
    show(browser, pages[name], size)
    assert console_errors(browser) == []
    assert (
        run(browser, "performance.getEntriesByType('resource').filter(entry => !entry.name.startsWith('data:')).length")
        == 0
    )
    assert run(browser, "document.documentElement.scrollWidth") <= SIZES[size][0]
    assert run(browser, "document.querySelectorAll('h1').length") == 1
    assert_not_blank(screenshot(browser, tmp_path / f"{name}-{size}.png"))
    assert violations(browser) == []
    headings = run(browser, "[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))")
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_pages_can_be_read_in_the_dark(name: str, browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages[name], "desk", dark=True)
    ground = run(browser, "getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", ground)[:3]) < 64
    assert violations(browser) == []


FIGURES = """[...document.querySelectorAll('svg[role=img]')].map(svg => ({
    title: svg.querySelector('title').textContent,
    alternative: svg.querySelector('desc').textContent,
    box: [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height],
    ink: [...svg.querySelectorAll('path.line, circle')].map(e => e.getBBox().width + e.getBBox().height),
    outside: [...svg.querySelectorAll('text, path, circle')].filter(e => {
        const inner = e.getBoundingClientRect(), outer = svg.getBoundingClientRect();
        return inner.left < outer.left - 2 || inner.right > outer.right + 2
            || inner.top < outer.top - 2 || inner.bottom > outer.bottom + 2;
    }).map(e => e.outerHTML.slice(0, 120)),
    rows: svg.closest('figure').querySelectorAll('tbody tr').length,
    clashes: [...svg.querySelectorAll('text')].filter((a, i, all) => all.slice(i + 1).some(b => {
        const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
        return p.left < q.right && q.left < p.right && p.top + 2 < q.bottom && q.top + 2 < p.bottom;
    })).map(e => e.textContent),
}))"""


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "least"), [("run", 8), ("history", 7), ("images", 2), ("comparison", 2)])
def test_figures_are_there(name: str, least: int, size: str, browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages[name], size)
    figures = run(browser, FIGURES)
    assert len(figures) >= least
    for figure in figures:
        assert figure["title"]
        assert len(figure["alternative"]) > 10
        assert figure["box"][0] > 200
        assert max(figure["ink"]) > 5, figure["title"]
        assert figure["outside"] == [], figure["title"]
        assert figure["clashes"] == [], figure["title"]
        assert figure["rows"] >= 1


@pytest.mark.slow
def test_pictures_are_shown(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["images"], "phone")
    WebDriverWait(browser, 30).until(lambda _: run(browser, "[...document.images].every(img => img.complete)"))
    assert run(browser, "[...document.images].map(img => img.naturalWidth)") == [8] * 20


@pytest.mark.slow
def test_names_do_not_run(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["hostile"], "desk")
    assert run(browser, "document.scripts.length") == 0
    assert EVIL in run(browser, "document.body.textContent")


@pytest.mark.slow
def test_a_keyboard_is_enough(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["run"], "desk")
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert run(browser, "document.activeElement.textContent") == "Skip to the report"
    assert run(browser, "document.activeElement.getBoundingClientRect().left") >= 0
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert run(browser, "document.activeElement.id") == "main"
    reached = []
    for _ in range(60):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        if run(browser, "document.activeElement === document.body"):
            break
        reached.append(run(browser, "document.activeElement.tagName"))
        outline = run(browser, "getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", reached
        if reached[-1] == "SUMMARY" and reached.count("SUMMARY") == 1:
            ActionChains(browser).send_keys(Keys.ENTER).perform()
            assert run(browser, "document.activeElement.parentElement.open") is True
    assert reached.count("SUMMARY") == run(browser, "document.querySelectorAll('summary').length")
    assert {"SUMMARY", "DIV", "PRE", "A"} <= set(reached)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_pages_can_be_printed(name: str, browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages[name], "desk")
    printed = base64.b64decode(browser.print_page())
    assert printed.startswith(b"%PDF-")
    count = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 1 <= count <= 12
    assert len(printed) > 20_000


@pytest.mark.slow
def test_a_watched_page_follows_the_run(
    browser: webdriver.Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "WAIT", 0.0)
    began = "2026-01-01T00:00:00+00:00"
    write(tmp_path, "run.json", {"began": began, "ended": None, "planned_steps": 2})
    line = json.dumps({"step": 1, "outer_loss": 2.0, "norm": 1.0}) + "\n"
    (tmp_path / "history.jsonl").write_text(line, encoding="utf-8")
    with make_server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        browser.get(f"http://127.0.0.1:{server.server_port}/")
        assert "going on: 1 of 2 steps" in run(browser, "document.body.innerText")
        assert run(browser, "document.getElementById('pause').hidden") is False
        assert violations(browser) == []
        browser.execute_script("document.querySelector('summary').click()")
        with (tmp_path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(line.replace('"step": 1', '"step": 2'))
        write(tmp_path, "run.json", {"began": began, "ended": began, "planned_steps": 2, "stopped": "steps"})
        os.utime(tmp_path / "run.json")
        WebDriverWait(browser, 30).until(
            lambda _: "finished after 2 of 2 steps" in run(browser, "document.body.innerText")
        )
        assert run(browser, "document.querySelector('details').open") is True
        assert console_errors(browser) == []
        names = run(browser, "performance.getEntriesByType('resource').map(entry => entry.name)")
        assert {name for name in names if not name.startswith("data:")} <= {f"http://127.0.0.1:{server.server_port}/"}
        server.shutdown()

"""optuna-dashboard over a study of the bridge, looked at in a browser."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import optuna
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from hypergrad.bridges.optuna import HybridObjective, load_best, shared_storage
from tests.browser import assert_not_blank, browser, console_errors, screenshot, wait_for_text
from tests.optuna.hybrid.common import ADAM, build

__all__ = ["browser"]
NAME = "ridge with a penalty for each weight"


class Dashboard(NamedTuple):
    url: str
    study: optuna.Study
    artifacts: Path


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[Dashboard]:
    """The command of the docs, for a journal and its artifacts, on a free port."""
    journal, artifacts = tmp_path / "study.log", tmp_path / "artifacts"
    study = optuna.create_study(study_name=NAME, storage=shared_storage(journal))
    study.optimize(HybridObjective(build, 4, store=artifacts, outer=ADAM), n_trials=3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = str(shutil.which("optuna-dashboard", path=str(Path(sys.executable).parent)))
    command = [program, str(journal), "--artifact-dir", str(artifacts), "--port", port, "--server", "wsgiref"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while True:
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < until, "the dashboard does not answer"
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.1)
        yield Dashboard(f"http://127.0.0.1:{port}", study, artifacts)
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_the_dashboard_shows_study_trial_attributes_and_artifacts(
    dashboard: Dashboard, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    best = dashboard.study.best_trial
    browser.get(f"{dashboard.url}/dashboard")
    wait_for_text(browser, NAME, "MINIMIZE")

    browser.get(f"{dashboard.url}/dashboard/studies/0")
    wait_for_text(browser, NAME, "History", "Intermediate values", "trial #2", str(best.value), "degree")
    assert_not_blank(screenshot(browser, tmp_path / "study.png"))

    browser.get(f"{dashboard.url}/dashboard/studies/0/trials?numbers={best.number}")
    wanted = [f"hypergrad:{name}" for name in ("start", "passes", "report", "hparams", "tensors", "checkpoint")]
    shown = wait_for_text(browser, f"Trial {best.number} (trial_id=", *wanted, "tensors.pt", "checkpoint.pt")
    assert str(best.value) in shown
    assert f"hypergrad:start {best.user_attrs['hypergrad:start']}" in " ".join(shown.split())
    assert all(f"{passes} {value}" in shown for passes, value in best.intermediate_values.items())
    (heading,) = browser.find_elements(By.XPATH, "//*[text()='tensors.pt']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", heading)
    assert_not_blank(screenshot(browser, tmp_path / "trial.png"))
    assert console_errors(browser) == []


@pytest.mark.slow
def test_the_dashboard_serves_the_artifact_that_load_best_reads(dashboard: Dashboard) -> None:
    best = dashboard.study.best_trial
    entry = best.user_attrs["hypergrad:tensors"]
    with urllib.request.urlopen(f"{dashboard.url}/artifacts/0/{best._trial_id}/{entry['artifact']}") as answer:
        assert hashlib.sha256(answer.read()).hexdigest() == entry["sha256"]
    assert load_best(dashboard.study, dashboard.artifacts).number == best.number

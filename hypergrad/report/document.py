"""What a directory holds, as one document."""

from __future__ import annotations

import os
import time
from typing import Any

from hypergrad.report import cleaned, compared, costs, demonstrated, moving, running, words
from hypergrad.report.blocks import Block, Document, Key, Level, Notice, Section, Table, Text
from hypergrad.report.reading import Folder, number, text_of
from hypergrad.report.series import Steps, read_steps, read_tensors

KINDS = {"trainer": "Bilevel optimization", "cleaning": "Data cleaning", "compare": "Comparison of methods"}
SILENT = 600.0
"""Seconds without a written line after which a run that has not ended is taken for dead."""


def read_document(directory: str | os.PathLike[str], folder: Folder | None = None) -> Document:
    """Return everything that a directory says, in the order in which it is shown.

    Args:
        directory: the run's directory.
        folder: the same, opened already.

    Raises:
        InputError: no such directory, or nothing of a run in it.
    """
    folder = folder or Folder(directory)
    run, result, comparison = (folder.value(name) or {} for name in ("run.json", "result.json", "compare.json"))
    steps = read_steps(folder)
    if demonstrated.is_demo(result):
        result = demonstrated.as_cleaning(folder, result)
    kind = _kind(run, result, comparison)
    sections: list[Section] = []
    keys: list[Key] = running.keys(steps)
    if kind == "cleaning":
        keys = cleaned.keys(result) or keys
        sections += [cleaned.findings(result), cleaned.weights(result), cleaned.suspects(folder), cleaned.trust(result)]
        sections += cleaned.skipped(result)
    if kind == "compare":
        keys = compared.keys(comparison) or keys
        sections += compared.sections(comparison)
    if kind != "compare" or run or steps.step:
        sections += _of_the_run(folder, run, result, steps)
    sections += [running.environment(run, comparison or result), _files(folder)]
    status, level, going = _status(folder, run, result, comparison, steps)
    cleaning = f"Cleaning of {text_of(result['input'], 100)}" if kind == "cleaning" and result.get("input") else None
    title = run.get("title") or cleaning or comparison.get("title") or comparison.get("task")
    title = title or folder.path.resolve().name
    return Document(text_of(title, 120), KINDS[kind], status, level, going, _when(run, result), keys[:3], sections)


def _of_the_run(folder: Folder, run: dict[str, Any], result: dict[str, Any], steps: Steps) -> list[Section]:
    tensors = read_tensors(folder)
    return [
        running.what_ran(run, result),
        running.convergence(steps),
        moving.hyperparameters(tensors),
        running.health(steps),
        costs.cost(steps, run),
    ]


def _kind(run: dict[str, Any], result: dict[str, Any], comparison: dict[str, Any]) -> str:
    if comparison:
        return "compare"
    if result.get("kind") == "cleaning":
        return "cleaning"
    kind = run.get("kind")
    return kind if isinstance(kind, str) and kind in KINDS else "trainer"


def _status(
    folder: Folder, run: dict[str, Any], result: dict[str, Any], comparison: dict[str, Any], steps: Steps
) -> tuple[str, Level, bool]:
    """Return how the run stands, whether that is good, and whether it goes on."""
    made = steps.step[-1] if steps.step else 0
    planned = number(run.get("planned_steps"))
    of = f"{made:,} of {words.count(int(planned), 'step')}" if planned else words.count(made, "step")
    stopped = run.get("stopped")
    if run and run.get("ended") is None:
        if time.time() - folder.written() > max(SILENT, 20 * (steps.middle("step_seconds") or 0.0)):
            return f"no news since {words.clock(folder.written())}; perhaps killed, after {of}", "warning", False
        return f"going on: {of}", "note", True
    if stopped in ("steps", "interrupted"):
        return (
            f"{'finished' if stopped == 'steps' else stopped} after {of}",
            "good" if stopped == "steps" else "warning",
            False,
        )
    if isinstance(stopped, str) and stopped != "unknown":
        failed = stopped.startswith("failed")
        said = f"{text_of(stopped, 300)} (after {of})" if failed else f"stopped after {of}: {text_of(stopped, 300)}"
        return said, "bad" if failed else "good", False
    if result or comparison or run:
        return "finished" if result or comparison else f"ended after {of}", "good", False
    return f"{of} so far; whether it has ended was not recorded", "note", time.time() - folder.written() < SILENT


def _when(run: dict[str, Any], result: dict[str, Any]) -> str:
    began, ended = words.instant(run.get("began")), words.instant(run.get("ended"))
    if began is None:
        spent = number(result.get("seconds"))
        return "" if spent is None else f"took {words.seconds(spent)}"
    try:
        lasted = "" if ended is None else f", took {words.seconds((ended - began).total_seconds())}"
    except TypeError:  # one of them has no time zone
        lasted = ""
    return f"began {words.moment(run.get('began'))}{lasted}"


def _files(folder: Folder) -> Section:
    """Say what the report was made of, and what was missing or could not be read."""
    blocks: list[Block] = [
        Notice("warning", "A file could not be used", problem) for problem in dict.fromkeys(folder.problems)
    ]
    sizes = {name: size for name, size, _ in folder.stamp()}
    rows = [[name, words.size(sizes.get(name))] for name in dict.fromkeys(folder.read)]
    blocks.append(
        Table("Files that this page was made of", ["file", "size"], rows) if rows else Text("No file could be read.")
    )
    return Section("files", "Files", blocks)

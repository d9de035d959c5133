"""The page, the text and the JSON of a directory, whatever it holds."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import sys
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.commands.report import Report
from hypergrad.errors import InputError, MissingDependencyError
from hypergrad.report import page, reading, series, svg
from hypergrad.report.pictures import picture
from tests.report.directories import (
    EVIL,
    cleaning_directory,
    compare_directory,
    png,
    run_directory,
    train,
    write,
)


class Tags(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(folder: Path) -> Tags:
    tags = Tags()
    tags.feed(hg.report.write_report(folder).read_text(encoding="utf-8"))
    return tags


def shown(folder: Path) -> str:
    return " ".join(" ".join(parsed(folder).words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_directory(tmp_path_factory.mktemp("run"))


def test_a_run_is_shown_whole(run: Path) -> None:
    text, history = shown(run), hg.read_history(run / "history.jsonl")
    for part in (
        *("What ran, and why", "Losses and convergence", "Hyperparameters", "Health of the linear solver"),
        *("Cost against forecast", "Environment, seeds and settings", "Files", "finished after 8 of 8 steps"),
        *("Ridge", "CG(", "log_penalty[feature ", "No complaints", "at most"),
    ):
        assert part in text, part
    numbers = hg.report.summary(run)["numbers"]
    assert numbers[0]["value"] == f"{history[-1]['outer_loss']:.4g}"
    assert numbers[2]["value"] == "8 of 8"
    figures = [tag for tag, attributes in parsed(run).tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(figures) == 8


def test_cost_is_that_of_the_history(run: Path) -> None:
    history = hg.read_history(run / "history.jsonl")
    table = next(block for block in hg.report.summary(run)["sections"]["cost"] if block["kind"] == "table")
    rows = {row[0]: row for row in table["rows"]}
    assert rows["Hessian products"][3] == f"{sum(line['step_cost']['products'] for line in history):,}"
    bound = json.loads((run / "run.json").read_text(encoding="utf-8"))["forecast"]["cost"]["products"]
    assert rows["Hessian products"][1] == f"at most {bound:,}"


def test_figures_carry_their_data(run: Path) -> None:
    history = hg.read_history(run / "history.jsonl")
    figure = next(
        block for block in hg.report.summary(run)["sections"]["convergence"] if block["title"] == "Outer loss"
    )
    assert [row[0] for row in figure["rows"]] == [str(step) for step in range(1, 9)]
    assert [float(row[1]) for row in figure["rows"]] == pytest.approx(
        [line["outer_loss"] for line in history], rel=1e-3
    )


def test_history_alone_is_enough(tmp_path: Path) -> None:
    train(tmp_path, hg.Checkpoint(tmp_path), steps=3)
    text = shown(tmp_path)
    assert "3 steps so far; whether it has ended was not recorded" in text
    assert "What ran is not known" in text
    assert "callbacks=[hypergrad.report.Record(directory)]" in text
    assert "Outer loss" in text


def test_extra_values_are_shown(tmp_path: Path) -> None:
    history = hg.History(tmp_path / "history.jsonl", extra=lambda progress: {"test accuracy": progress.step / 10})
    train(tmp_path / "other", history, steps=3)
    assert "test accuracy" in shown(tmp_path)


def test_a_run_that_goes_on_is_marked(tmp_path: Path) -> None:
    class Look(hg.Callback):
        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            seen.append(hg.report.summary(tmp_path))

    seen: list[dict[str, Any]] = []
    train(tmp_path, Look(), record=[hg.report.Record(tmp_path)], steps=2)
    assert [found["going_on"] for found in seen] == [True, True]
    assert seen[1]["status"] == "going on: 2 of 2 steps"


def test_a_run_without_news_is_not_called_going(tmp_path: Path) -> None:
    write(tmp_path, "run.json", {"began": "2026-01-01T00:00:00+00:00", "ended": None, "planned_steps": 9})
    os.utime(tmp_path / "run.json", (1_700_000_000, 1_700_000_000))
    found = hg.report.summary(tmp_path)
    assert found["going_on"] is False
    assert found["status"] == "no news since 2023-11-14 22:13 UTC; perhaps killed, after 0 of 9 steps"


@pytest.mark.parametrize("kind", ["image", "text", "row"])
def test_cleaned_data_are_shown(kind: str, tmp_path: Path) -> None:
    text = shown(cleaning_directory(tmp_path, kind=kind))
    for part in (
        *("231", "83 %", "71 % before", "oracle 85", "precision 0.9, recall 0.86", "86 %"),
        *("Precision against recall", "right", "wrong", "The trusted part is noisy", "between 10.0 % and 20.0 %"),
        *("mean rank correlation", "0.91", "cat/7.png", "cannot be read", "no label", "label is wrong", "20 most"),
    ):
        assert part.replace("83 %", "83.0 %").replace("71 %", "71.0 %").replace("86 %", "86 %") in text, part
    images = [attributes for tag, attributes in parsed(tmp_path).tags if tag == "img"]
    assert len(images) == (20 if kind == "image" else 0)
    assert all(attributes["alt"] for attributes in images)
    assert ("A message about cat, number 3." in text) == (kind == "text")
    assert ("clerk" in text) == (kind == "row")


def test_unknown_truth_is_said(tmp_path: Path) -> None:
    text = shown(cleaning_directory(tmp_path, truth=False))
    assert "Which labels are truly wrong is not known here" in text
    assert "Precision against recall" not in text
    assert "suspicious" in text
    assert "24.0 %" in text


def test_a_comparison_is_shown(tmp_path: Path) -> None:
    found = hg.report.summary(compare_directory(tmp_path))
    assert (found["numbers"][0]["value"], found["numbers"][0]["remark"]) == ("0.3", "hypergrad")
    table = next(block for block in found["sections"]["comparison"] if block["kind"] == "table")
    assert [row[0] for row in table["rows"]][:3] == ["hypergrad", "TPE", "CMA-ES"]
    assert table["rows"][0][1:3] == ["3", "0.3 (0.291 to 0.315)"]
    curves = found["sections"]["curves"]
    assert [block["kind"] for block in curves] == ["figure"] * 4
    assert all(block["header"][1] == "hypergrad" for block in curves)
    assert "shared" in curves[1]["header"]
    text = shown(tmp_path)
    assert "version 5.0.0" in text
    assert "hypergrad ends lowest" in text


def dirty(folder: Path) -> None:
    """Write every file with a name that would run as a script."""
    cleaning_directory(folder, name=EVIL)
    compare_directory(folder, name=EVIL)
    run_directory(folder)
    write(
        folder,
        "run.json",
        {
            **dict.fromkeys(("title", "outer", "stopped", "began", "kind"), EVIL),
            "algorithm": dict.fromkeys(("name", "repr", "reason", "needs", "cost"), EVIL),
            **{name: [{"name": EVIL, "shape": [EVIL], "entries": 1}] for name in ("params", "hparams")},
            **{name: {EVIL: EVIL} for name in ("settings", "versions", "machine")},
            "seed": EVIL,
            "forecast": {"cost": EVIL},
        },
    )
    line = {"step": 1, "outer_loss": 1.0, EVIL: 2.0, "status": EVIL, "notes": {EVIL: EVIL, "curvature": EVIL}}
    (folder / "history.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    tensor = {"entries": 1, "quantiles": [0.0] * 11, "moved": [[[EVIL], 0, 1, EVIL]]}
    text = json.dumps({"step": 1, "tensors": {EVIL: tensor}})
    (folder / "hparams.jsonl").write_text(text + "\n", encoding="utf-8")


@pytest.mark.parametrize("only", ["all", "run", "cleaning"])
def test_names_are_text_and_never_markup(only: str, tmp_path: Path) -> None:
    dirty(tmp_path)
    for name in {"all": [], "run": ["compare.json", "result.json"], "cleaning": ["compare.json"]}[only]:
        (tmp_path / name).unlink()
    tags = parsed(tmp_path)
    assert "script" not in {tag for tag, _ in tags.tags}
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on") or name == "style"]
    assert all(
        attributes["src"].startswith("data:image/png;base64,")
        for tag, attributes in tags.tags
        if tag == "img" and attributes["src"]
    )
    assert "<script>alert('x')</script>" in "".join(tags.words)
    assert len([attributes["id"] for _, attributes in tags.tags if "id" in attributes]) == len(
        {attributes["id"] for _, attributes in tags.tags if "id" in attributes}
    )


def test_the_page_may_load_nothing(run: Path) -> None:
    tags = parsed(run).tags
    policy = next(a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "script-src" not in policy
    for _, attributes in tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), value
    assert "url(" not in page._file("page.css")
    assert "@import" not in page._file("page.css")


def test_control_characters_and_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"title": "a\\u0000b\\u202ec\\ud800d\\u001b[31m"}', encoding="utf-8")
    assert "a�b�c�d�[31m" in shown(tmp_path)
    assert "a�b�c�d�[31m" in hg.report.text_report(tmp_path)


HOSTILE_PICTURES: dict[str, object] = {
    "svg": "data:image/svg+xml;base64," + base64.b64encode(b"<svg onload='alert(1)'/>").decode(),
    "html": "data:text/html;base64,PHNjcmlwdD4=",
    "address": "https://example.org/spy.png",
    "file": "file:///etc/passwd",
    "no picture": "data:image/png;base64,aGVsbG8=",
    "no base64": "data:image/png;base64,!!!!",
    "bomb": png(claimed=60000),
    "large": "data:image/png;base64," + "A" * 500_000,
    "number": 3,
    "quote": png() + '" onerror="alert(1)',
    "cut jpeg": "data:image/jpeg;base64,/9j/",
    "other kind": png().replace("png", "jpeg", 1),
}


@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_other_addresses_than_small_pictures_are_refused(name: str, tmp_path: Path) -> None:
    assert picture(HOSTILE_PICTURES[name]) is None
    write(tmp_path, "result.json", {"kind": "cleaning"})
    write(tmp_path, "previews.json", [{"index": 1, "image": HOSTILE_PICTURES[name]}])
    assert "1 picture could not be shown" in shown(tmp_path)
    assert "img" not in {tag for tag, _ in parsed(tmp_path).tags}


def test_small_pictures_are_taken() -> None:
    assert picture(png()) == png()
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "JPEG")
    address = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert picture(address) == address


BROKEN: dict[str, Callable[[Path], object]] = {
    "torn": lambda path: path.write_text('{"kind": "clea', encoding="utf-8"),
    "empty": lambda path: path.write_text("", encoding="utf-8"),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\x00\x80"),
    "list": lambda path: path.write_text("[1, 2]", encoding="utf-8"),
    "deep": lambda path: path.write_text("[" * 100_000, encoding="utf-8"),
    "long number": lambda path: path.write_text("1" * 10_000, encoding="utf-8"),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", ["run.json", "result.json", "compare.json", "previews.json"])
@pytest.mark.parametrize("how", BROKEN)
def test_broken_files_are_said_and_the_rest_is_shown(name: str, how: str, tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    write(tmp_path, "result.json", {"kind": "cleaning"})
    (tmp_path / name).unlink(missing_ok=True)
    BROKEN[how](tmp_path / name)
    if name == "previews.json" and how == "list":
        write(tmp_path, name, {})
    text = shown(tmp_path)
    assert f"{name} " in text
    assert "A file could not be used" in text
    assert "Outer loss" in text


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, "outer_los',
        '{"step": "two"}',
        '{"step": 1e400}',
        "[]",
        '{"step": 2, "outer_loss": "low", "norm": [], "cost": 3, "notes": [1], "status": {"a": 1}, "residual": 1e999}',
        '{"step": 2, "outer_loss": ' + "9" * 400 + "}",
        "\x00\x00",
    ],
)
def test_wrong_lines_do_no_harm(line: str, tmp_path: Path) -> None:
    train(tmp_path, record=[hg.report.Record(tmp_path)], steps=1)
    for name in ("history.jsonl", "hparams.jsonl"):
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(line)
    assert "Outer loss" in shown(tmp_path)
    assert hg.report.text_report(tmp_path)
    json.dumps(hg.report.summary(tmp_path), allow_nan=False)


def test_a_torn_line_is_said(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    with (tmp_path / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "outer_l')
    assert "history.jsonl has 1 torn or wrong line, which was left out" in shown(tmp_path)


def test_a_run_that_went_back_counts_once(tmp_path: Path) -> None:
    lines = [{"step": step, "outer_loss": value} for step, value in ((1, 9), (2, 8), (3, 7), (2, 6), (3, 5), (4, 4))]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    steps = series.read_steps(reading.Folder(tmp_path))
    assert steps.known("outer_loss") == [(1, 9), (2, 6), (3, 5), (4, 4)]


def test_links_out_of_the_directory_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    write(secret, "previews.json", [{"index": "the secret", "text": "the secret"}])
    write(secret, "run.json", {"title": "the secret"})
    folder = tmp_path / "run"
    write(folder, "result.json", {"kind": "cleaning"})
    for name in ("previews.json", "run.json"):
        (folder / name).symlink_to(secret / name)
    (folder / "history.jsonl").symlink_to("/dev/zero")
    os.mkfifo(folder / "hparams.jsonl")
    text = shown(folder)
    assert "the secret" not in text
    assert text.count("is no regular file inside the directory and was not opened") == 4


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    folder = run_directory(tmp_path / "run", steps=1)
    target = tmp_path / "target"
    target.write_text("mine", encoding="utf-8")
    for name in ("report.html", "report.html.tmp"):
        (folder / name).symlink_to(target)
    written = hg.report.write_report(folder)
    assert target.read_text(encoding="utf-8") == "mine"
    assert not written.is_symlink()


def test_huge_files_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, steps=1)
    write(tmp_path, "result.json", {"kind": "cleaning", "input": "x" * 3000})
    lines = [json.dumps({"step": step, "outer_loss": float(step)}) + "\n" for step in range(1, 1001)]
    (tmp_path / "history.jsonl").write_text("".join(lines), encoding="utf-8")
    monkeypatch.setattr(reading, "MOST_JSON", 1000)
    monkeypatch.setattr(reading, "MOST_LINES", 4000)
    text = shown(tmp_path)
    assert "result.json is larger than 0 MiB and was not read" in text
    assert "history.jsonl is larger than 0 MiB; its middle was left out" in text
    steps = series.read_steps(reading.Folder(tmp_path)).step
    assert (steps[0], steps[-1]) == (1, 1000)
    assert 50 < len(steps) < 200


def test_hostile_arrays_are_refused(tmp_path: Path) -> None:
    result = {"model": "linear", "data": "mnist", "auc": 1.0, "accuracy": {}}
    write(tmp_path, "result.json", result)
    np.savez(tmp_path / "weights.npz", weight=np.array([{"a": 1}], dtype=object), corrupted=np.array([True]))
    assert "weights.npz is not what the demo writes" in shown(tmp_path)
    with zipfile.ZipFile(tmp_path / "weights.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weight.npy", bytes(2**28 + 1))
    assert "too large" in shown(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds nothing\n"),
        (lambda path: path.write_text("x", encoding="utf-8"), "is a file"),
        (lambda path: write(path, "other.json", {}), "holds nothing of a run"),
    ],
)
def test_a_directory_without_a_run_is_refused(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "run")
    for show in (hg.report.write_report, hg.report.text_report, hg.report.summary):
        with pytest.raises(InputError, match=message) as caught:
            show(tmp_path / "run")
        assert caught.value.do


def test_a_directory_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match="cannot be written") as caught:
        hg.report.write_report(tmp_path)
    assert "--text" in caught.value.do


def test_a_missing_package_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page._template.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match="jinja2") as caught:
        hg.report.write_report(run)
    assert 'pip install "hypergrad-engine[report]"' in caught.value.do
    assert hg.report.text_report(run)


def test_nothing_is_asked_of_the_network(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    assert hg.report.write_report(run).stat().st_size > 10_000


def test_text_and_json_say_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Report(run, json=True)() == 0
    found = json.loads(capsys.readouterr().out)
    assert Report(run, text=True)() == 0
    text = capsys.readouterr().out
    for number in found["numbers"]:
        assert re.search(rf"{re.escape(number['name'])} +{re.escape(number['value'])}", text), number
    assert max(map(len, text.splitlines())) <= 120
    assert found == hg.report.summary(run)
    before = sorted(path.name for path in run.iterdir())
    assert Report(run)() == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert before in (
        sorted(path.name for path in run.iterdir()),
        sorted(p.name for p in run.iterdir() if p.name != "report.html"),
    )
    with pytest.raises(InputError, match="--text and --json"):
        Report(run, text=True, json=True)()


def contrast(first: str, second: str) -> float:
    """The contrast of two colours as WCAG 2 defines it, from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_colours_can_be_told_from_their_ground(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\n *\}", page._file("page.css"), re.DOTALL)
    known: dict[str, str] = {}
    for name, colour in re.findall(r"--([\w-]+): (#\w+)", blocks[scheme]):
        known[name] = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    for ground in ("ground", "sheet"):
        for name in ("ink", "soft", "link", "note", "warning"):
            assert contrast(known[name], known[ground]) >= 4.5, (name, ground)
        for name in (f"c{k}" for k in range(6)):
            assert contrast(known[name], known[ground]) >= 3, (name, ground)
    for name in ("good", "warning", "bad", "note"):
        assert contrast(known[name], known[f"{name}-ground"]) >= 4.5, name
        assert contrast(known["ink"], known[f"{name}-ground"]) >= 4.5, name


def test_peaks_survive_thinning() -> None:
    points = [(float(k), 0.0) for k in range(10_000)]
    points[1234] = (1234.0, 5.0)
    found = svg.thinned(points)
    assert len(found) <= 402
    assert (1234.0, 5.0) in found
    assert (found[0], found[-1]) == (points[0], points[-1])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 12.2), (1e-9, 2e-9), (0, 1e6), (5, 5 + 1e-6)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    found = svg.nice(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 * abs(low) <= value <= high * (1 + 1e-9) for value in found)
    assert np.allclose(np.diff(found), found[1] - found[0])


@pytest.mark.parametrize("ys", [[1.0], [0.0, 0.0], [1e-300, 1e300], [-5.0, -5.0], [0.0, 1e-12, 1.0], [1e308, -1e308]])
@pytest.mark.parametrize("log", [False, True])
def test_any_numbers_can_be_drawn(ys: list[float], log: bool) -> None:
    points = [(float(k), y) for k, y in enumerate(ys)]
    figure = svg.line_chart("k", "t", "s", [svg.Line("l", points)], x_name="x", y_name="y", log=log)
    assert "nan" not in figure.markup
    assert "inf" not in figure.markup

"""``hypergrad clean``: from a file to a folder of results, also with inputs that were made to do harm."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hypergrad as hg
from hypergrad import cli
from hypergrad.commands.clean import Clean
from hypergrad.commands.saved import load_command
from hypergrad.errors import InputError, MissingDependencyError, NoisyTrustedWarning

ROOT = Path(__file__).parents[2]
FILES = {
    *("suspicious.csv", "cleaned_indices.npy", "result.json", "report.html", "previews.json"),
    *("checkpoint.pt", "command.json", "run.json", "history.jsonl"),
}
QUICK: dict[str, Any] = {"steps": 3, "seeds": 1, "quiet": True}


def write_table(path: Path, names: tuple[str, str] = ("a", "b"), rows: int = 240, wrong: int = 40) -> Path:
    """Two clouds of points; the first labels are wrong."""
    draw = np.random.default_rng(0)
    right = np.arange(rows) % 2
    points = draw.normal(size=(rows, 2)) + 4 * right[:, None]
    given = np.where(np.arange(rows) < wrong, 1 - right, right)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "right", "kind"])
        for point, truth, label in zip(points, right, given, strict=True):
            writer.writerow([*point, names[truth], names[label]])
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "points.csv")


@pytest.fixture
def checked(tmp_path: Path) -> Path:
    return write_table(tmp_path / "checked.csv", rows=100, wrong=0)


def result_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return found


def rows_of(out: Path) -> list[int]:
    with (out / "suspicious.csv").open(encoding="utf-8", newline="") as file:
        return [int(row["index"]) for row in csv.DictReader(file)]


def test_a_table_is_cleaned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "points.csv")
    trusted = write_table(tmp_path / "checked.csv", rows=101, wrong=0)
    text = trusted.read_text().splitlines()
    trusted.write_text(
        "\n".join([text[0], *(re.sub(r"^[^,]*", str(n % 2 * 4 + n / 100), line) for n, line in enumerate(text[1:]))])
    )
    before = table.read_bytes(), trusted.read_bytes()
    out = tmp_path / "out"
    command = Clean(input=table, label="kind", truth="right", trusted=trusted, out=out, steps=15, seeds=1, quiet=True)
    assert command() == 0
    assert len(set(rows_of(out)) & set(range(40))) >= 36
    assert len(rows_of(out)) < 60
    assert {path.name for path in out.iterdir()} >= FILES
    result = result_of(out)
    assert (result["input"], result["examples"], result["classes"]) == (str(table), 240, ["a", "b"])
    assert result["detection"]["recall"] == 1
    kept = np.load(out / "cleaned_indices.npy")
    assert sorted([*kept.tolist(), *rows_of(out)]) == list(range(240))
    found = capsys.readouterr()
    assert f"{len(rows_of(out))} of 240 labels look wrong; open {out / 'report.html'}" in found.out
    assert "step" not in found.err
    assert (table.read_bytes(), trusted.read_bytes()) == before


def test_a_share_is_split_off_and_kept(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert Clean(input=table, label="kind", trusted=0.25, out=out, json=True, steps=3, seeds=1)() == 0
    found = capsys.readouterr()
    result = json.loads(found.out)
    assert result == result_of(out)
    assert result["examples"] == 180
    assert "right by assumption only" in found.err
    assert any("right by assumption only" in note for note in result["notes"])
    kept = np.load(out / "cleaned_indices.npy")
    assert sorted([*kept.tolist(), *rows_of(out)]) == list(range(240))
    assert result["kept"] == len(kept)


def test_a_missing_package_of_the_report_loses_nothing(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(directory: Path) -> Path:
        raise MissingDependencyError("a report", "jinja2", 'pip install "hypergrad-engine[report]"')

    monkeypatch.setattr("hypergrad.report.write_report", missing)
    out = tmp_path / "out"
    assert Clean(input=table, label="kind", trusted=0.2, out=out, **QUICK)() == 0
    found = capsys.readouterr()
    assert "hypergrad-engine[report]" in found.err
    assert f"open {out / 'suspicious.csv'}" in found.out
    assert not (out / "report.html").exists()


def test_a_folder_of_images_is_cleaned(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "pictures" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shade = draw.integers(0, 100, (6, 6)) + (150 if (number % 2) != (number < 6) else 0)
        image.fromarray(shade.astype(np.uint8)).save(folder / f"{number:02d}.png")
    (tmp_path / "pictures" / "dark" / "01.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert Clean(input=tmp_path / "pictures", trusted=0.3, out=out, **QUICK)() == 0
    with (out / "files.csv").open(encoding="utf-8", newline="") as file:
        names = {int(row["index"]): row["file"] for row in csv.DictReader(file)}
    assert len(names) == 61
    assert names[0] == "dark/00.png"
    assert names[60] == "light/59.png"
    assert result_of(out)["skipped"][0]["index"] == "dark/01.png"
    for entry in json.loads((out / "previews.json").read_text(encoding="utf-8")):
        assert entry["image"].startswith("data:image/png;base64,")
        assert entry["given"] == names[entry["index"]].partition("/")[0]


def test_the_folder_is_not_overwritten_unasked(table: Path, checked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.txt"):
        Clean(input=table, label="kind", trusted=0.2, out=out, **QUICK)()
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert Clean(input=table, label="kind", trusted=0.2, out=out, overwrite=True, **QUICK)() == 0
    assert (out / "mine.txt").read_text() == "mine"


def test_an_interrupted_run_goes_on_to_the_same_result(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Clean(input=table, label="kind", trusted=0.2, out=tmp_path / "whole", seeds=2, steps=6, quiet=True)
    assert command() == 0

    class Stop(hg.Callback):
        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            if progress.step == 4:
                raise KeyboardInterrupt

    usual = Clean._callbacks
    monkeypatch.setattr(
        Clean, "_callbacks", lambda self: lambda seed: [*usual(self)(seed), *([Stop()] if seed == 1 else [])]
    )
    flags = f"{table} --label kind --trusted 0.2 --seeds 2 --steps 6 --checkpoint-every 3 --quiet"
    status = cli.main(["clean", *shlex.split(flags), "--out", str(tmp_path / "cut")])
    assert status == 130
    assert not (tmp_path / "cut" / "result.json").exists()
    monkeypatch.undo()
    assert cli.main(["resume", str(tmp_path / "cut")]) == 0
    for name in ("suspicious.csv", "cleaned_indices.npy"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    capsys.readouterr()
    assert cli.main(["resume", str(tmp_path / "cut"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 192


def test_a_command_that_was_saved_is_the_same(table: Path, tmp_path: Path) -> None:
    command = Clean(input=table, label="kind", features=("x", "y"), trusted=0.2, out=tmp_path / "out", **QUICK)
    command()
    assert load_command(tmp_path / "out") == command


@pytest.mark.parametrize(
    "names",
    [
        ("<script>alert(1)</script>", "</table><img src=x onerror=alert(1)>"),
        ("../../escape", "/etc/passwd"),
        ("=cmd|' /C calc'!A0", "@SUM(1+1)"),
        ("\x1b[2J\x07red", "line\r\nbreak"),
        ("naïve ☃", "\u202eright to left"),
    ],
    ids=["html", "paths", "formulas", "control", "unicode"],
)
def test_names_of_classes_break_no_output(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "points.csv", names)
    before = sorted(tmp_path.parent.iterdir())
    out = tmp_path / "out"
    assert Clean(input=table, label="kind", features=("x", "y"), trusted=0.25, out=out, **QUICK)() == 0
    assert sorted(tmp_path.parent.iterdir()) == before
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    with (out / "suspicious.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert not row["given_label"].startswith(("=", "@"))
    printed = capsys.readouterr()
    assert not set(printed.out + printed.err) & {"\x1b", "\x07", "\r"}
    assert len(result_of(out)["classes"]) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--label knd", "did you mean 'kind'?"),
        ("--trusted 0.1", "--label"),
        ("--label kind", "--trusted 0.1"),
        ("--label kind --trusted 0.9", "at most 0.5"),
        ("--label kind --trusted chekced.csv", "did you mean 'checked.csv'?"),
        ("--label kind --trusted 0.1 --impute mean", "median"),
        ("--label kind --trusted 0.1 --seeds 0", "seeds"),
        ("--label kind --trusted 0.1 --lable kind", "did you mean '--label'?"),
    ],
)
def test_mistakes_are_said_on_one_screen(
    flags: str,
    words: str,
    table: Path,
    checked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status: Any = cli.main(["clean", "points.csv", *shlex.split(flags), "--out", "out"])
    except SystemExit as stopped:  # of arguments that cannot be parsed
        status = stopped.code
    assert status == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert len(printed.err.splitlines()) < 15
    assert not (tmp_path / "out").exists()


def test_a_noisy_trusted_part_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "points.csv", rows=400, wrong=140)
    command = Clean(input=table, label="kind", features=("x", "y"), trusted=0.4, out=tmp_path / "out", **QUICK)
    command()
    assert "warning: " in capsys.readouterr().err
    assert result_of(tmp_path / "out")["trusted"]["noisy"] is True
    assert issubclass(NoisyTrustedWarning, Warning)


def test_every_flag_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    from hypergrad.commands.fields import fields_of

    assert [field.name for field in fields_of(Clean) if not field.help] == []


PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/cleaning.md")}
PYTHON = re.compile(r'^python -c "\n(.*?)^"$', re.MULTILINE | re.DOTALL)


def commands(page: str) -> Iterator[str]:
    """The shell commands of a page that use ``hypergrad clean``, and those of the same blocks."""
    for block in re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if "hypergrad clean" in block or "hypergrad resume" in block:
            code = PYTHON.search(block)
            if code:
                yield code[0]
            yield from (line.partition("  #")[0] for line in PYTHON.sub("", block).splitlines() if line.strip())


@pytest.mark.parametrize("name", PAGES)
def test_documented_commands_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    found = list(commands(PAGES[name]))
    assert sum(line.startswith("hypergrad clean") for line in found) >= 1
    for line in found:
        if line.startswith("python"):
            code = PYTHON.fullmatch(line)
            assert code is not None
            subprocess.run([sys.executable, "-c", code[1]], check=True, timeout=120)
            continue
        words = shlex.split(line)
        assert words[0] == "hypergrad", line
        quick = ["--steps", "2", "--seeds", "1"] if words[1] == "clean" else []
        assert cli.main([*words[1:], *quick]) == 0, line
        assert "labels look wrong; open " in capsys.readouterr().out
    assert (tmp_path / "digits" / "report.html").exists()

"""Shells complete commands, flags, choices and paths."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hypergrad.cli import main
from hypergrad.commands.fields import fields_of
from hypergrad.commands.flags import EVERYWHERE
from hypergrad.commands.table import COMMANDS, load

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "hypergrad", "completion", "bash"], capture_output=True, text=True, check=True
    )
    path = tmp_path_factory.mktemp("completion") / "hypergrad.bash"
    path.write_text(done.stdout, encoding="utf-8")
    return path


ASK = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_TYPE=9
complete -p hypergrad > /dev/null || exit 1
function=$(complete -p hypergrad | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
"$function" hypergrad "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(script: Path, *words: str, folder: Path) -> set[str]:
    """What bash offers for the last word."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    done = subprocess.run(
        [bash, "--norc", "-c", ASK, "bash", str(script), "hypergrad", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


def test_bash_completes_commands(script: Path, tmp_path: Path) -> None:
    assert set(COMMANDS) <= completed(script, "", folder=tmp_path)
    assert completed(script, "che", folder=tmp_path) == {"check"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_bash_completes_the_flags_of_a_command(name: str, script: Path, tmp_path: Path) -> None:
    flags = {field.shown for field in fields_of(load(name)) if not field.positional}
    assert flags | set(EVERYWHERE) <= completed(script, name, "--", folder=tmp_path)


def test_bash_completes_choices_and_paths(script: Path, tmp_path: Path) -> None:
    assert completed(script, "demo", "--model", "", folder=tmp_path) == {"linear", "mlp"}
    assert completed(script, "completion", "", folder=tmp_path) >= {"bash", "zsh", "fish"}
    (tmp_path / "results").mkdir()
    (tmp_path / "rest.csv").touch()
    assert completed(script, "demo", "--out", "re", folder=tmp_path) == {"results", "rest.csv"}
    assert completed(script, "resume", "res", folder=tmp_path) == {"results", "rest.csv"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_every_command_and_flag(shell: str, capsys: Capture) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert name in text
        for field in fields_of(load(name)):
            if not field.positional:
                assert field.shown.removeprefix("--") in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_that_is_there_can_read_its_script(shell: str, capsys: Capture, tmp_path: Path) -> None:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    subprocess.run([found, "-n", str(path)], check=True, timeout=60)


def test_without_shtab_the_way_to_install_it_is_told(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert 'pip install "hypergrad-engine[cli]"' in capsys.readouterr().err


def test_a_shell_that_is_not_known_is_refused(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "bahs"])
    assert "did you mean 'bash'?" in capsys.readouterr().err

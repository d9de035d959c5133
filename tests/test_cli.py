"""The command line: an exit status for every outcome, three parts for every mistake, and no traceback unasked."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hypergrad as hg
from hypergrad.cli import main
from hypergrad.errors import InputError, MissingDependencyError, NonFiniteError

NUMBER = itertools.count()

HEAD = """
import torch
import hypergrad as hg

def inner(params, hparams):
    return ((params["w"] - hparams["x"].sin()) ** 2).sum()

def outer(params, hparams):
    return (params["w"] ** 2).sum()

def point():
    return {"w": torch.zeros(3, dtype=torch.float64)}, {"x": torch.ones(3, dtype=torch.float64)}

def right():
    return hg.Problem(inner, outer), *point(), hg.Implicit(hg.CG(), inner=hg.Newton())

def named():
    return dict(zip(("problem", "params", "hparams", "algorithm"), right()))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Return a function that writes a module into the working directory and returns its name."""
    monkeypatch.chdir(tmp_path)
    names = []

    def write(source: str, head: str = HEAD) -> str:
        name = f"cli_case_{next(NUMBER)}"
        (tmp_path / f"{name}.py").write_text(head + textwrap.dedent(source))
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


Write = Callable[[str], str]
Capture = pytest.CaptureFixture[str]


def refused(status: int, capsys: Capture, error: str, *said: str) -> None:
    """Check that a mistake was answered with three parts on the error stream, and with nothing else."""
    out, err = capsys.readouterr()
    assert status == 2, err
    assert out == ""
    assert "Traceback" not in err
    first, *rest = err.splitlines()
    assert first.startswith("hypergrad ")
    assert first.endswith(f": {error}")
    assert [line.split(": ")[0] for line in rest] == ["passed", "expected", "do"]
    assert all(line.split(": ", 1)[1] for line in rest)
    for words in said:
        assert words in err, err


# ----------------------------------------------------------------------------------------------------------------------
# Verdicts
# ----------------------------------------------------------------------------------------------------------------------


def test_the_version_is_printed(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"hypergrad {hg.__version__}\n"


@pytest.mark.parametrize("factory", ["right", "named"])
def test_a_check_that_agrees_is_a_success(factory: str, module: Write, capsys: Capture) -> None:
    assert main(["check", f"{module('')}:{factory}"]) == 0
    out, err = capsys.readouterr()
    assert "agrees (20 training runs)" in out.splitlines()[-1]
    assert err == ""


def test_a_check_that_disagrees_is_a_failure_with_a_cause(module: Write, capsys: Capture) -> None:
    name = module(
        """
        def wrong():
            problem, params, hparams, _ = right()
            return problem, params, hparams, hg.Implicit(hg.Identity(0.1), inner=hg.Newton())
        """
    )
    assert main(["check", f"{name}:wrong"]) == 1
    out, err = capsys.readouterr()
    assert "disagrees (" in out
    assert "likely cause: this estimator is biased" in out
    assert err == ""


def test_a_check_that_cannot_decide_has_a_status_of_its_own(module: Write, capsys: Capture) -> None:
    name = module(
        """
        import random

        own = random.Random(0)

        def shaky():
            def train(params, hparams):
                return {"w": hparams["x"].sin() + 1e-3 * own.random()}
            problem, params, hparams, _ = right()
            return problem, params, hparams, hg.Implicit(inner=hg.Training(train))
        """
    )
    assert main(["check", f"{name}:shaky"]) == 3
    out, _ = capsys.readouterr()
    assert "undecided (" in out
    assert "two training runs with the same hyperparameters differ" in out


def test_the_options_reach_the_check(module: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fake(**given: Any) -> Any:
        seen.update(given)
        return types.SimpleNamespace(passed=True)

    monkeypatch.setattr(sys.modules["hypergrad.check"], "check", fake)
    name = module("")
    assert main(["check", f"{name}:right", "--directions", "5", "--tolerance", "0.25", "--seed", "7"]) == 0
    assert (seen["directions"], seen["tolerance"], seen["seed"]) == (5, 0.25, 7)
    assert main(["check", f"{name}:right"]) == 0
    assert (seen["directions"], seen["tolerance"], seen["seed"]) == (3, 1e-3, 0)


def test_a_factory_may_set_any_argument_of_the_check(module: Write, capsys: Capture) -> None:
    name = module(
        """
        def more():
            return {**named(), "steps": (1e-2, 1e-3), "directions": 1}
        """
    )
    assert main(["check", f"{name}:more"]) == 0
    assert "agrees (6 training runs)" in capsys.readouterr().out


def test_the_working_directory_is_searched_and_the_search_path_is_put_back(module: Write, capsys: Capture) -> None:
    before = list(sys.path)
    assert main(["check", f"{module('')}:right"]) == 0
    assert sys.path == before
    assert main(["check", "no_such_module_anywhere:right"]) == 2
    assert sys.path == before


# ----------------------------------------------------------------------------------------------------------------------
# Misuse
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["right", "module.right", ":right", "module:", ":", ""])
def test_a_name_without_both_halves_is_refused(name: str, capsys: Capture) -> None:
    refused(main(["check", name]), capsys, "InputError", "expected: module:factory", "colon")


def test_a_module_that_is_not_there_is_refused(module: Write, capsys: Capture) -> None:
    refused(
        main(["check", "no_such_module:right"]), capsys, "InputError", "'no_such_module'", str(Path.cwd()), "spelling"
    )


def test_a_module_that_misses_another_one_names_it(module: Write, capsys: Capture) -> None:
    name = module("import no_such_dependency")
    refused(main(["check", f"{name}:right"]), capsys, "InputError", name, "'no_such_dependency' was not found")


def test_a_function_that_is_not_there_is_refused(module: Write, capsys: Capture) -> None:
    name = module("")
    refused(main(["check", f"{name}:rihgt"]), capsys, "InputError", name, "'rihgt'", "spelling")


def test_the_nearest_function_is_named(module: Write, capsys: Capture) -> None:
    refused(main(["check", f"{module('')}:rihgt"]), capsys, "InputError", "did you mean 'right'?")


def test_a_name_that_is_no_function_is_refused(module: Write, capsys: Capture) -> None:
    name = module("number = 3")
    refused(main(["check", f"{name}:number"]), capsys, "InputError", "'number'", "a function without arguments")


@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        ("None", "NoneType"),
        ("right()[:3]", "tuple"),
        ("list(right())", "list"),
        ("hg.Problem(inner, outer)", "Problem"),
    ],
)
def test_a_factory_that_returns_something_else_is_refused(
    returned: str, kind: str, module: Write, capsys: Capture
) -> None:
    name = module(f"def factory():\n    return {returned}\n")
    refused(
        main(["check", f"{name}:factory"]),
        capsys,
        "InputError",
        kind,
        "(problem, params, hparams, algorithm)",
        "factory",
    )


def test_a_factory_that_leaves_something_out_says_what(module: Write, capsys: Capture) -> None:
    name = module("def factory():\n    given = named()\n    del given['hparams']\n    return given\n")
    refused(main(["check", f"{name}:factory"]), capsys, "InputError", "'hparams'")


def test_a_factory_that_sets_an_unknown_argument_is_refused(module: Write, capsys: Capture) -> None:
    name = module("def factory():\n    return {**named(), 'directons': 4}\n")
    refused(main(["check", f"{name}:factory"]), capsys, "InputError", "'directons'", "did you mean 'directions'?")


def test_a_factory_that_wants_arguments_is_refused(module: Write, capsys: Capture) -> None:
    name = module("def factory(size):\n    return right()\n")
    refused(main(["check", f"{name}:factory"]), capsys, "InputError", "(size)", "a function without arguments")


@pytest.mark.parametrize(
    "option", [("--directions", "0"), ("--directions", "-1"), ("--tolerance", "0"), ("--tolerance", "nan")]
)
def test_an_option_out_of_range_is_refused(option: tuple[str, str], module: Write, capsys: Capture) -> None:
    refused(main(["check", f"{module('')}:right", *option]), capsys, "InputError", f"{option[0][2:]}=")


def test_a_mistake_in_the_problem_is_the_users_and_keeps_its_three_parts(module: Write, capsys: Capture) -> None:
    name = module(
        """
        def misspelt():
            _, params, hparams, algorithm = right()
            return hg.Problem(lambda params, hparams: params["v"].sum(), outer), params, hparams, algorithm
        """
    )
    refused(main(["check", f"{name}:misspelt"]), capsys, "TreeError", "passed: params['v']", "['w']")


def test_nan_keeps_its_three_parts(module: Write, capsys: Capture) -> None:
    name = module(
        """
        def nan():
            problem, params, hparams, algorithm = right()
            return problem.with_outer(lambda p, h: outer(p, h) * float("nan")), params, hparams, algorithm
        """
    )
    refused(main(["check", f"{name}:nan"]), capsys, "NonFiniteError", "outer")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["chekc"],
        ["check"],
        ["check", "a:b", "c:d"],
        ["check", "a:b", "--directions", "many"],
        ["check", "a:b", "--nonsense"],
        ["demo", "--model", "resnet"],
        ["demo", "--steps", "few"],
    ],
)
def test_arguments_that_cannot_be_parsed_are_refused(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert "usage: hypergrad" in err
    assert "Traceback" not in err


# ----------------------------------------------------------------------------------------------------------------------
# Errors of the user's own code
# ----------------------------------------------------------------------------------------------------------------------

RAISING = {
    "at-import": "raise RuntimeError('my mistake')\ndef factory():\n    pass\n",
    "in-factory": "def factory():\n    raise RuntimeError('my mistake')\n",
    "in-objective": (
        "def bad(params, hparams):\n    raise RuntimeError('my mistake')\n"
        "def factory():\n    return hg.Problem(bad, outer), *right()[1:]\n"
    ),
}


@pytest.mark.parametrize("place", RAISING)
def test_an_error_of_the_users_own_is_a_failure_that_says_where(place: str, module: Write, capsys: Capture) -> None:
    name = module(RAISING[place])
    source = (Path.cwd() / f"{name}.py").read_text()
    line = next(number for number, text in enumerate(source.splitlines(), 1) if "my mistake" in text)
    assert main(["check", f"{name}:factory"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "hypergrad check: RuntimeError: my mistake"
    assert f"{name}.py, line {line}" in err
    assert "--traceback" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("place", RAISING)
def test_the_traceback_is_shown_when_it_is_asked_for(place: str, module: Write, capsys: Capture) -> None:
    name = module(RAISING[place])
    assert main(["check", f"{name}:factory", "--traceback"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "raise RuntimeError('my mistake')" in err


def test_a_syntax_error_is_the_users_own(module: Write, capsys: Capture) -> None:
    name = module("def factory(:\n")
    assert main(["check", f"{name}:factory"]) == 1
    err = capsys.readouterr().err
    assert "SyntaxError" in err
    assert "Traceback" not in err


def test_code_that_exits_with_success_is_no_agreement(module: Write, capsys: Capture) -> None:
    name = module("import sys\ndef factory():\n    sys.exit(0)\n")
    try:
        status: Any = main(["check", f"{name}:factory"])
    except SystemExit as error:
        status = error.code
    assert status not in (0, None)


def test_ctrl_c_has_a_status_of_its_own(module: Write, capsys: Capture) -> None:
    name = module("def factory():\n    raise KeyboardInterrupt\n")
    assert main(["check", f"{name}:factory"]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hypergrad: interrupted\n")


# ----------------------------------------------------------------------------------------------------------------------
# The demo
# ----------------------------------------------------------------------------------------------------------------------


def demo(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    fake = types.ModuleType("hypergrad.demo")
    fake.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hypergrad.demo", fake)


def test_the_options_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    demo(monkeypatch, lambda **given: seen.update(given))
    options = ["--model", "mlp", "--data", "fashion", "--seed", "3", "--out", "there", "--root", "here", "--steps", "9"]
    assert main(["demo", *options]) == 0
    assert len(seen.pop("callbacks")) == 1, "the command is saved once the run begins"
    assert seen == {
        "model": "mlp",
        "data": "fashion",
        "seed": 3,
        "out": Path("there"),
        "root": Path("here"),
        "steps": 9,
        "progress": True,
        "stream": None,
        "resume": False,
    }


def test_the_demo_runs_without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    demo(monkeypatch, lambda **given: seen.update(given))
    assert main(["demo"]) == 0
    assert (seen["model"], seen["data"], seen["seed"], seen["steps"]) == ("linear", "mnist", 0, None)


@pytest.mark.parametrize("kind", [InputError, NonFiniteError, MissingDependencyError])
def test_an_error_of_the_library_in_the_demo_keeps_its_three_parts(
    kind: type[hg.errors.HypergradError], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def run(**given: Any) -> None:
        raise kind("no such file", "a file", "download it")

    demo(monkeypatch, run)
    refused(main(["demo"]), capsys, kind.__name__, "passed: no such file", "expected: a file", "do: download it")


def test_an_unexpected_error_in_the_demo_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def run(**given: Any) -> None:
        raise OSError("disk full")

    demo(monkeypatch, run)
    assert main(["demo"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("hypergrad demo: OSError: disk full")
    assert "Traceback" not in err


def test_ctrl_c_in_the_demo_has_the_same_status(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def run(**given: Any) -> None:
        raise KeyboardInterrupt

    demo(monkeypatch, run)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "hypergrad: interrupted\n"


# ----------------------------------------------------------------------------------------------------------------------
# As a process
# ----------------------------------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-c", "import sys; from hypergrad.cli import main; sys.exit(main())"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}


def test_a_process_ends_with_the_status(module: Write) -> None:
    name = module("")
    done = subprocess.run(
        [*COMMAND, "check", f"{name}:rihgt"], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("hypergrad check: InputError\npassed: ")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_process_that_gets_ctrl_c_ends_with_the_status_and_without_a_traceback(module: Write) -> None:
    name = module(
        "import signal, time\n"
        "def factory():\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(100)\n"
    )
    process = subprocess.Popen(
        [*COMMAND, "check", f"{name}:factory"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert errors == "hypergrad: interrupted\n"


@pytest.mark.parametrize("name", ["hypergrad", "hypergrad.cli"])
def test_the_package_runs_as_a_module(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, "--version"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"hypergrad {hg.__version__}\n")

"""Flags made of fields: kinds of values, defaults, mistakes, and settings from a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypergrad.commands import configuration
from hypergrad.commands.fields import fields_of, flag, positional
from hypergrad.commands.flags import parse, parser_of, usage
from hypergrad.errors import InputError


@dataclass(frozen=True)
class Every:
    """All kinds of fields.

    Second paragraph, about :class:`~hypergrad.Trainer` and ``None``.

    Attributes:
        source: where the data is,
            on a second line.
        second: may be left out.
        label: a column.
        count: a number.
        rate: another number.
        limit: a number that may be missing.
        model: one of two.
        order: one of two numbers.
        seeds: several.
        columns: several names.
        trusted: a fraction or a file.
        out: a folder.
        root: another one.
        quiet: say nothing.
        guard: watch over it.
        budget: of time.

    Example:
        $ hypergrad every x
    """

    source: Path
    second: str | None = positional(None)
    label: str = "label"
    count: int = 3
    rate: float = 0.5
    limit: int | None = 5
    model: Literal["linear", "mlp"] = "linear"
    order: Literal[0, 1] = 0
    seeds: tuple[int, ...] = (0, 1)
    columns: tuple[str, ...] = ()
    trusted: float | Path | None = None
    out: Path = Path("there")
    root: Path | None = None
    quiet: bool = False
    guard: bool = True
    budget: float = flag(1.0, metavar="SECONDS")

    def __call__(self) -> int:
        return 0


def parsed(*arguments: str) -> Any:
    return parse("every", Every, arguments).command


def refused(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        parsed(*arguments)
    return str(caught.value)


def test_nothing_but_what_is_required_gives_the_defaults() -> None:
    assert parsed("data.csv") == Every(Path("data.csv"))


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--label", "y"], {"label": "y"}),
        (["--label=y=z"], {"label": "y=z"}),
        (["--count", "-2"], {"count": -2}),
        (["--rate", "1e-3"], {"rate": 1e-3}),
        (["--rate", "3"], {"rate": 3.0}),
        (["--limit", "none"], {"limit": None}),
        (["--limit", "7"], {"limit": 7}),
        (["--model", "mlp"], {"model": "mlp"}),
        (["--order", "1"], {"order": 1}),
        (["--seeds", "4", "5", "6"], {"seeds": (4, 5, 6)}),
        (["--seeds", "4", "--seeds", "5"], {"seeds": (4, 5)}),
        (["--columns", "a", "b c"], {"columns": ("a", "b c")}),
        (["--trusted", "0.1"], {"trusted": 0.1}),
        (["--trusted", "good.csv"], {"trusted": Path("good.csv")}),
        (["--out", "none"], {"out": Path("none")}),
        (["--root", "none"], {"root": Path("none")}),
        (["--quiet"], {"quiet": True}),
        (["--no-quiet"], {"quiet": False}),
        (["--no-guard"], {"guard": False}),
        (["more"], {"second": "more"}),
        (["--budget", "60"], {"budget": 60.0}),
    ],
)
def test_a_flag_sets_its_field(arguments: list[str], changed: dict[str, Any]) -> None:
    expected = Every(Path("data.csv"), **changed)
    found = parsed("data.csv", *arguments)
    assert found == expected
    assert [type(value) for value in vars(found).values()] == [type(value) for value in vars(expected).values()]


def test_places_may_stand_before_between_and_after_flags() -> None:
    expected = Every(Path("a"), "b", count=4, label="y")
    for order in (
        ["a", "b", "--count", "4", "--label", "y"],
        ["--count", "4", "a", "--label", "y", "b"],
        ["--count", "4", "--label", "y", "a", "b"],
        ["a", "--count", "4", "b", "--label", "y"],
    ):
        assert parsed(*order) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["without SOURCE"]),
        (["a", "b", "c"], ["c, which is more than", "every SOURCE [SECOND] [flags]"]),
        (["a", "--modle", "mlp"], ["'--model'"]),
        (["a", "--quite"], ["'--quiet'"]),
        (["a", "--coun", "3"], ["--coun,", "'--count'"]),
        (["a", "--model", "lin"], ["--model 'lin'", "'linear' or 'mlp'", "did you mean 'linear'"]),
        (["a", "--order", "2"], ["--order '2'", "0 or 1"]),
        (["a", "--count", "many"], ["--count 'many'", "a whole number", "3"]),
        (["a", "--count", "1.5"], ["a whole number"]),
        (["a", "--rate", "fast"], ["a number"]),
        (["a", "--seeds", "0", "x"], ["--seeds 'x'", "a whole number"]),
        (["a", "--seeds"], ["--seeds", "at least one argument"]),
        (["a", "--count"], ["--count", "expected one argument"]),
        (["a", "--out", ""], ["--out ''", "a path"]),
        (["a", "--quiet=yes"], ["--quiet"]),
    ],
)
def test_a_mistake_says_what_was_passed_and_what_was_expected(arguments: list[str], said: list[str]) -> None:
    text = refused(*arguments)
    for part in said:
        assert part in text
    assert "do: see " in text


def test_usage_is_one_line_and_help_tells_defaults() -> None:
    assert usage("every", Every) == "hypergrad every SOURCE [SECOND] [flags]"
    text = " ".join(parser_of("every", Every).format_help().split())
    assert "Second paragraph, about Trainer and None." in text
    assert "--count N a number (default: 3)" in text
    assert "SOURCE where the data is, on a second line" in text
    assert "--seeds N [N ...] several (default: 0 1)" in text
    assert "--model {linear,mlp} one of two (default: linear)" in text
    assert "--guard, --no-guard watch over it (default: on)" in text
    assert "--budget SECONDS" in text
    assert "--trusted X|PATH" in text


def test_a_percent_sign_in_a_default_or_a_text_is_a_percent_sign() -> None:
    @dataclass(frozen=True)
    class Percent:
        """Percent.

        Attributes:
            share: 50 % of it.
        """

        share: str = "%d"

    assert "50 % of it (default: %d)" in " ".join(parser_of("percent", Percent).format_help().split())


def test_a_field_without_a_form_on_the_command_line_is_a_mistake_of_the_author() -> None:
    @dataclass(frozen=True)
    class Odd:
        table: dict[str, int] = field(default_factory=dict)

    with pytest.raises(TypeError, match="no form on the command line"):
        fields_of(Odd)
    with pytest.raises(TypeError, match="no dataclass"):
        fields_of(int)


# ----------------------------------------------------------------------------------------------------------------------
# Settings from a file
# ----------------------------------------------------------------------------------------------------------------------

# what a terminal and UTF-8 can carry: no lone surrogates, and no null characters, which no path holds
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
# the name of a path keeps its form only where pathlib does not shorten it
paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(Path)
numbers = st.integers(-(2**70), 2**70)


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        Every,
        source=paths,
        second=st.none() | text,
        label=text,
        count=numbers,
        rate=st.floats(allow_nan=False),
        limit=st.none() | numbers,
        model=st.sampled_from(["linear", "mlp"]),
        order=st.sampled_from([0, 1]),
        seeds=st.lists(numbers).map(tuple),
        columns=st.lists(text).map(tuple),
        trusted=st.none() | st.floats(allow_nan=False) | paths,
        out=paths,
        root=st.none() | paths,
        quiet=st.booleans(),
        guard=st.booleans(),
    )
)
def test_what_is_printed_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, command: Every) -> None:
    path = tmp_path_factory.mktemp("config") / "c.toml"
    path.write_text(configuration.written(command), encoding="utf-8")
    assert parsed("--config", str(path)) == command


def test_flags_go_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('source = "a"\ncount = 7\nquiet = true\nseeds = [8]\nrate = 2\nlimit = "none"\n', encoding="utf-8")
    found = parsed("--config", str(path), "--count", "9", "--no-quiet")
    assert found == Every(Path("a"), count=9, quiet=False, seeds=(8,), rate=2.0, limit=None)
    assert parsed("b", "--config", str(path), "--seeds", "1").source == Path("b")
    assert parsed("b", "--config", str(path), "--seeds", "1").seeds == (1,)


def test_numbers_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(configuration.written(Every(Path("a"), rate=math.inf, budget=math.nan)), encoding="utf-8")
    found = parsed("--config", str(path))
    assert found.rate == math.inf
    assert math.isnan(found.budget)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("cuont = 3", ["'cuont'", "did you mean 'count'"]),
        ('count = "3"', ["--count '3'", "a whole number"]),
        ("count = true", ["--count True", "a whole number"]),
        ("count = 1.5", ["--count 1.5"]),
        ("seeds = 3", ["--seeds 3", "a list"]),
        ('seeds = ["a"]', ["--seeds 'a'"]),
        ("label = 3", ["--label 3", "text"]),
        ("out = 3", ["--out 3", "a path"]),
        ('out = ""', ["--out ''"]),
        ('model = "lin"', ["did you mean 'linear'"]),
        ("order = true", ["--order True"]),
        ("quiet = 1", ["--quiet 1", "true or false"]),
        ("[clean]\ncount = 3", ["'clean'"]),
        ("count = ", ["cannot be read", "a TOML file"]),
        ("count = 3\ncount = 4", ["cannot be read"]),
    ],
)
def test_a_file_with_a_mistake_is_refused(content: str, said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(content, encoding="utf-8")
    message = refused("a", "--config", str(path))
    for part in said:
        assert part in message


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused("a", "--config", str(tmp_path / "none.toml"))
    assert "cannot be read" in refused("a", "--config", str(tmp_path))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in refused("a", "--config", str(tmp_path / "binary.toml"))

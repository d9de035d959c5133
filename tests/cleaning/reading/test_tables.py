"""CSV and Parquet: what becomes of columns, and what is refused with which words."""

from __future__ import annotations

import csv as csv_module
import datetime
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies

from hypergrad.cleaning.reading import memory, read
from hypergrad.cleaning.reading.labels import name_of
from hypergrad.cleaning.trusted import read_parts
from hypergrad.errors import InputError

BASIC = "size,colour,kind\n1,red,a\n2,blue,b\n4,red,a\n9,blue,b\n"


@pytest.fixture
def csv(tmp_path: Path) -> Any:
    """Writes a CSV file and returns its path."""

    def write(content: str | bytes, name: str = "table.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **{"label": "kind", **options})
    return str(caught.value)


def test_numbers_are_standardised_and_categories_get_an_input_each(csv: Any) -> None:
    found = read(csv(BASIC), label="kind")
    size = np.array([1.0, 2, 4, 9])
    expected = np.stack([(size - size.mean()) / size.std(), [0, 1, 0, 1], [1, 0, 1, 0]], axis=1)  # blue, red
    assert torch.allclose(found.inputs, torch.from_numpy(expected).float(), atol=1e-6)
    assert (found.classes, found.labels.tolist(), found.kind) == (("a", "b"), [0, 1, 0, 1], "table")
    assert found.index.tolist() == [0, 1, 2, 3]
    assert found.preview is not None
    assert found.preview(2) == {"row": {"size": 4.0, "colour": "red"}}


def test_reading_changes_nothing(csv: Any) -> None:
    path = csv(BASIC)
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())
    read(path, label="kind")
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())) == before


def test_parquet_gives_what_csv_gives(csv: Any, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = csv(BASIC)
    frame = pandas.read_csv(path)
    frame["colour"] = frame["colour"].astype("category")
    frame.to_parquet(tmp_path / "table.parquet")
    one, other = read(path, label="kind"), read(tmp_path / "table.parquet", label="kind")
    assert torch.equal(one.inputs, other.inputs)
    assert (one.classes, one.labels.tolist()) == (other.classes, other.labels.tolist())
    assert one.preview is not None
    assert other.preview is not None
    assert one.preview(1) == other.preview(1)


def test_columns_that_are_no_features_are_left_out_and_named(csv: Any) -> None:
    rows = [
        f"{row},{row * row},same,2024-01-{row % 28 + 1:02d},u{row * 7919},a few words about item {row},{row % 3},"
        f"{'ab'[row % 2]}"
        for row in range(60)
    ]
    text = "id,area,fixed,day,code,story,grade,kind\n" + "\n".join(rows) + "\n"
    found = read(csv(text), label="kind")
    assert found.inputs.shape == (60, 2)
    notes = " ".join(found.notes)
    for words in ("constant: 'fixed'", "identifiers", "'id', 'code'", "free text", "'story'", "dates", "'day'"):
        assert words in notes
    assert read(csv(text), label="kind", features=["id", "grade"]).inputs.shape == (60, 2)


def test_rare_categories_share_an_input(csv: Any) -> None:
    colours = ["red"] * 30 + ["blue"] * 20 + [f"odd{n % 5}" for n in range(10)]
    rows = "".join(f"{colour},{'ab'[n % 2]}\n" for n, colour in enumerate(colours))
    found = read(csv("colour,kind\n" + rows), label="kind", categories=2)
    assert found.inputs.shape == (60, 3)
    assert found.inputs.sum(dim=0).tolist() == [20, 30, 10]
    assert any("'colour'" in note and "--categories" in note for note in found.notes)


def test_missing_values_are_an_error_that_names_them(csv: Any) -> None:
    text = "size,colour,kind\n1,red,a\n,blue,b\n4,,a\n9,blue,b\nNA,red,a\n"
    message = refused(csv(text))
    for words in ("'size': 2 rows, first 1, 4", "'colour': 1 rows, first 2", "--impute median", "most-frequent"):
        assert words in message
    filled = read(csv(text), label="kind", impute="median")
    size = np.array([1.0, 4, 4, 9, 4])
    assert torch.allclose(filled.inputs[:, 0], torch.from_numpy((size - size.mean()) / size.std()).float(), atol=1e-6)
    assert filled.inputs[2, 1:].tolist() == [1, 0]  # blue, which comes first among the most frequent
    assert filled.preview is not None
    assert filled.preview(1)["row"]["size"] is None
    often = read(csv("size,kind\n1,a\n1,b\n5,a\n9,b\n,a\n"), label="kind", impute="most-frequent")
    assert often.inputs[4, 0] == often.inputs[0, 0]


def test_a_number_column_with_a_few_words_names_the_cell(csv: Any) -> None:
    rows = "".join(f"{n * 1.5},{'ab'[n % 2]}\n" for n in range(200))
    message = refused(csv("size,kind\n" + rows + "oops,a\n"))
    assert "'oops' in row 200" in message


def test_infinite_numbers_are_refused(csv: Any) -> None:
    assert "infinite number in the column 'size', row 1" in refused(csv("size,kind\n1,a\ninf,b\n3,a\n4,b\n"))
    assert "column 'size', row 1" in refused(csv("size,kind\n1,a\n1e60,b\n3,a\n4,b\n"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty"),
        ("\n\n  \n", "empty"),
        ("size,kind\n", "header and no row"),
        ("size,size,kind\n1,2,a\n2,3,b\n", "several columns of the same name: 'size'"),
        ("size,kind\n1,a\n2,b,c\n", "line 3, with 3 cells"),
        ("size,kind\n1,a\n2\n", "line 3, with 1 cells"),
        ('size,kind\n1,"a\n2,b\n', "double quote"),
        ("size,kind\n1,a\n2,a\n", "one class 'a'"),
        ("size,kind\n1,\n2,\n", "no label at all"),
        ("size,knd\n1,a\n2,b\n", "did you mean 'knd'?"),
        ("kind\na\nb\n", "without a usable feature"),
        (b"size,kind\n1,\xe9t\xe9\n2,b\n", "--encoding"),
        (b"PAR1\x00\x00", "Parquet"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x80\x04\x95\x00\x00 pickle", "pickle"),
        (b"a,kind\n1\x00,b\n", "NUL"),
        ("size,kind\n" + "".join(f"{n % 9},2024-01-{n % 9 + 1:02d}\n" for n in range(60)), "dates"),
        ("size,kind\n" + "".join(f"{n % 9},{n / 7}\n" for n in range(60)), "cut into classes"),
        ("size,kind\n" + "".join(f"{n % 9},x{n}\n" for n in range(60)), "different values"),
        ("size,kind\n1," + "x" * 300 + "\n2,b\n", "300 characters"),
    ],
)
def test_what_is_no_table_is_refused_in_words(csv: Any, content: str | bytes, words: str) -> None:
    assert words in refused(csv(content))


def test_a_missing_label_is_asked_for(csv: Any) -> None:
    message = refused(csv(BASIC), label=None)
    assert "'size', 'colour', 'kind'" in message
    assert "--label" in message


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + BASIC,
        BASIC.replace(",", ";"),
        BASIC.replace(",", "\t"),
        BASIC.replace("\n", "\r\n"),
        BASIC + "\n\n",
        ("\ufeff" + BASIC).encode("utf-16-le"),
        BASIC.replace("size", '"size"'),
    ],
    ids=["mark", "semicolon", "tab", "windows", "blank lines", "utf-16", "quoted"],
)
def test_every_dialect_gives_the_same(csv: Any, content: str | bytes) -> None:
    assert torch.equal(read(csv(content), label="kind").inputs, read(csv(BASIC, "basic.csv"), label="kind").inputs)


CELL = strategies.text(alphabet=strategies.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(strategies.lists(strategies.tuples(CELL, CELL), min_size=2, max_size=12), strategies.sampled_from(",;\t|"))
def test_whatever_the_csv_module_writes_is_read_or_refused(rows: list[tuple[str, str]], separator: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv_module.writer(file, delimiter=separator)
            writer.writerow(["number", "other", "kind"])
            writer.writerows((n * n, *row) for n, row in enumerate(rows))
        try:
            found = read(path, label="kind", features="number")
        except InputError:
            assert len({name_of(label) for _, label in rows} - {None}) < 2
            return
    expected = [name for _, label in rows if (name := name_of(label)) is not None]
    assert [found.classes[label] for label in found.labels.tolist()] == expected


def test_other_encodings_are_read_when_named(csv: Any) -> None:
    path = csv("size,kind\n1,été\n2,b\n3,été\n".encode("cp1252"))
    assert read(path, label="kind", encoding="cp1252").classes == ("b", "été")
    assert "encoding='latn-1' (did you mean 'latin-1'?)" in refused(path, encoding="latn-1")
    assert "encoding='zip'" in refused(path, encoding="zip")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["0.0", "1.0", "0.0"], ("0", "1")),
        (["0", "1.0", "0"], ("0", "1")),
        (["10", "9", "9"], ("9", "10")),
        (["True", "False", "True"], ("False", "True")),
        (["01", "1", "1"], ("01", "1")),
        ([" a ", "a", "b"], ("a", "b")),
        (["../../etc/passwd", "<b>x</b>", "=1+1"], ("../../etc/passwd", "<b>x</b>", "=1+1")),
        (["a\x1b[2Jb", "\u202eevil", "c"], ("\\u202eevil", "a\\x1b[2Jb", "c")),
    ],
)
def test_names_of_classes(csv: Any, labels: list[str], classes: tuple[str, ...]) -> None:
    rows = "".join(f'{n},"{label}"\n' for n, label in enumerate(labels * 2))
    found = read(csv("size,kind\n" + rows), label="kind", features="size")
    assert sorted(found.classes) == sorted(classes)
    if classes[0].isdigit():
        assert found.classes == classes


def test_rows_without_a_label_are_left_out_and_listed(csv: Any) -> None:
    found = read(csv("size,kind\n1,a\n2,\n4,b\n8,nan\n9,a\n"), label="kind")
    assert found.index.tolist() == [0, 2, 4]
    assert [(one.place, one.reason) for one in found.skipped] == [("row 1", "no label"), ("row 3", "no label")]
    assert found.preview is not None
    assert found.preview(1) == {"row": {"size": 4.0}}


def test_types_of_parquet_labels_and_columns(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    day = datetime.date(2024, 1, 1)
    columns = {
        "whole": [1, 2, None, 7],
        "flag": [True, False, None, True],
        "when": [day, day, day, None],
        "nested": [[1], [2], [], None],
        "raw": [b"a", b"b", b"c", b"d"],
        "kind": [1.0, 0.0, 1.0, 0.0],
    }
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    found = read(path, label="kind", impute="median")
    assert found.classes == ("0", "1")
    assert found.inputs.shape == (4, 2)
    assert "dates (turn them into numbers to use them): 'when'" in " ".join(found.notes)
    assert "neither numbers nor text: 'nested', 'raw'" in " ".join(found.notes)
    parquet.write_table(pyarrow.table({"x": [1.0, 2, 3], "kind": [day, day, datetime.date(2024, 1, 2)]}), path)
    assert "dates" in refused(path)


@pytest.mark.parametrize("content", [b"", b"size,kind\n1,a\n", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    assert "expected: a" in refused(path)


def test_a_parquet_file_that_grows_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"x": np.zeros(2_000_000), "kind": np.zeros(2_000_000, np.int8)}), path)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(memory, "available", lambda: 2**25)
    monkeypatch.setattr("hypergrad.cleaning.reading.parquet.ArrowTable.chunks", None)
    assert "2,000,000 rows with 2 columns, which would take about 61.0 MiB" in refused(path)


def test_ten_thousand_columns(csv: Any) -> None:
    names = ",".join(f"c{n}" for n in range(10_000))
    rows = "".join(",".join(str((n * k) % 7) for n in range(10_000)) + f",{'ab'[k % 2]}\n" for k in range(4))
    found = read(csv(f"{names},kind\n{rows}"), label="kind")
    assert found.inputs.shape[0] == 4
    assert 8_000 < found.inputs.shape[1] <= 10_000
    assert found.preview is not None
    assert len(found.preview(0)["row"]) == 30


def test_ten_gigabytes_are_refused_before_they_are_read(csv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv("size,area,kind\n" + "1.25,2.5,a\n2.5,3.5,b\n" * 60_000)
    with path.open("r+b") as file:
        file.truncate(10 * 2**30)  # sparse: takes no space
    monkeypatch.setattr(memory, "available", lambda: 8 * 2**30)
    message = refused(path)
    assert "10.00 GiB" in message
    assert "would take about" in message
    assert "6.4 GiB" in message
    assert "--features" in message


def test_a_table_of_many_pieces_is_streamed(csv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "size,colour,kind\n" + "".join(f"{n * 0.5},{'xyz'[n % 3]},{'ab'[n % 2]}\n" for n in range(1000))
    whole = read(csv(text), label="kind")
    monkeypatch.setattr("hypergrad.cleaning.reading.delimited.CELLS", 7)
    assert torch.equal(read(csv(text), label="kind").inputs, whole.inputs)


def test_a_line_without_end_is_refused_before_it_is_held(csv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypergrad.cleaning.reading.delimited.MOST_CHARACTERS", 1000)
    assert "a line of 1,000 characters or more" in refused(csv("size,kind\n1,a\n" + "2" * 5000))
    assert "a line of 1,000 characters or more" in refused(csv("size" * 300))


def test_control_groups_limit_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() > 3000


def test_truth_is_read_and_is_no_feature(csv: Any) -> None:
    text = "size,right,kind\n1,a,a\n2,b,a\n4,a,a\n9,c,b\n"
    found = read(csv(text), label="kind", truth="right")
    assert (found.classes, found.inputs.shape[1]) == (("a", "b", "c"), 1)
    assert found.truth is not None
    assert found.truth.tolist() == [0, 1, 0, 2]
    assert "row 1" in refused(csv(text.replace("2,b,a", "2,,a")), truth="right")
    assert "in two places" in refused(csv(text), truth="kind")


@pytest.mark.parametrize(
    "options",
    [{"impute": "mean"}, {"categories": 0}, {"vocabulary": 0}, {"size": 0}, {"separator": ";;"}, {"separator": '"'}],
)
def test_settings_are_checked(csv: Any, options: dict[str, Any]) -> None:
    assert next(iter(options)) in refused(csv(BASIC), **options)


def test_paths_that_cannot_be_read(tmp_path: Path, csv: Any) -> None:
    csv(BASIC)
    assert "did you mean 'table.csv'?" in refused(tmp_path / "tabel.csv")
    assert "ending '.xlsx'" in refused(csv("x", "t.xlsx"))
    assert "unpack it first" in refused(csv("x", "t.csv.gz"))
    assert "neither a file nor a folder" in refused(Path("/dev/null"))


def test_a_trusted_file_is_encoded_like_the_training_part(csv: Any) -> None:
    path = csv(BASIC)
    other = csv("kind,colour,size\na,green,4\nb,red,9\na,blue,2.5\n", "trusted.csv")
    from hypergrad.cleaning.reading import Reading

    parts = read_parts(path, other, Reading(label="kind"))
    assert torch.equal(parts.trusted.inputs[1, :1], parts.train.inputs[3, :1])
    assert parts.trusted.inputs[0, 1:].tolist() == [0, 0]  # green is unknown
    assert parts.trusted.inputs[1, 1:].tolist() == [0, 1]
    assert parts.trusted.classes == parts.train.classes
    assert not parts.split_off
    with pytest.raises(InputError, match="class 'A'"):
        read_parts(path, csv("kind,colour,size\nA,red,9\n", "o.csv"), Reading(label="kind"))
    with pytest.raises(InputError, match="'colour'"):
        read_parts(path, csv("kind,color,size\na,red,9\n", "o.csv"), Reading(label="kind"))
    with pytest.raises(InputError, match="a text in the column 'size'"):
        read_parts(path, csv("kind,colour,size\na,red,big\n", "o.csv"), Reading(label="kind"))

"""Text columns: weighted counts, embeddings that are handed over, and what memory allows."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from hypergrad.cleaning.reading import Reading, memory, read
from hypergrad.cleaning.trusted import read_parts
from hypergrad.errors import InputError

ROWS = (("good fine film", "pos"), ("bad film", "neg"), ("fine fine day", "pos"), ("bad bad day", "neg"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text("text,stars,kind\n" + "".join(f"{text},{n},{kind}\n" for n, (text, kind) in enumerate(ROWS)))
    return path


def test_weighted_counts_are_what_the_formula_says(path: Path) -> None:
    pytest.importorskip("sklearn")
    found = read(path, label="kind", text="text")
    words = sorted({word for text, _ in ROWS for word in text.split()})
    expected = []
    for text, _ in ROWS:
        counts = Counter(text.split())
        documents = {word: sum(word in other.split() for other, _ in ROWS) for word in words}
        line = [
            (1 + math.log(counts[word])) * (math.log(5 / (1 + documents[word])) + 1) if counts[word] else 0.0
            for word in words
        ]
        norm = math.sqrt(sum(value**2 for value in line))
        expected.append([value / norm for value in line])
    assert torch.allclose(found.inputs, torch.tensor(expected), atol=1e-6)
    assert (found.kind, found.classes) == ("text", ("neg", "pos"))
    assert found.preview is not None
    assert found.preview(1) == {"text": "bad film"}


def test_the_vocabulary_is_capped(path: Path) -> None:
    found = read(path, label="kind", text="text", vocabulary=2)
    assert found.inputs.shape == (4, 2)
    assert "2 most frequent words" in found.notes[0]


def test_rows_without_text_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,kind\nfine day,a\n,b\nbad day,b\nfine film,\n")
    found = read(path, label="kind", text="text")
    assert found.index.tolist() == [0, 2]
    assert [(one.place, one.reason) for one in found.skipped] == [("row 1", "no text"), ("row 3", "no label")]


def test_texts_without_words(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,kind\n!,a\n?!,b\n")
    with pytest.raises(InputError, match="none has a word"):
        read(path, label="kind", text="text")


def test_counts_that_memory_cannot_hold(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 200)
    with pytest.raises(InputError, match="--vocabulary"):
        read(path, label="kind", text="text")


class Lengths(torch.nn.Module):
    """The length of each text, through a layer that must not drop anything."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.9)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.calls: list[int] = []

    def forward(self, texts: list[str]) -> torch.Tensor:
        self.calls.append(len(texts))
        lengths = torch.tensor([[float(len(text)), float(text.count(" "))] for text in texts])
        dropped: torch.Tensor = self.drop(lengths)
        return dropped * self.scale


def test_an_embedding_that_is_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,kind\n" + "".join(f"word {'x' * (n % 7)},{'ab'[n % 2]}\n" for n in range(600)))
    module = Lengths()
    module.drop.eval()
    found = read(path, label="kind", text="text", embed=module)
    assert found.inputs.tolist() == [[4.0 + (1 + n % 7 if n % 7 else 0), 1.0 if n % 7 else 0.0] for n in range(600)]
    assert not found.inputs.requires_grad
    assert module.calls == [256, 256, 88]
    assert (module.training, module.drop.training) == (True, False)


@pytest.mark.parametrize("made", [lambda texts: torch.zeros(1, 2), lambda texts: torch.zeros(len(texts)), len])
def test_embeddings_of_another_shape(path: Path, made: Any) -> None:
    with pytest.raises(InputError, match="one row for each text"):
        read(path, label="kind", text="text", embed=made)


def test_an_embedding_needs_texts(path: Path) -> None:
    with pytest.raises(InputError, match="text="):
        read(path, label="kind", embed=Lengths())
    with pytest.raises(InputError, match="features"):
        read(path, label="kind", text="text", features=["stars"])
    with pytest.raises(InputError, match="did you mean 'text'"):
        read(path, label="kind", text="txt")


def test_words_are_counted_in_the_training_part_only(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "trusted.csv"
    other.write_text("text,kind\nnew words,pos\nbad film,neg\n")
    parts = read_parts(path, other, Reading(label="kind", text="text"))
    assert parts.trusted.inputs[0].abs().sum() == 0
    assert torch.equal(parts.trusted.inputs[1], parts.train.inputs[1])

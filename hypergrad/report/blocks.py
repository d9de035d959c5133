"""What a report is made of: sections of text, facts, tables, figures, notices and a gallery, before any markup."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, final

Level = Literal["good", "note", "warning", "bad"]


@final
@dataclass(frozen=True)
class Text:
    """A paragraph, or, with ``lines``, text whose line breaks count."""

    text: str
    lines: bool = False
    kind: str = "text"


@final
@dataclass(frozen=True)
class Facts:
    """Names with values."""

    pairs: list[tuple[str, str]]
    kind: str = "facts"


@final
@dataclass(frozen=True)
class Table:
    """Rows under a caption; the first column names the row, numbers stand right."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    folded: bool = False
    kind: str = "table"


@final
@dataclass(frozen=True)
class Legend:
    """How one series of a figure is drawn: a number for its colour and dashes, and its name."""

    style: int
    name: str
    shape: Literal["line", "area", "dot"] = "line"


@final
@dataclass(frozen=True)
class Figure:
    """A picture with its text alternative and its data.

    Attributes:
        title: what it shows.
        summary: what it says, in a sentence: the text alternative.
        markup: the SVG, made by :mod:`hypergrad.report.svg`, with all text escaped.
        legend: the series, where there is more than one.
        data: the numbers.
        hint: how to read it.
    """

    title: str
    summary: str
    markup: str
    legend: list[Legend]
    data: Table
    hint: str = ""
    kind: str = "figure"


@final
@dataclass(frozen=True)
class Notice:
    """Something that a reader should know, and what to do about it."""

    level: Level
    title: str
    text: str
    remedy: str = ""
    kind: str = "notice"


@final
@dataclass(frozen=True)
class Card:
    """One example of a gallery: a picture, a text or a row of a table."""

    title: str
    facts: list[tuple[str, str]]
    image: str = ""
    text: str = ""
    row: list[tuple[str, str]] = field(default_factory=list)
    mark: str = ""


@final
@dataclass(frozen=True)
class Gallery:
    """Examples to look at."""

    caption: str
    cards: list[Card]
    kind: str = "gallery"


Block = Text | Facts | Table | Figure | Notice | Gallery


@final
@dataclass(frozen=True)
class Section:
    """A part of the page under a headline."""

    key: str
    title: str
    blocks: list[Block]


@final
@dataclass(frozen=True)
class Key:
    """One of the three numbers on top."""

    name: str
    value: str
    remark: str
    level: Level = "note"


@final
@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: the headline.
        kind: what ran, in words.
        status: how it stands, in a few words.
        level: whether that is good.
        going: whether the run goes on.
        when: when it ran.
        keys: the numbers that matter.
        sections: everything else.
    """

    title: str
    kind: str
    status: str
    level: Level
    going: bool
    when: str
    keys: list[Key]
    sections: list[Section]

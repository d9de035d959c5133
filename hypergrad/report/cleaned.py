"""Sections about cleaned data: what was found, how sure that is, and the most suspicious examples to look at."""

from __future__ import annotations

import csv
import io
import re
from itertools import pairwise
from typing import Any

from hypergrad.report import words
from hypergrad.report.blocks import Block, Card, Facts, Gallery, Key, Notice, Section, Table, Text
from hypergrad.report.pictures import picture
from hypergrad.report.reading import Folder, listing, mapping, number, text_of
from hypergrad.report.svg import Line, histogram, line_chart, thinned

MOST_CARDS, MOST_ROWS = 60, 30
MOST_CSV = 2**25
TRAININGS = {
    "clean": "all labels right",
    "noisy": "all labels as given",
    "cleaned": "with what was learned",
    "oracle": "wrong labels left out",
}


def findings(result: dict[str, Any]) -> Section:
    """Say what was found."""
    pairs = [("Input", text_of(result["input"], 300))] if result.get("input") else []
    for key, name in (("examples", "Examples"), ("suspicious", "Suspicious")):
        if (value := number(result.get(key))) is not None:
            pairs.append((name, words.shown(value)))
    classes = listing(result.get("classes"))
    if classes:
        names = ", ".join(text_of(name, 40) for name in classes[:20])
        pairs.append(("Classes", f"{len(classes)}: {names}{', …' if len(classes) > 20 else ''}"))
    if (noise := _estimate(result.get("noise_estimate"))) is not None:
        pairs.append(("Wrong labels, estimated", noise))
    blocks: list[Block] = [Facts(pairs)] if pairs else []
    accuracy = accuracies(result)
    if accuracy:
        rows = [[text_of(name, 60), words.percent(value), TRAININGS.get(name, "")] for name, value in accuracy.items()]
        blocks.append(
            Table(f"Accuracy of the same training on {_judged_on(result)}", ["training", "accuracy", "on"], rows)
        )
        if (share := recovered(accuracy)) is not None:
            blocks.append(
                Text(
                    f"Cleaning makes good {words.percent(share, 0)} of what the wrong labels cost (from noisy to "
                    "oracle)."
                )
            )
    counts = [mapping(entry) for entry in listing(result.get("class_counts"))[:50]]
    if counts:
        rows = [[text_of(entry.get("class"), 60), *_share(entry)] for entry in counts]
        blocks.append(Table("Classes", ["given label", "examples", "suspicious", "share"], rows))
    said = mapping(result.get("trusted")).get("note")
    notes = [note for note in listing(result.get("notes"))[:20] if note != said]
    blocks += [Notice("note", "Note", text_of(note, 1000)) for note in notes]
    return Section(
        "findings",
        "What was found",
        blocks or [Notice("note", "No result yet", "result.json says nothing about the data.")],
    )


def weights(result: dict[str, Any]) -> Section:
    """Show how the weights are distributed, and how well they find wrong labels where the truth is known."""
    blocks: list[Block] = []
    given = mapping(result.get("histogram"))
    edges = [value for edge in listing(given.get("edges")) if (value := number(edge)) is not None]
    groups = {
        text_of(name.replace("_", " "), 40): [number(value) or 0.0 for value in counts]
        for name, counts in sorted(given.items(), key=lambda item: item[0] in ("suspicious", "wrong"))
        if name != "edges" and isinstance(counts, list) and len(counts) == len(edges) - 1
    }
    if groups and len(edges) <= 500 and all(low < high for low, high in pairwise(edges)):
        totals = ", ".join(f"{words.shown(sum(counts))} {name}" for name, counts in groups.items())
        blocks.append(
            histogram(
                "weights-figure",
                "Learned weights of the training examples",
                f"Weights of {totals} examples.",
                edges,
                groups,
                x_name="weight (0: ignored, 1: fully used)",
                y_name="examples",
                mark=number(mapping(result.get("settings")).get("threshold")) or number(result.get("threshold")),
                hint="A good separation has two hills: wrong labels on the left, right ones on the right. The "
                "dashed line is the threshold.",
            )
        )
    detection = mapping(result.get("detection"))
    if detection:
        blocks += _detection(detection)
    else:
        blocks.append(Text("Which labels are truly wrong is not known here, so there is no precision or recall."))
    return Section("weights", "Weights and detection", blocks)


def _detection(detection: dict[str, Any]) -> list[Block]:
    names = {"precision": "Precision", "recall": "Recall", "f1": "F1", "auc": "Area under the ROC curve"}
    known = [(name, f"{value:.3f}") for key, name in names.items() if (value := number(detection.get(key))) is not None]
    blocks: list[Block] = []
    curve = []
    for point in listing(detection.get("curve")):
        if isinstance(point, list) and len(point) >= 2 and None not in (pair := (number(point[0]), number(point[1]))):
            curve.append((pair[0] or 0.0, pair[1] or 0.0))
    if len(curve) > 1:
        here = [(number(detection.get("recall")), number(detection.get("precision")))]
        lines = [Line("all thresholds", thinned(curve), end=False)]
        if None not in here[0]:
            lines.append(Line("the threshold in use", [(here[0][0] or 0.0, here[0][1] or 0.0)], style=1))
        at = ", ".join(f"{name} {value}" for name, value in known) or "all thresholds"
        blocks.append(
            line_chart(
                "precision-recall",
                "Precision against recall of the suspects",
                f"{at}.",
                lines,
                x_name="recall: share of wrong labels found",
                y_name="precision: share of suspects that are wrong",
                unit=(0.0, 1.0),
                hint="The nearer the curve comes to the upper right corner, the better suspects and clean "
                "examples are told apart.",
            )
        )
    return [*blocks, Facts(known)] if known else blocks


def trust(result: dict[str, Any]) -> Section:
    """Say how far to trust the outcome: the trusted part's own noise, and agreement between seeds."""
    blocks: list[Block] = []
    trusted = mapping(result.get("trusted"))
    if trusted:
        pairs = [("Trusted examples", words.shown(number(trusted.get("examples"))))]
        noise, interval = (
            number(trusted.get("noise_estimate")),
            [number(value) for value in listing(trusted.get("interval"))],
        )
        within = (
            f" (between {words.percent(interval[0])} and {words.percent(interval[1])})"
            if len(interval) == 2 and None not in interval
            else ""
        )
        pairs.append(("Wrong labels among them, estimated", f"{words.percent(noise)}{within}"))
        blocks.append(Facts(pairs))
        if trusted.get("note"):
            blocks.append(Text(text_of(trusted["note"], 1000)))
        if noise is not None and noise > 0.1:
            blocks.append(
                Notice(
                    "warning",
                    "The trusted part is noisy",
                    f"About {words.percent(noise)} of its labels look wrong, and what it says decides which "
                    "examples are suspicious.",
                    "Have its labels checked by a person, or pass another trusted part.",
                )
            )
    else:
        blocks.append(Text("Nothing was recorded about the trusted examples."))
    stability = mapping(result.get("stability"))
    if stability:
        blocks.append(
            Facts(
                [(text_of(name.replace("_", " "), 60), _plain(value)) for name, value in list(stability.items())[:20]]
            )
        )
        blocks.append(
            Text("Stability compares the rankings of several seeds: near 1 they agree, near 0 the ranking is chance.")
        )
    return Section("trust", "How far to trust it", blocks)


def suspects(folder: Folder) -> Section:
    """Show the most suspicious examples."""
    cards, refused = [], 0
    for entry in (folder.value("previews.json", list) or [])[:MOST_CARDS]:
        card = _card(mapping(entry))
        cards.append(card)
        refused += "image" in mapping(entry) and not card.image
    blocks: list[Block] = []
    if refused:
        blocks.append(
            Notice(
                "warning",
                "Pictures left out",
                f"{words.count(refused, 'picture')} could not be shown: not a PNG or JPEG, or too large.",
                "Write previews as small PNG data addresses.",
            )
        )
    if cards:
        blocks.append(
            Gallery(
                f"The {len(cards)} most suspicious examples" if len(cards) > 1 else "The most suspicious example", cards
            )
        )
    header, rows = _suspicious(folder)
    if rows:
        blocks.append(
            Table(
                f"First {len(rows)} of suspicious.csv" if len(rows) == MOST_ROWS else "suspicious.csv",
                header,
                rows,
                folded=bool(cards),
            )
        )
    return Section(
        "suspects",
        "Suspicious examples",
        blocks or [Notice("note", "Nothing to show", "There is neither previews.json nor suspicious.csv.")],
    )


def skipped(result: dict[str, Any]) -> list[Section]:
    """Say which inputs were left out."""
    entries = [mapping(entry) for entry in listing(result.get("skipped"))]
    if not entries:
        return []
    rows = [
        [text_of(entry.get("file", entry.get("index", "?")), 200), text_of(entry.get("reason", ""), 300)]
        for entry in entries[:50]
    ]
    more = f" The first {len(rows)} of them:" if len(entries) > len(rows) else ""
    text = Text(
        f"{words.count(len(entries), 'input')} could not be used and {'was' if len(entries) == 1 else 'were'} "
        f"left out.{more}"
    )
    return [Section("skipped", "Inputs that were skipped", [text, Table("Skipped inputs", ["input", "reason"], rows)])]


def keys(result: dict[str, Any]) -> list[Key]:
    """Return the three numbers that matter for cleaned data."""
    found = []
    suspicious, examples = number(result.get("suspicious")), number(result.get("examples"))
    if suspicious is not None:
        of = f"of {words.shown(examples)} examples ({words.percent(suspicious / examples)})" if examples else "examples"
        found.append(Key("Suspicious labels", words.shown(suspicious), of))
    accuracy = accuracies(result)
    if "cleaned" in accuracy:
        parts = [f"{words.percent(accuracy['noisy'])} before" if "noisy" in accuracy else ""]
        parts.append(f"oracle {words.percent(accuracy['oracle'])}" if "oracle" in accuracy else "")
        good = accuracy["cleaned"] > accuracy.get("noisy", 0.0)
        found.append(
            Key(
                "Accuracy, cleaned",
                words.percent(accuracy["cleaned"]),
                ", ".join(filter(None, parts)),
                "good" if good else "warning",
            )
        )
    detection = mapping(result.get("detection"))
    if (f1 := number(detection.get("f1"))) is not None:
        precision, recall = (words.shown(number(detection.get(name)), 3) for name in ("precision", "recall"))
        remark = f"precision {precision}, recall {recall}"
        found.append(Key("F1 of the suspects", words.shown(f1, 3), remark))
    elif (noise := _estimate(result.get("noise_estimate"))) is not None:
        found.append(Key("Wrong labels, estimated", noise, "share of the training labels"))
    trusted = number(mapping(result.get("trusted")).get("noise_estimate"))
    if trusted is not None and len(found) < 3:
        found.append(
            Key(
                "Noise of the trusted part", words.percent(trusted), "estimated", "warning" if trusted > 0.1 else "good"
            )
        )
    return found[:3]


def accuracies(result: dict[str, Any]) -> dict[str, float]:
    """Return the accuracy of each training, from 0 to 1."""
    known = ((name, number(entry)) for name, entry in mapping(result.get("accuracy")).items() if name != "examples")
    return {name: value for name, value in known if value is not None and 0 <= value <= 1}


def _judged_on(result: dict[str, Any]) -> str:
    """Say which examples accuracies were measured on."""
    found = mapping(result.get("accuracy"))
    many = number(found.get("examples"))
    count = "held-out examples" if many is None else words.count(int(many), "example")
    return f"{count}, {text_of(found['on'], 100)}" if isinstance(found.get("on"), str) else count


def _share(entry: dict[str, Any]) -> list[str]:
    examples, suspicious = number(entry.get("examples")), number(entry.get("suspicious"))
    share = words.percent(suspicious / examples) if examples and suspicious is not None else ""
    return [words.shown(examples), words.shown(suspicious), share]


def recovered(accuracy: dict[str, float]) -> float | None:
    """Return which share of the gap from noisy to oracle cleaning closes; ``None`` where there is no gap."""
    if {"noisy", "cleaned", "oracle"} <= accuracy.keys() and accuracy["oracle"] > accuracy["noisy"]:
        return (accuracy["cleaned"] - accuracy["noisy"]) / (accuracy["oracle"] - accuracy["noisy"])
    return None


def _card(entry: dict[str, Any]) -> Card:
    facts = [
        (label, text_of(entry[key], 60))
        for key, label in (("given", "given"), ("proposed", "proposed"))
        if entry.get(key) is not None
    ]
    if (weight := number(entry.get("weight"))) is not None:
        facts.append(("weight", words.shown(weight, 3)))
    row = [(text_of(name, 60), text_of(value, 120)) for name, value in list(mapping(entry.get("row")).items())[:12]]
    text = text_of(entry["text"], 600) if isinstance(entry.get("text"), str) else ""
    wrong = entry.get("wrong")
    mark = "" if not isinstance(wrong, bool) else "label is wrong" if wrong else "label is right"
    return Card(
        f"Example {text_of(entry.get('index', '?'), 40)}", facts, picture(entry.get("image")) or "", text, row, mark
    )


def _suspicious(folder: Folder) -> tuple[list[str], list[list[str]]]:
    content = folder.content("suspicious.csv", MOST_CSV)
    if content is None:
        return [], []
    folder.read.append("suspicious.csv")
    found = []
    try:
        for row in csv.reader(io.StringIO(content.decode("utf-8", "replace"))):
            found.append([text_of(cell, 60) for cell in row[:8]])
            if len(found) > MOST_ROWS:
                break
    except csv.Error as error:
        folder.problems.append(f"suspicious.csv cannot be read ({error})")
    header, rows = (found[0], found[1:]) if found else ([], [])
    rows = [[*map(_short, row), *[""] * (len(header) - len(row))][: len(header)] for row in rows]
    return header, rows


def _short(cell: str) -> str:
    """Return a cell of a table, a long fraction with three digits."""
    return words.shown(float(cell), 3) if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", cell) else cell


def _estimate(value: Any) -> str | None:
    found = number(mapping(value).get("estimate")) if isinstance(value, dict) else number(value)
    return None if found is None else words.percent(found)


def _plain(value: Any) -> str:
    found = number(value)
    return words.shown(found) if found is not None else text_of(value, 200)

"""What the demo shows: a table, and a picture of the learned weights and of the most suspicious images."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypergrad.demo.data import CLASSES, SIDE, NoisySplit, require

ROWS, COLUMNS = 4, 6
RIGHT, WRONG = "#0072b2", "#d55e00"  # a pair that colour-blind readers tell apart
TABLE = """
{title}
{line}
test accuracy: clean    (all labels right)                 {clean:>8.1%}
test accuracy: noisy    (half of the labels wrong)         {noisy:>8.1%}
test accuracy: cleaned  (noisy, with the learned weights)  {cleaned:>8.1%}
test accuracy: oracle   (wrong labels left out)            {oracle:>8.1%}
detected wrong labels: precision                           {precision:>8.3f}
detected wrong labels: recall                              {recall:>8.3f}
detected wrong labels: F1                                  {f1:>8.3f}
detected wrong labels: area under the ROC curve            {auc:>8.3f}
seconds                                                    {seconds:>8.1f}
{line}
The test set was used once, for the four accuracies above, and never for tuning: the
weights were tuned on the validation set. A label counts as detected where its weight
is below {threshold:g}; which labels are wrong was looked up for the scores only.
"""


def table(title: str, result: dict[str, Any], *, threshold: float) -> str:
    """Return the table that a run ends with.

    Args:
        title: its first line.
        result: what ``result.json`` holds.
        threshold: the weight below which a label counts as corrupted.
    """
    return TABLE.format(title=title, line="-" * 67, threshold=threshold, **{**result, **result["accuracy"]})


def draw(path: Path, parts: NoisySplit, weights: Tensor, *, data: str, threshold: float, title: str) -> None:
    """Write a PNG: a histogram of the weights, and the 24 training images with the lowest weights.

    Args:
        path: the file.
        parts: the examples.
        weights: one weight for each training example.
        data: the data set, for the names of its classes.
        threshold: the weight below which a label counts as corrupted.
        title: a line above everything.
    """
    figure = require("matplotlib.figure").Figure(figsize=(14, 7.4), dpi=120, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.07)
    figure.suptitle(title, fontsize=15)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25], wspace=0.03)
    _histogram(left.subplots(), parts.corrupted, weights, threshold)
    _suspects(right, parts, weights, CLASSES[data])
    figure.savefig(path, format="png")


def previews(parts: NoisySplit, weights: Tensor, *, data: str, most: int = 60) -> list[dict[str, Any]]:
    """Return the most suspicious training images for a report, lowest weight first, as PNG data addresses.

    Args:
        parts: the examples.
        weights: one weight for each training example.
        data: the data set, for the names of its classes.
        most: how many.
    """
    images = (parts.train.images + parts.mean).reshape(-1, SIDE, SIDE)
    found = []
    for row in torch.argsort(weights, stable=True)[:most].tolist():
        png = io.BytesIO()
        require("matplotlib.image").imsave(png, images[row].numpy(), cmap="gray_r", vmin=0, vmax=1, format="png")
        found.append(
            {
                "index": int(parts.index[0][row]),
                "given": CLASSES[data][int(parts.train.labels[row])],
                "proposed": None,
                "weight": float(weights[row]),
                "wrong": bool(parts.corrupted[row]),
                "image": "data:image/png;base64," + base64.b64encode(png.getvalue()).decode(),
            }
        )
    return found


def _histogram(axes: Any, corrupted: Tensor, weights: Tensor, threshold: float) -> None:
    groups = (("right", weights[~corrupted], RIGHT), ("corrupted", weights[corrupted], WRONG))
    highest = 0.0
    for name, values, color in groups:
        label = f"{name} label ({len(values):,} examples)"
        counts, _, _ = axes.hist(values.numpy(), bins=40, range=(0, 1), color=color, alpha=0.7, label=label)
        highest = max(highest, counts.max())
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
    axes.set_title("Learned weights of the training examples", fontsize=12)
    axes.set_xlabel("weight (0: ignored, 1: fully used)", fontsize=11)
    axes.set_ylabel("number of training examples", fontsize=11)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.25 * highest)  # room for the legend
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", facecolor="white", framealpha=1, fontsize=11)


def _suspects(figure: Any, parts: NoisySplit, weights: Tensor, names: tuple[str, ...]) -> None:
    figure.suptitle(
        "The 24 most suspicious training examples, lowest weight first\n"
        "orange: the given label was corrupted; blue: it was right",
        fontsize=12,
    )
    images = (parts.train.images + parts.mean).reshape(-1, SIDE, SIDE)
    order = torch.argsort(weights, stable=True)[: ROWS * COLUMNS].tolist()
    for place, row in zip(figure.subplots(ROWS, COLUMNS).flat, order, strict=True):
        given, true = names[int(parts.train.labels[row])], names[int(parts.true_labels[row])]
        color = WRONG if parts.corrupted[row] else RIGHT
        place.imshow(images[row].numpy(), cmap="gray_r", vmin=0, vmax=1)
        place.set_xticks([])
        place.set_yticks([])
        place.set_title(f"given: {given}", fontsize=9.5, pad=4)
        place.set_xlabel(f"true: {true}", fontsize=9.5, labelpad=3, color=color)
        for spine in place.spines.values():
            spine.set(color=color, linewidth=2)

"""Directories as a Trainer, the cleaning pipeline and a comparison write them."""

from __future__ import annotations

import base64
import json
import math
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.tree import Tree

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"
"""A name that a page must show as text."""


def ridge(features: int = 6) -> tuple[hg.Problem, Tree, Tree]:
    """A small problem with one penalty for each weight."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y, x_valid, y_valid = draw(40, features), draw(40), draw(40, features), draw(40)
    problem = hg.Problem(
        inner=lambda params, hparams: (x @ params["w"] - y).square().mean(),
        outer=lambda params, hparams: (x_valid @ params["w"] - y_valid).square().mean(),
        penalty=lambda params, hparams: (hparams["log_penalty"].exp() * params["w"].square()).sum(),
    )
    start = torch.full((features,), -2.0, dtype=torch.float64)
    return problem, {"w": torch.zeros(features, dtype=torch.float64)}, {"log_penalty": start}


def train(folder: Path, *callbacks: hg.Callback, steps: int = 8, record: Any = (), **options: Any) -> hg.Fitted:
    """A run with history, and with the callbacks of ``record``."""
    problem, params, hparams = ridge()
    trainer = hg.Trainer(
        problem,
        options.pop("algorithm", hg.Implicit(hg.CG(), inner=hg.LBFGS(tolerance=1e-8))),
        hg.outer.Torch(torch.optim.Adam, lr=0.1),
        [*record, hg.History(folder / "history.jsonl"), *callbacks],
    )
    return trainer.fit(params, hparams, steps, **options)


def run_directory(folder: Path, **options: Any) -> Path:
    """A whole run of a Trainer with Record, History and Checkpoint."""
    record = hg.report.Record(folder, title="Ridge", names={"log_penalty": [f"feature {k}" for k in range(6)]})
    train(folder, hg.Checkpoint(folder, every=4), record=[record], **options)
    return folder


def png(shade: int = 128, side: int = 8, claimed: int | None = None) -> str:
    """The data address of a grey picture, which may claim to be larger than it is."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", claimed or side, claimed or side, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes([shade] * side) for _ in range(side))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def write(folder: Path, name: str, value: Any) -> None:
    """Write strict JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def cleaning_directory(folder: Path, *, kind: str = "image", truth: bool = True, name: str = "cat") -> Path:
    """What cleaning 1,000 examples leaves, with 20 previews of one kind."""
    generator = random.Random(0)
    edges = [k / 20 for k in range(21)]
    wrong = [round(120 * math.exp(-k / 2)) for k in range(20)]
    right = [round(150 * math.exp(-(19 - k) / 3)) for k in range(20)]
    shown: Callable[[int], Any] = {
        "image": lambda k: png(10 * k),
        "text": lambda k: f"A message about {name}, number {k}. " * 5,
        "row": lambda k: {"age": 20 + k, name: k / 3, "job": "clerk"},
    }[kind]
    found = {
        "kind": "cleaning",
        "input": f"{name}.csv",
        "examples": 1000,
        "classes": [name, "dog", "bird"],
        "suspicious": 231,
        "seeds": [0, 1, 2],
        "settings": {"model": "linear", "threshold": 0.5},
        "trusted": {"examples": 200, "noise_estimate": 0.15, "interval": [0.1, 0.2], "note": f"from {name}"},
        "noise_estimate": 0.24,
        "stability": {"mean_rank_correlation": 0.91},
        "accuracy": {"noisy": 0.71, "cleaned": 0.83, "oracle": 0.85, "examples": 60, "on": f"held out of {name}"},
        "class_counts": [{"class": name, "examples": 400, "suspicious": 100}],
        "notes": [f"a column of {name} was left out", f"from {name}"],
        "detection": {
            "precision": 0.9,
            "recall": 0.86,
            "f1": 0.88,
            "auc": 0.96,
            "curve": [[k / 50, 1 - 0.5 * (k / 50) ** 6] for k in range(51)],
        }
        if truth
        else None,
        "histogram": {
            "edges": edges,
            **({"wrong": wrong, "right": right} if truth else {"suspicious": wrong, "kept": right}),
        },
        "skipped": [{"file": f"{name}/7.png", "reason": "cannot be read"}, {"index": 12, "reason": "no label"}],
        "versions": {"hypergrad": hg.__version__},
        "seconds": 12.5,
    }
    write(folder, "result.json", found)
    previews = [
        {
            "index": 10 * k,
            "given": name,
            "proposed": "dog",
            "weight": k / 100,
            "wrong": generator.random() < 0.9 if truth else None,
            kind: shown(k),
        }
        for k in range(20)
    ]
    write(folder, "previews.json", previews)
    lines = ["index,given_label,proposed_label,weight,rank,stability"]
    lines += [f'{10 * k},"{name.replace(chr(34), chr(34) * 2)}",dog,{k / 100},{k},0.9' for k in range(40)]
    (folder / "suspicious.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def compare_directory(folder: Path, *, name: str = "hypergrad") -> Path:
    """What comparing eight methods leaves."""
    names = [name, "TPE", "CMA-ES", "GP", "random", "Hyperband", "grouped TPE", "shared"]
    methods = []
    for place, method in enumerate(names):
        curve = []
        for step in range(1, 31):
            value = 0.3 + 0.05 * place + math.exp(-step / (3 + place))
            curve.append([10.0 * step, value, 0.95 * value, 1.1 * value])
        last = curve[-1][1]
        methods.append(
            {
                "name": method,
                "status": "measured",
                "seeds": [0, 1, 2],
                "dimensions": 100,
                "evaluations": 30.0,
                "curve": curve,
                "curve_work": [[100 * row[0], *row[1:]] for row in curve],
                "final_validation": last,
                "final_validation_band": [0.97 * last, 1.05 * last],
                "test": {"loss": last + 0.02},
                "test_band": {"loss": [last, last + 0.05]},
                "validation_at_work": [last, 0.97 * last, 1.05 * last],
                "seconds_at_work": 3.0 + place,
                "ours_times_faster": 1.0 + place,
            }
        )
    methods.append({"name": "GP, full", "status": "infeasible", "reason": "1,000 numbers", "seeds": [], "curve": []})
    found = {
        "kind": "compare",
        "task": "regularisation",
        "title": "One penalty for each of 100 features",
        "note": "",
        "hyperparameters": 100,
        "versions": {"optuna": "5.0.0", "hypergrad": hg.__version__},
        "budget": {"seconds": 10.0, "work": 30000, "clock": "cpu"},
        "methods": methods,
    }
    write(folder, "compare.json", found)
    return folder

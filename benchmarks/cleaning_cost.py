"""Cost of cleaning against plain training of the same model, batches and epochs.

Run ``python -m benchmarks.cleaning_cost``. A convolutional network sees images of 28 by 28 pixels in ten classes;
images of random numbers cost the same as real ones. Rows of the table are online cleaning with the default settings and
with others; each is one run with one seed, without the final trainings, in alternating runs with plain training:
stochastic gradient descent with momentum on the same number of batches. Cost grows with the number of examples alike on
both sides, so a subset tells the ratio.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import alternate, ratio, write_json
from hypergrad.cleaning.models import builder, each_cross_entropy
from hypergrad.cleaning.online import OnlineRun
from hypergrad.cleaning.recipe import Recipe, algorithm_named
from hypergrad.cleaning.settings import Settings
from hypergrad.cleaning.sources import Source, sources
from hypergrad.cleaning.training import trained

ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "a move each step": {"every": 1},
    "a move each fourth step": {"every": 4},
    "weights by a network": {"weighting": "mlp"},
    "labels as well": {"correct_labels": True},
    "soba": {"algorithm": "soba"},
}


def cleaning(settings: Settings, parts: dict[str, Source]) -> Callable[[], None]:
    """Return one online run."""
    train = parts["train"]
    build = builder(None, settings.model, train.shape, len(train.classes))
    recipe = Recipe(settings, build, each_cross_entropy, len(train.classes), algorithm_named(settings, online=True))

    def run() -> None:
        online = OnlineRun(recipe, train, parts["trusted"], seed=0)
        while online.step_number < online.moves:
            online.step()

    return run


def plain(settings: Settings, parts: dict[str, Source]) -> Callable[[], None]:
    """Return plain training for as many epochs."""
    train = parts["train"]
    build = builder(None, settings.model, train.shape, len(train.classes))
    recipe = Recipe(settings, build, each_cross_entropy, len(train.classes), algorithm_named(settings, online=True))

    def run() -> None:
        trained(recipe, train, seed=0)

    return run


def main(
    examples: int = 2560, epochs: int = 4, repeats: int = 5, threads: int = 1, out: Path | None = None
) -> dict[str, Any]:
    """Measure, print and return the ratios."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples + 512, 28, 28, generator=generator)
    labels = torch.arange(examples + 512) % 10
    parts = sources(train=(inputs[:examples], labels[:examples]), trusted=(inputs[examples:], labels[examples:]))
    common: dict[str, Any] = {
        "model": "convnet",
        "lr": 0.05,
        "epochs": epochs,
        "final_epochs": epochs,
        "batch_size": min(128, examples),
    }
    rows = {name: cleaning(Settings(**common, **chosen), parts) for name, chosen in ROWS.items()}
    timings = alternate({"plain": plain(Settings(**common), parts), **rows}, repeats)
    result: dict[str, Any] = {"examples": examples, "epochs": epochs, "repeats": repeats, "ratio": {}}
    print(f"{'plain':25s} {timings['plain'].median:8.2f} CPU s (spread {timings['plain'].spread:.1%})")
    for name in rows:
        result["ratio"][name] = ratio(timings, name, "plain")
        print(f"{name:25s} {result['ratio'][name]:8.2f}x plain training (spread {timings[name].spread:.1%})")
    if out is not None:
        write_json(out, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    main(**vars(parser.parse_args()))

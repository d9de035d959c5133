"""Self-Tuning Networks and Delta-STN tune dropout and augmentation on Fashion-MNIST while the network trains.

The papers (MacKay et al., ICLR 2019; Bae and Grosse, NeurIPS 2020) tune rates of dropout and strengths of augmentation
while the network trains, and report a lower validation loss than grid search, random search and Bayesian optimization
reach in the same time. Here nine hyperparameters of a perceptron are tuned: three rates of dropout, noise, brightness,
contrast, and, as whole numbers, the largest shift and the length and number of holes that are cut out.

- **no tuning**: the start of all methods, trained for the whole budget.
- **grid search** over one rate of dropout and one strength of augmentation, **random search** and **TPE** (Optuna's
  tree-structured Parzen estimator) over all nine: eight trainings that share the budget.
- **STN** and **Delta-STN**: one run each.
- **fixed**: the values that such a run ended with, held through a training with the whole budget. The first paper
  reports that its changing values do better than their end.

The budget is equal work, counted in steps of the plain network, which noise cannot touch: a step of STN counts as 1.5
of them and one of Delta-STN as 3.4, as measured. CPU seconds stand next to it. Every method looks at the validation
loss after every 50 units of work and keeps the best look; its test loss and accuracy are those of that moment.

All methods share network, start and batches. The rate of SGD is the best of four for a training without tuning (short
or of the whole budget), of three for STN and of three for Delta-STN, with three rates for the hyperparameters of each,
all on another seed. STN needs a small one, since its gates read the hyperparameters themselves, whose size multiplies
the gradients. Initial scales, the entropy's weight, the warm-up and the kinds of optimizers are the papers'; a seed
takes two minutes.

    python -m benchmarks.papers.stn_fashion

The data are 1,000 training and 1,000 validation images of Fashion-MNIST in place of all of them, and the perceptron
stands for AlexNet and VGG; ``--full`` takes 45,000 and 5,000, and wider layers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hypergrad as hg
from benchmarks.papers.experiment import Options, Table, read_options
from hypergrad.demo.data import SIDE, load
from hypergrad.solvers import best_response as br

STN_STEP, DELTA_STEP = 1.5, 3.4
"""What a step of each costs, in steps of the plain network."""
LOOK = 50
"""Work between two looks at the validation loss."""
RATE, STN_RATE, DELTA_RATE, MOMENTUM, BATCH = 0.02, 0.002, 0.01, 0.9, 50
START: Mapping[str, tuple[float, br.Logit | br.Integer]] = {
    "dropout_input": (0.05, br.Logit(0.0, 0.9)),
    "dropout_1": (0.05, br.Logit(0.0, 0.9)),
    "dropout_2": (0.05, br.Logit(0.0, 0.9)),
    "noise": (0.05, br.Logit(0.0, 0.5)),
    "brightness": (0.05, br.Logit(0.0, 0.5)),
    "contrast": (0.05, br.Logit(0.0, 0.9)),
    "shift": (1, br.Integer(0, 4)),
    "cut_length": (4, br.Integer(0, 14)),
    "cut_holes": (1, br.Integer(0, 3)),
}
Values = Mapping[str, float]


@final
@dataclass(frozen=True)
class Data:
    """Images with their labels, and the sizes that go with them."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    width: int


def draw(options: Options, seed: int) -> Data:
    """Return three disjoint random parts of Fashion-MNIST's training images, pixels from 0 to 1 less their mean."""
    images, labels = load("fashion")
    sizes = options.pick(smoke=[200, 200, 200], default=[1000, 1000, 5000], full=[45_000, 5000, 10_000])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    parts = order[: sum(sizes)].split(sizes)
    mean = (images[parts[0]].float() / 255).mean()
    train, valid, test = ((images[part].float() / 255 - mean, labels[part]) for part in parts)
    return Data(train, valid, test, options.pick(smoke=32, default=128, full=512))


def starts() -> Values:
    """Return where all methods start."""
    return {name: start for name, (start, _) in START.items()}


def network(data: Data, hparams: br.Hyperparameters) -> nn.Sequential:
    """Return a perceptron of two hidden layers, whose rates of dropout are hyperparameters."""
    return nn.Sequential(
        br.Dropout(hparams, "dropout_input"),
        nn.Linear(SIDE**2, data.width),
        nn.ReLU(),
        br.Dropout(hparams, "dropout_1"),
        nn.Linear(data.width, data.width),
        nn.ReLU(),
        br.Dropout(hparams, "dropout_2"),
        nn.Linear(data.width, 10),
    )


def augment(x: Tensor, hparams: br.Hyperparameters) -> Tensor:
    """Return shifted, brightened and noisy images with holes; each hyperparameter is one number, or one an image."""
    count = len(x)
    value = {name: hparams[name].expand(count)[:, None] for name in START}

    def spread(strength: Tensor) -> Tensor:
        return strength * (2 * torch.rand(count, 1) - 1)

    x = _shifted(x, spread(value["shift"] + 0.5).round(), spread(value["shift"] + 0.5).round())
    x = x * (1 + spread(value["contrast"])) + spread(value["brightness"])
    x = x + value["noise"] * torch.randn_like(x)
    kept = torch.ones(count, SIDE, SIDE, dtype=torch.bool)
    for hole in range(3):
        inside = [_near(torch.rand(count, 1) * SIDE, value["cut_length"]) for _ in range(2)]
        kept &= ~(inside[0][:, :, None] & inside[1][:, None, :] & (value["cut_holes"] > hole)[:, :, None])
    return x * kept.flatten(1)


def _shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    places = [torch.arange(SIDE) - move.long() for move in (down, right)]
    rows, columns = (place.clamp(0, SIDE - 1) for place in places)
    return x.gather(1, (rows[:, :, None] * SIDE + columns[:, None, :]).flatten(1))


def _near(centre: Tensor, length: Tensor) -> Tensor:
    return (torch.arange(SIDE) + 0.5 - centre).abs() < length / 2


@final
@dataclass
class Best:
    """The best look of a training: validation loss, test loss and test accuracy there."""

    data: Data
    loss: float = float("inf")
    test_loss: float = float("inf")
    accuracy: float = 0.0

    def look(self, model: nn.Module) -> None:
        """Keep what the model reaches now if its validation loss is the lowest so far."""
        model.eval()
        with torch.no_grad():
            loss = float(cross_entropy(model(self.data.valid[0]), self.data.valid[1]))
            if loss < self.loss:
                scores = model(self.data.test[0])
                self.loss, self.test_loss = loss, float(cross_entropy(scores, self.data.test[1]))
                self.accuracy = (scores.argmax(dim=1) == self.data.test[1]).double().mean().item()
        model.train()


def made(data: Data, values: Values, scale: float, seed: int) -> tuple[br.Hyperparameters, nn.Sequential]:
    """Return hyperparameters at some values, and the network that they act on, with the seed's start."""
    hparams = br.Hyperparameters(
        {name: br.Hyperparameter(values[name], domain, scale=scale) for name, (_, domain) in START.items()}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return hparams, network(data, hparams)


def train(data: Data, values: Values, steps: int, seed: int) -> Best:
    """Train the plain network at fixed hyperparameters."""
    hparams, model = made(data, values, 1.0, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    batches, best = hg.TensorSampler(*data.train, batch_size=BATCH, seed=seed), Best(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(1, steps + 1):
            x, y = batches.draw()
            optimizer.zero_grad()
            cross_entropy(model(augment(x, hparams)), y).backward()
            optimizer.step()
            if step % LOOK == 0 or step == steps:
                best.look(model)
    return best


def self_tuning(data: Data, work: float, seed: int, last: dict[str, float], *, centred: bool) -> Best:
    """Train and tune in one run; return the best look, and put the hyperparameters in the end into ``last``."""
    cost, rate, scale = (DELTA_STEP, DELTA_RATE, 1.0) if centred else (STN_STEP, STN_RATE, 0.5)
    hparams, plain = made(data, starts(), scale, seed)
    model = br.convert(plain, hparams, centred=centred, seed=seed)
    tuner = partial(torch.optim.RMSprop, lr=0.02) if centred else partial(torch.optim.Adam, lr=0.003)

    def train_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(model(augment(batch[0], hparams)), batch[1])

    def valid_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    tuning = br.SelfTuning(
        model,
        train_loss,
        valid_loss,
        hg.TensorSampler(*data.train, batch_size=BATCH, seed=seed),
        hg.TensorSampler(*data.valid, batch_size=BATCH, seed=seed),
        weights=torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM),
        hyperparameters=tuner([hparams.location]),
        scales=tuner([hparams.raw_scale]),
        train_period=5 if centred else 2,
        warmup=5 * len(data.train[0]) // BATCH,
        seed=seed,
    )
    best, steps = Best(data), int(work / cost)
    for step in range(1, steps + 1):
        tuning.step()
        if step * cost // LOOK > (step - 1) * cost // LOOK or step == steps:
            best.look(model)
    last.update({name: _allowed(name, float(hparams[name])) for name in START})
    return best


def grid(trials: int) -> Sequence[Values]:
    """Return points with one rate for all dropout, and one share of each range for all augmentation."""
    rates = torch.linspace(0.05, 0.6, trials // 2).tolist()
    found = []
    for rate, share in itertools.product(rates, (0.1, 0.3)):
        places = {name: domain.low + share * (domain.high - domain.low) for name, (_, domain) in START.items()}
        values = {name: rate if name.startswith("dropout") else place for name, place in places.items()}
        found.append({name: _allowed(name, value) for name, value in values.items()})
    return found


def drawn(trials: int, seed: int) -> Sequence[Values]:
    """Return points drawn uniformly from all ranges."""
    shares = torch.rand(trials, len(START), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    return [
        {
            name: _allowed(name, domain.low + share * (domain.high - domain.low))
            for share, (name, (_, domain)) in zip(row, START.items(), strict=True)
        }
        for row in shares
    ]


def _allowed(name: str, value: float) -> float:
    """Return the nearest value that the domain takes; the ends of a logit's range are not in it."""
    domain = START[name][1]
    if isinstance(domain, br.Integer):
        return round(value)
    edge = 1e-3 * (domain.high - domain.low)
    return min(max(value, domain.low + edge), domain.high - edge)


def search(data: Data, points: Sequence[Values], steps: int, seed: int) -> Best:
    """Return the best of trainings at all points."""
    return min((train(data, values, steps, seed) for values in points), key=lambda best: best.loss)


def parzen(data: Data, trials: int, steps: int, seed: int) -> Best:
    """Return the best of trainings where Optuna's sampler asks for them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(3, trials)))
    found = []
    for _ in range(trials):
        trial = study.ask()
        values = {}
        for name, (_, domain) in START.items():
            if isinstance(domain, br.Integer):
                values[name] = float(trial.suggest_int(name, domain.low, domain.high))
            else:
                values[name] = _allowed(name, trial.suggest_float(name, domain.low, domain.high))
        found.append(train(data, values, steps, seed))
        study.tell(trial, found[-1].loss)
    return min(found, key=lambda best: best.loss)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment and return its table."""
    options = read_options(__doc__, arguments)
    formats = {"validation_loss": ".4f", "test_loss": ".4f", "accuracy": ".1f", "work": ".0f", "CPU_seconds": ".1f"}
    table = Table(
        title="Nine hyperparameters of dropout and augmentation, equal work (test accuracy in %)",
        data="Fashion-MNIST, "
        + options.pick(
            smoke="200 images", default="1,000 images to train and 1,000 to validate", full="45,000 and 5,000 images"
        )
        + ", in place of all of it and of CIFAR-10",
        columns=formats,
    )
    for seed in options.seeds:
        enter(table, options, seed)
    return table.finish(options)


def enter(table: Table, options: Options, seed: int) -> None:
    """Add one seed to the table."""
    data = draw(options, seed)
    trials, steps = options.pick(smoke=(2, 30), default=(8, 600), full=(20, 20_000))
    work = trials * steps

    def row(name: str, method: Callable[[], Best]) -> None:
        began = time.process_time()
        best = method()
        seconds = time.process_time() - began
        found = {"validation_loss": best.loss, "test_loss": best.test_loss, "accuracy": 100 * best.accuracy}
        table.add(name, **found, work=work, CPU_seconds=seconds)

    row("no tuning", lambda: train(data, starts(), work, seed))
    row("grid search", lambda: search(data, grid(trials), steps, seed))
    row("random search", lambda: search(data, drawn(trials, seed), steps, seed))
    row("TPE", lambda: parzen(data, trials, steps, seed))
    for name, centred in (("STN", False), ("Delta-STN", True)):
        last: dict[str, float] = {}
        row(name, partial(self_tuning, data, work, seed, last, centred=centred))
        row(f"{name}, fixed", partial(train, data, last, work, seed))


if __name__ == "__main__":
    main()

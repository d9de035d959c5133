"""Online cleaning: training on minibatches, with a move of the batch's weights every few steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor

from hypergrad import saved, tree
from hypergrad.callbacks import Callback, Checkpoint, load_checkpoint
from hypergrad.cleaning.hyperparameters import LABEL_FACTOR, MLP_RATE, Judgement, Levelled, judge
from hypergrad.cleaning.recipe import MOMENTUM, Outcome, Recipe, outcome
from hypergrad.cleaning.sources import Source
from hypergrad.data import TensorSampler
from hypergrad.guards import pinned_rng
from hypergrad.live import Live
from hypergrad.run import Companion, Progress, Run

Batch = tuple[Tensor, Tensor, Tensor]
ENTRIES: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "kind": str,
    "step_number": int,
    "training_step": int,
    "model": dict,
    "judgement": dict,
    "optimizer": dict,
    "move": dict,
    "live": dict,
    "samplers": list,
    "callbacks": dict,
}


@final
class OnlineRun:
    """One online run, which callbacks see as they see a :class:`~hypergrad.Run`.

    Attributes:
        step_number: moves of the weights so far.
        training_step: training steps so far.
        whole: always true: it is looked at between two moves only.
        companions: what is saved with the run.
    """

    def __init__(self, recipe: Recipe, train: Source, trusted: Source, seed: int) -> None:
        """Stand before the first step."""
        settings = recipe.settings
        self.recipe, self.train, self.trusted, self.seed = recipe, train, trusted, seed
        self.algorithm, self.outer = recipe.algorithm, "Levelled"
        self.model = recipe.build(seed)
        self.judgement = judge(train.labels, recipe.classes, settings, seed, sparse=True)
        learned = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.SGD(learned, lr=settings.lr, momentum=MOMENTUM, weight_decay=settings.penalty)
        self.move = _move(recipe, self.judgement)
        self.live = Live(self.model, self.judgement, self._inner, self._outer, recipe.algorithm, penalty=self._penalty)
        self.batches = _sampler(train, settings.batch_size, seed)
        self.judged = _sampler(train, settings.batch_size, seed + 1_000_000)
        self.right = _sampler(trusted, settings.trusted_batch_size, seed + 2_000_000)
        self.step_number = self.training_step = 0
        self.whole = True
        self.companions: dict[str, Companion] = {}

    @property
    def hparams(self) -> tree.Tree:
        """The hyperparameters now."""
        return {name: value.detach() for name, value in self.judgement.named_parameters()}

    @property
    def params(self) -> tree.Tree:
        """The model's parameters now."""
        return {name: value.detach() for name, value in self.model.named_parameters()}

    @property
    def moves(self) -> int:
        """Moves of the weights in the whole run."""
        settings = self.recipe.settings
        return self.batches.batches * settings.epochs // settings.every

    def step(self) -> Progress:
        """Train for some steps and move the weights of a batch once."""
        began, settings = time.perf_counter(), self.recipe.settings
        with pinned_rng(torch.device("cpu"), (self.seed * 1_000_003 + self.step_number) % 2**63):
            for _ in range(settings.every):
                self._train()
            report, norm = None, 0.0
            if self.training_step > settings.warmup * self.batches.batches or self.moves <= 1:
                report, norm = self._move()
        self.step_number += 1
        loss = math.nan if report is None else report.outer_loss
        return Progress(
            step=self.step_number,
            hparams=self.hparams,
            params=self.params,
            outer_loss=loss,
            norm=norm,
            report=cast(Any, report),
            cost=cast(Any, None if report is None else report.cost),
            seconds=time.perf_counter() - began,
            moved=self.hparams,
        )

    def _train(self) -> None:
        rows, inputs, labels = self._batch(self.train, self.batches)
        self.optimizer.zero_grad()
        with torch.no_grad():  # training needs no gradient to λ
            targets = self.judgement.targets(rows, labels)
        losses = self.recipe.loss(self.model(inputs), targets)
        with torch.no_grad():
            weights = self.judgement.weights_of(rows, losses)
        torch.dot(weights, losses).div(len(rows)).backward()
        self.optimizer.step()
        self.training_step += 1

    def _move(self) -> tuple[Any, float]:
        batch = self._batch(self.train, self.judged)
        _, inputs, labels = self._batch(self.trusted, self.right)
        self.move.zero_grad()
        report = self.live.backward(batch, (inputs, labels))
        grads = {name: value.grad for name, value in self.judgement.named_parameters() if value.grad is not None}
        norm = math.sqrt(sum(float(_entries(grad).square().sum()) for grad in grads.values()))
        self.move.step()
        return report, norm

    @staticmethod
    def _batch(source: Source, sampler: TensorSampler) -> Batch:
        rows, labels = sampler.draw()
        return rows, source.fetch(rows), labels

    def _inner(self, batch: Batch) -> Tensor:
        rows, inputs, labels = batch
        value: Tensor = self.judgement(rows, labels, partial(self.model, inputs), self.recipe.loss)
        return value

    def _outer(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.recipe.loss(self.model(batch[0]), batch[1]).mean()

    def _penalty(self) -> Tensor:
        squares = [value.square().sum() for value in self.model.parameters() if value.requires_grad]
        return self.recipe.settings.penalty / 2 * torch.stack(squares).sum()

    def losses(self) -> Tensor:
        """Return the losses of all training examples under the present model."""
        found = []
        self.model.eval()
        with torch.no_grad():
            for rows, inputs in self.train.pieces():
                found.append(self.recipe.loss(self.model(inputs), self.train.labels[rows]))
        self.model.train()
        return torch.cat(found)

    def state_dict(self) -> dict[str, Any]:
        """Return everything the run needs to go on."""
        samplers = (self.batches, self.judged, self.right)
        return {
            "format": saved.FORMAT,
            "kind": "online",
            "step_number": self.step_number,
            "training_step": self.training_step,
            "model": self.model.state_dict(),
            "judgement": self.judgement.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "move": self.move.state_dict(),
            "live": self.live.state_dict(),
            "samplers": [sampler.state_dict() for sampler in samplers],
            "callbacks": {name: tree.pack(companion.state_dict()) for name, companion in self.companions.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a state that :meth:`state_dict` returned.

        Raises:
            InputError: a state of another run.
        """
        saved.check_entries(state, {"format": saved.FORMAT, "kind": "online"}, ENTRIES)
        for name in ("model", "judgement", "optimizer", "move"):
            saved.load_part(name, getattr(self, name).load_state_dict, state[name])
        saved.load_part("live", self.live.load_state_dict, state["live"])
        saved.load_samplers(state["samplers"], (self.batches, self.judged, self.right))
        self.step_number, self.training_step = state["step_number"], state["training_step"]


def run_online(
    recipe: Recipe,
    train: Source,
    trusted: Source,
    seed: int,
    *,
    folder: Path | None,
    resume: bool,
    callbacks: Sequence[Callback],
) -> Outcome:
    """Return what one run finds; the arguments are those of :func:`run_nested`."""
    run, settings = OnlineRun(recipe, train, trusted, seed), recipe.settings
    seen = cast(Run, run)  # callbacks read what both have
    saving = [] if folder is None else [Checkpoint(folder, every=settings.checkpoint_every)]
    named = {f"{type(callback).__name__} {place}": callback for place, callback in enumerate([*callbacks, *saving])}
    kept: Mapping[str, Any] = {}
    if resume and folder is not None and (folder / "checkpoint.pt").exists():
        state = load_checkpoint(folder)
        run.load_state_dict(state)
        kept = state["callbacks"]
    with ExitStack() as ends:
        for name, callback in named.items():
            callback.start(seen, run.moves)
            ends.callback(callback.end, seen)
            if kept.get(name):
                saved.load_part("callbacks", partial(callback.load_state_dict, run=seen), kept[name])
            run.companions[name] = callback
        while run.step_number < run.moves:
            progress = run.step()
            if progress.report is not None and [why for one in named.values() if (why := one.step(seen, progress))]:
                break
    return outcome(run.judgement, run.losses() if settings.weighting == "mlp" else None)


def _sampler(source: Source, batch_size: int, seed: int) -> TensorSampler:
    return TensorSampler(source.labels, batch_size=min(batch_size, len(source)), seed=seed, index=True)


def _move(recipe: Recipe, judgement: Judgement) -> torch.optim.Optimizer:
    settings = recipe.settings
    net = settings.weighting == "mlp"
    groups = [{"params": list(judgement.weights.parameters()), "lr": MLP_RATE if net else settings.rate}]
    if judgement.labels is not None:
        groups.append({"params": list(judgement.labels.parameters()), "lr": LABEL_FACTOR * settings.rate})
    return torch.optim.Adam(groups) if net else Levelled(groups, lr=settings.rate)


def _entries(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad

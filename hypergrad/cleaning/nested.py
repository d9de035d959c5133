"""Nested cleaning: all examples in each step, some steps of training between two moves of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypergrad import outer
from hypergrad.callbacks import Callback, Checkpoint
from hypergrad.cleaning.hyperparameters import LABEL_FACTOR, MLP_RATE, Judgement, Levelled, judge
from hypergrad.cleaning.recipe import Outcome, Recipe, outcome
from hypergrad.cleaning.settings import Settings
from hypergrad.cleaning.sources import Source
from hypergrad.problem import Problem
from hypergrad.trainer import Trainer
from hypergrad.tree import Tree


def run_nested(
    recipe: Recipe,
    train: Source,
    trusted: Source,
    seed: int,
    *,
    folder: Path | None,
    resume: bool,
    callbacks: Sequence[Callback],
) -> Outcome:
    """Return what one run finds.

    Args:
        recipe: what all runs share.
        train: the training examples, in memory.
        trusted: the trusted ones, in memory.
        seed: of the run.
        folder: where its checkpoint goes.
        resume: whether to go on from that.
        callbacks: of the trainer.
    """
    settings, module = recipe.settings, recipe.build(seed)
    judgement = judge(train.labels, recipe.classes, settings, seed, sparse=False)
    problem = objectives(recipe, module, judgement, train, trusted)
    saving = [] if folder is None else [Checkpoint(folder, every=settings.checkpoint_every)]
    trainer = Trainer(
        problem,
        recipe.algorithm,
        move(settings),
        [*callbacks, *saving],
        seed=seed,
        warn_overfitting=False,  # weights outnumber the trusted examples in every cleaning
    )
    start = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    weights = {name: value.detach() for name, value in judgement.named_parameters()}
    before = folder if resume and folder is not None and (folder / "checkpoint.pt").exists() else None
    fitted = trainer.fit(start, weights, settings.steps, resume=before)
    judgement.load_state_dict(fitted.hparams)
    losses = None
    if settings.weighting == "mlp":
        with torch.no_grad():
            losses = recipe.loss(_scores(module, fitted.params, inputs_of(train)), train.labels)
    return outcome(judgement, losses)


def move(settings: Settings) -> outer.OuterMove:
    """Return what moves the hyperparameters: Adam for a network, steps of one typical length for all else."""
    groups = {"labels.soft_labels": {"lr": LABEL_FACTOR * settings.rate}} if settings.correct_labels else {}
    if settings.weighting != "mlp":
        return outer.Torch(Levelled, groups=groups, lr=settings.rate, falling=True)
    return outer.Torch(torch.optim.Adam, groups=groups, lr=MLP_RATE)


def inputs_of(source: Source) -> Tensor:
    """Return all inputs."""
    return source.fetch(torch.arange(len(source))) if source.held is None else source.held


def objectives(recipe: Recipe, module: nn.Module, judgement: Judgement, train: Source, trusted: Source) -> Problem:
    """Return the bilevel problem of all examples."""
    rows, inputs, right = torch.arange(len(train)), inputs_of(train), inputs_of(trusted)

    def inner(params: Tree, hparams: Tree) -> Tensor:
        score = partial(_scores, module, params, inputs)
        found: Tensor = torch.func.functional_call(
            judgement, dict(hparams), (rows, train.labels, score, recipe.loss), strict=False
        )
        return found

    def outer_loss(params: Tree, _hparams: Tree) -> Tensor:
        return recipe.loss(_scores(module, params, right), trusted.labels).mean()

    def penalty(params: Tree, _hparams: Tree) -> Tensor:
        squares = torch.stack([value.square().sum() for value in params.values()])
        return recipe.settings.penalty / 2 * squares.sum()

    return Problem(inner, outer_loss, penalty=penalty if recipe.settings.penalty else None)


def _scores(module: nn.Module, params: Any, inputs: Tensor) -> Tensor:
    """Call the module with other parameters; its buffers are copied, so that none moves."""
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    scores: Tensor = torch.func.functional_call(module, {**buffers, **params}, (inputs,))
    return scores

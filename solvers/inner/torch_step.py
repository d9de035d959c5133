"""One step of a torch optimizer as a function: (parameters, gradient, state) to (parameters, state)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypergrad.solvers.inner.follow import Follow, value_of
from hypergrad.solvers.inner.torch_groups import Optimizer, Part, stand_in
from hypergrad.solvers.inner.torch_state import State
from hypergrad.tree import Tree, cloned

Options = list[dict[str, Any]]
"""The options of each part."""


def plain_step(
    optimizer: Optimizer, parts: list[Part], options: Options, params: Tree, gradient: Tree, state: State
) -> tuple[Tree, State]:
    """Return the next parameters and state as the optimizer itself computes them, on copies."""
    tensors = cloned(params)
    held = {key: {name: _copied(value) for name, value in entries.items()} for key, entries in state.items()}
    twin = _twin(optimizer, parts, options, tensors, cloned(gradient), held)
    with torch.no_grad():
        type(twin).step(twin)
    return tensors, _state(twin, tensors)


def followed_step(
    optimizer: Optimizer,
    parts: list[Part],
    options: Options,
    params: Tree,
    gradient: Tree,
    state: State,
    live: set[str],
    *,
    graph: bool,
) -> tuple[Tree, State]:
    """Return the same, computed out of place, and with a graph if asked.

    Args:
        optimizer: whose step it is; it is only read.
        parts: which parameters share which options.
        options: of each part; tensors among them are differentiated, too.
        params: θ.
        gradient: ∇_θ g.
        state: by parameter and name.
        live: ``parameter/name`` of the state entries to differentiate.
        graph: whether to build a graph.
    """
    mode = Follow(graph=graph)
    tensors = {key: mode.bind(value) for key, value in params.items()}
    gradients = {key: mode.bind(gradient[key]) for key in params}
    bound = [{name: _bound(mode, value) for name, value in chosen.items()} for chosen in options]
    held = {
        key: {name: mode.bind(value) if f"{key}/{name}" in live else _copied(value) for name, value in entries.items()}
        for key, entries in state.items()
    }
    twin = _twin(optimizer, parts, bound, tensors, gradients, held)
    with torch.no_grad(), mode:
        type(twin).step(twin)
    found = _state(twin, tensors)
    values = {key: {name: value_of(value) for name, value in entries.items()} for key, entries in found.items()}
    return {key: value_of(tensor) for key, tensor in tensors.items()}, values


def _twin(
    optimizer: Optimizer, parts: list[Part], options: Options, tensors: Tree, gradients: Tree, held: State
) -> Any:
    for key, tensor in tensors.items():
        tensor.grad = gradients[key]
    groups = [
        {"params": [tensors[key] for key in part.keys], **chosen} for part, chosen in zip(parts, options, strict=True)
    ]
    return stand_in(optimizer, groups, {tensors[key]: entries for key, entries in held.items()})


def _state(twin: Any, tensors: Tree) -> State:
    return {key: dict(twin.state.get(tensor, {})) for key, tensor in tensors.items()}


def _bound(mode: Follow, value: Any) -> Any:
    """Return an option with tensors of the hyperparameters bound."""
    if isinstance(value, tuple):
        return tuple(_bound(mode, one) for one in value)
    return mode.bind(value, setting=True) if isinstance(value, Tensor) else value


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value

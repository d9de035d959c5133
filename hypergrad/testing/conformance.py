"""Laws that every algorithm keeps, as functions that raise :class:`AssertionError` with what was broken."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import Algorithm
from hypergrad.testing.problems import KnownProblem
from hypergrad.tree import Tree


def relative_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return ‖found − expected‖ / max(‖expected‖, 1e-3), all tensors together."""
    gap = {key: found[key] - value for key, value in expected.items()}
    return float(tree.norm(gap)) / max(float(tree.norm(expected)), 1e-3)


def check_conformance(algorithm: Algorithm[Any], known: KnownProblem, *, tolerance: float | None = None) -> None:
    """Check all laws of this module for one algorithm on one known problem.

    Args:
        algorithm: the algorithm, with its own inner solver where it needs one.
        known: a problem that it can solve.
        tolerance: largest relative error against the known hypergradient; ``None`` for a biased algorithm.

    Raises:
        AssertionError: a law is broken; the message says which.

    Example:
        >>> import hypergrad as hg
        >>> from hypergrad.testing import KNOWN_PROBLEMS, check_conformance
        >>> check_conformance(hg.Implicit(hg.CG(), inner=hg.Newton()), KNOWN_PROBLEMS[0](), tolerance=1e-8)
    """
    if tolerance is not None:
        check_accuracy(algorithm, known, known.hypergradient(), tolerance)
    check_inputs_untouched(algorithm, known)
    check_form(algorithm, known)
    check_repeatable(algorithm, known)
    check_resumable(algorithm, known)


def check_accuracy(algorithm: Algorithm[Any], known: KnownProblem, expected: Tree, tolerance: float) -> None:
    """Law (a): the hypergradient equals what is expected, within a relative error."""
    found = _step(algorithm, known)[0].grads
    error = relative_error(found, expected)
    _require(error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}: found {found}, expected {expected}")


def check_inputs_untouched(algorithm: Algorithm[Any], known: KnownProblem) -> None:
    """Law (d): a step changes none of its inputs, leaves no ``.grad`` and puts the random state back."""
    params, hparams = tree.leaves(known.params), tree.leaves(known.hparams)
    before = tree.cloned(params), tree.cloned(hparams), torch.get_rng_state()
    state = algorithm.init(known.problem, params, hparams)
    packed = tree.pack(state)
    algorithm.step(known.problem, state, hparams)
    for name, now, then in (("params", params, before[0]), ("hparams", hparams, before[1])):
        _require(all(torch.equal(now[key], then[key]) for key in then), f"{name} changed")
        _require(all(value.grad is None for value in now.values()), f"{name} got a .grad")
    _require(_equal(tree.pack(state), packed), "the state passed in changed")
    _require(torch.equal(torch.get_rng_state(), before[2]), "the random state moved")


def check_form(algorithm: Algorithm[Any], known: KnownProblem) -> None:
    """Law (d): gradients have the hyperparameters' keys, shapes, dtype and device, and no graph."""
    found = _step(algorithm, known)[0]
    for name, tensors, like in (("grads", found.grads, known.hparams), ("params", found.params, known.params)):
        _require(list(tensors) == list(like), f"{name} has the keys {list(tensors)}, not {list(like)}")
        for key, value in tensors.items():
            same = value.shape == like[key].shape and value.dtype == like[key].dtype
            _require(same and value.device == like[key].device, f"{name}[{key!r}] is {value}, unlike {like[key]}")
            _require(not value.requires_grad, f"{name}[{key!r}] requires grad")


def check_repeatable(algorithm: Algorithm[Any], known: KnownProblem) -> None:
    """Law (h): the same state gives the same hypergradient, bit for bit, whatever the random state is."""
    first = _step(algorithm, known)[0].grads
    torch.rand(3)
    second = _step(algorithm, known)[0].grads
    _require(all(torch.equal(first[key], second[key]) for key in first), f"{first} then {second}")


def check_resumable(algorithm: Algorithm[Any], known: KnownProblem) -> None:
    """Law (e): a state that went through a file gives the same next step, bit for bit."""
    _, state = _step(algorithm, known)
    file = io.BytesIO()
    torch.save(tree.pack(state), file)
    file.seek(0)
    restored = tree.unpack(state, torch.load(file, weights_only=True))
    hparams = tree.leaves(known.hparams)
    direct = algorithm.step(known.problem, state, hparams)[0].grads
    resumed = algorithm.step(known.problem, restored, hparams)[0].grads
    _require(all(torch.equal(direct[key], resumed[key]) for key in direct), f"{direct} resumed as {resumed}")


def _step(algorithm: Algorithm[Any], known: KnownProblem) -> tuple[Any, Any]:
    state = algorithm.init(known.problem, known.params, known.hparams)
    return algorithm.step(known.problem, state, tree.leaves(known.hparams))


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return bool(left == right)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)

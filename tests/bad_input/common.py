"""What every test of a refusal needs: a small problem, every algorithm on it, and what is left behind.

Every refusal is checked for its class, for what its parts name, and for what it leaves behind: no tensor is changed, no
``.grad`` is filled, and the random state stays where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import (
    HypergradError,
)
from hypergrad.tree import Tree


def tensors_of(thing: Mapping[str, Tensor] | nn.Module) -> list[Tensor]:
    if isinstance(thing, nn.Module):
        return [*thing.parameters(), *thing.buffers()]
    return [value for value in thing.values() if isinstance(value, Tensor)]


@contextmanager
def unchanged(*things: Mapping[str, Tensor] | nn.Module) -> Iterator[None]:
    """Fail if a tensor, its ``.grad``, the random state or the grad mode is another afterwards."""
    tensors = [tensor for thing in things for tensor in tensors_of(thing)]
    before = [(t.detach().clone(), t._version, t.requires_grad, t.grad) for t in tensors]
    grads = [None if t.grad is None else t.grad.clone() for t in tensors]
    random, enabled = torch.get_rng_state(), torch.is_grad_enabled()
    yield
    for tensor, (value, version, requires_grad, grad), grad_value in zip(tensors, before, grads, strict=True):
        assert tensor._version == version, "a tensor was written to"
        assert tensor.device.type == "meta" or torch.equal(tensor.detach().nan_to_num(), value.nan_to_num())
        assert tensor.requires_grad == requires_grad
        assert tensor.grad is grad
        assert grad is None or (grad_value is not None and torch.equal(grad, grad_value))
    assert torch.equal(torch.get_rng_state(), random), "the random state moved"
    assert torch.is_grad_enabled() == enabled


def says(error: HypergradError, part: str, wanted: str | tuple[str, ...]) -> None:
    """Check that a part of the message is there and names everything that is wanted."""
    text = getattr(error, part)
    assert text, f"the part {part!r} is empty"
    for word in (wanted,) if isinstance(wanted, str) else wanted:
        assert word in text, f"{word!r} is not in {part}: {text}"


@contextmanager
def refused(
    kind: type[HypergradError],
    *things: Mapping[str, Tensor] | nn.Module,
    passed: str | tuple[str, ...] = "",
    expected: str | tuple[str, ...] = "",
    do: str | tuple[str, ...] = "",
) -> Iterator[None]:
    """Expect an error of exactly this class whose parts name the right things, and nothing changed."""
    with unchanged(*things), pytest.raises(HypergradError) as caught:
        yield
    error = caught.value
    assert type(error) is kind, repr(error)
    says(error, "passed", passed)
    says(error, "expected", expected)
    says(error, "do", do)
    assert str(error) == f"passed: {error.passed}\nexpected: {error.expected}\ndo: {error.do}"


def inner(params: Tree, hparams: Tree) -> Tensor:
    weight, bias = params["weight"], params["bias"]
    shrink = hparams["decay"].exp() * (weight.square().sum() + bias.square())
    return ((weight - hparams["shift"]).square().sum() + (bias - 1).square() + shrink) / 2


def outer(params: Tree, hparams: Tree) -> Tensor:
    return ((params["weight"] - 0.3).square().sum() + (params["bias"] - 0.2).square()) / 2


def penalty(params: Tree, hparams: Tree) -> Tensor:
    return hparams["decay"].exp() * (params["weight"].square().sum() + params["bias"].square())


PROBLEM = hg.Problem(inner, outer)


def start(dtype: torch.dtype = torch.float64) -> tuple[Tree, Tree]:
    params = {"weight": torch.tensor([0.5, 0.1, -0.2], dtype=dtype), "bias": torch.tensor(0.3, dtype=dtype)}
    hparams = {"decay": torch.tensor(-0.5, dtype=dtype), "shift": torch.tensor([1.0, -2.0, 0.5], dtype=dtype)}
    return params, hparams


def trained(hparams: Tree) -> Tree:
    shrunk = 1 / (1 + hparams["decay"].exp())
    return {"weight": hparams["shift"] * shrunk, "bias": shrunk}


def named(problem: hg.Problem, algorithm: Any) -> hg.Hypergradient:
    return hg.hypergradient(problem, *start(), algorithm)


STEP = hg.GradientDescent(lr=0.3)


NEWTON = hg.Implicit(hg.CG(), inner=hg.Newton())


KEEPS: tuple[Any, ...] = ("graph", "iterates", "sqrt", "log")


DIFFERENTIATING: dict[str, Any] = {
    "implicit": NEWTON,
    **{f"unrolled-{keep}": hg.Unrolled(4, STEP, keep=keep) for keep in KEEPS},
    "unrolled-truncated": hg.Unrolled(4, STEP, truncate=2),
    "forward-exact": hg.ForwardMode(4, STEP),
    "forward-random": hg.ForwardMode(4, STEP, mode="random", directions=2),
    "forward-guided": hg.ForwardMode(4, STEP, mode="guided"),
}


ZEROTH_ORDER = hg.ZerothOrder(hg.GradientDescent(lr=0.3, steps=4))


ZORD = hg.ZoRD(hg.GradientDescent(lr=0.3, steps=4), candidates=3)
EVERY: dict[str, Any] = {**DIFFERENTIATING, "zeroth-order": ZEROTH_ORDER, "zord": ZORD}


each_differentiating = pytest.mark.parametrize("algorithm", DIFFERENTIATING.values(), ids=DIFFERENTIATING)


each_algorithm = pytest.mark.parametrize("algorithm", EVERY.values(), ids=EVERY)


ROLES: dict[str, Callable[[Tree, Tree], Tensor]] = {"inner": inner, "outer": outer, "penalty": penalty}


SOURCES: dict[str, Callable[[Callable[[Tree], Any]], Callable[[], object]]] = {
    "train": lambda spoil: partial(
        named, PROBLEM, hg.Implicit(inner=hg.Training(lambda params, hparams: spoil(trained(hparams))))
    ),
    "condition": lambda spoil: partial(
        named,
        hg.Problem(
            None,
            outer,
            condition=lambda params, hparams: spoil({k: params[k] - v for k, v in trained(hparams).items()}),
        ),
        hg.Implicit(hg.Dense()),
    ),
    "map": lambda spoil: partial(
        named,
        hg.Problem.fixed_point(
            lambda params, hparams: spoil({k: v + 0.1 * params[k] for k, v in trained(hparams).items()}), outer
        ),
        hg.Implicit(hg.GMRES(), inner=hg.GradientDescent(lr=1.0, steps=3)),
    ),
    "initial": lambda spoil: partial(
        named,
        hg.Problem(inner, outer, initial=lambda hparams: spoil(trained(hparams))),
        hg.Unrolled(3, STEP),
    ),
}


SGD = hg.outer.Torch(torch.optim.SGD, lr=0.1)


NAN = float("nan")


def at_optimum() -> tuple[Tree, Tree]:
    _, hparams = start()
    return trained(hparams), hparams


def root(params: Tree, hparams: Tree) -> Tree:
    turned = params["weight"].roll(1)  # not symmetric
    return {
        "weight": params["weight"] - 0.3 * turned - hparams["shift"],
        "bias": params["bias"] * hparams["decay"].exp(),
    }

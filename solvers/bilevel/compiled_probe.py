"""The eager side of compiled hypergradients: where they are taken, and what they have to agree with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.linear import Memory, Operator
from hypergrad.problem import Problem
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class Place:
    """Where a hypergradient is taken, and what the algorithm remembers."""

    problem: Problem
    params: Tree
    hparams: Tree
    batch: Any
    outer_batch: Any
    start: Tensor | None
    memory: Memory


class Reference:
    """The eager gradients at a point, to compare with."""

    def __init__(self, place: Place, damping: float, draws: guards.Draws) -> None:
        """Evaluate both objectives with the random numbers from ``draws`` on."""
        with guards.again(draws):
            self.outer = place.problem.outer_gradients(place.params, place.hparams, place.outer_batch)
            self.stationarity = place.problem.linearise(place.params, place.hparams, place.batch)
        self.operator = Operator.of(self.stationarity, damping)
        self.reached = self.stationarity.reached | set(self.outer.hparams)

    def compare(self, answer: Any, limit: float) -> str | None:
        """Return in words what differs by more than ``limit``, relative to the terms it is made of."""
        layout = self.stationarity.layout
        b, solved, rest = layout.flatten(self.outer.params), flat(answer["solved"]), flat(answer["rest"])
        image = self.operator(solved)
        direct = {key: self.outer.hparams.get(key, torch.zeros_like(grad)) for key, grad in answer["grads"].items()}
        mixed = self.stationarity.cross(flat(answer["solution"]), last=True)
        found = {key: slope - answer["grads"][key] for key, slope in answer["direct"].items()}
        size, far = tree.norm(self.outer.params), tree.norm(tree.detached(self.stationarity.params))
        rounded = 100 * torch.finfo(b.dtype).eps / limit * size  # of b - r, however short the product is
        pairs = {
            "outer loss": (self.outer.value - answer["value"], self.outer.value.abs() + size * far),
            "outer gradient": (b - flat(answer["b"]), size),
            "outer gradient in hparams": (_gap(direct, answer["direct"]), tree.norm(direct) + tree.norm(mixed)),
            "product": (image - (flat(answer["b"]) - rest), torch.linalg.vector_norm(image) + rounded),
            "mixed product": (_gap(mixed, found), tree.norm(mixed) + tree.norm(direct)),
        }
        for what, (gap, scale) in pairs.items():
            error, whole = float(torch.linalg.vector_norm(gap)), float(scale)
            if not error <= limit * whole:
                return (
                    f"its {what} differs from the eager one by {error / whole if whole else error:.2g} of it, and at "
                    f"most {limit:g} is rounding"
                )
        return None


def flat(parts: Tree) -> Tensor:
    """Return a tree as one vector."""
    return torch.cat([part.reshape(-1) for part in parts.values()])


def _gap(left: Tree, right: Tree) -> Tensor:
    return torch.cat([(value - right[key]).reshape(-1) for key, value in left.items()])


def drew(draws: guards.Draws, device: torch.device) -> bool:
    """Return whether random numbers were drawn since then."""
    if not torch.equal(draws.cpu, torch.get_rng_state()):
        return True
    return draws.accelerator is not None and not torch.equal(draws.accelerator, torch.cuda.get_rng_state(device))

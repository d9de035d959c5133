"""Many inner problems side by side: how their tensors are stacked, and how their objectives are evaluated at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import guards
from hypergrad.data import Sampler
from hypergrad.domains import Domain
from hypergrad.errors import InputError, ObjectiveError, TreeError, UnsupportedError
from hypergrad.objective import UserFunction, count_arguments
from hypergrad.problem import Problem
from hypergrad.tree import Tree, device_of


@final
@dataclass(frozen=True)
class Block:
    """What the objectives of one block get as their batch.

    Attributes:
        index: number of the block, from 0, a 0-d integer tensor. All blocks may be evaluated at once, so that it has
            no one value to branch on: read data with :meth:`row`.
        batch: what the problem's sampler drew, the same for all blocks of an iteration.
    """

    index: Tensor
    batch: Any = None

    def row(self, data: Tensor) -> Tensor:
        """Return this block's entry of a tensor with one row for each block.

        >>> Block(torch.tensor(1)).row(torch.tensor([3.0, 4.0]))
        tensor(4.)
        """
        return data.index_select(0, self.index.reshape(1)).squeeze(0)


@final
class Stack:
    """How the blocks lie in the tensors of a tree, and in the rows of a matrix.

    Args:
        params: tensors of all blocks, stacked along the first dimension.
        blocks: m, or ``None`` for one block whose tensors have no such dimension.
        vectorise: whether to try all blocks of a sample at once, with :func:`torch.func.vmap`.

    Raises:
        InputError: blocks of unequal shape, or another number of them.
    """

    def __init__(self, params: Mapping[str, Tensor], blocks: int | None, *, vectorise: bool = True) -> None:
        """Check the first dimensions."""
        self.blocks, self.vectorise = blocks, vectorise
        if blocks is not None:
            _check_stacked(params, blocks)
        self.count = 1 if blocks is None else blocks
        self.shapes = {key: value.shape if blocks is None else value.shape[1:] for key, value in params.items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.size = sum(self.sizes)
        self.device = device_of(params)

    def rows(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return a tree of n blocks as an n × d matrix."""
        count = 1 if self.blocks is None else len(next(iter(values.values())))
        return torch.cat([values[key].detach().reshape(count, -1) for key in self.shapes], dim=1)

    def tree(self, rows: Tensor) -> Tree:
        """Return the tree of an n × d matrix."""
        lead = () if self.blocks is None else (len(rows),)
        pieces = rows.split(self.sizes, dim=1)
        named = zip(self.shapes.items(), pieces, strict=True)
        return {key: piece.reshape((*lead, *shape)) for (key, shape), piece in named}

    def flat(self, rows: Tensor) -> Tensor:
        """Return an n × d matrix as a flat vector in the tree's layout."""
        return torch.cat([piece.reshape(-1) for piece in rows.split(self.sizes, dim=1)])

    def unflat(self, vector: Tensor) -> Tensor:
        """Return the n × d matrix of a flat vector in the tree's layout."""
        count = vector.numel() // self.size
        pieces = vector.split([count * size for size in self.sizes])
        return torch.cat([piece.reshape(count, -1) for piece in pieces], dim=1)

    def problem(self, problem: Problem, chosen: Tensor) -> Problem:
        """Return the problem of some blocks side by side: sums over them, of stacked parameters.

        Its Hessian is block-diagonal, so one product with it is a product for each block.
        """
        if self.blocks is None:
            return problem
        assert problem.inner is not None
        changed: dict[str, Any] = {
            "inner": self._sum(UserFunction("inner", problem.inner), chosen),
            "outer": self._sum(UserFunction("outer", problem.outer), chosen),
        }
        if problem.penalty is not None:
            penalty = self._sum(UserFunction("penalty", problem.penalty), chosen)
            changed["penalty"] = lambda params, hparams: penalty(params, hparams, None)
        return dataclasses.replace(problem, **changed)

    def project(self, params: Tree, domains: Mapping[str, Domain]) -> Tree:
        """Return the parameters with each block's tensors projected onto their domains."""
        if self.blocks is None:
            return params | {key: domain.project(params[key]) for key, domain in domains.items()}
        return params | {key: self._each(domain.project, params[key]) for key, domain in domains.items()}

    def _sum(self, function: UserFunction, chosen: Tensor) -> Callable[[Tree, Tree, Any], Tensor]:
        def total(params: Tree, hparams: Tree, batch: Any) -> Tensor:
            def one(block: Tree, index: Tensor) -> Tensor:
                return function.scalar(block, hparams, Block(index, batch), differentiable=False)

            return self._each(one, dict(params), chosen).sum()

        return total

    def _each(self, function: Callable[..., Tensor], *stacked: Any) -> Tensor:
        """Return the stacked values of a function of every block, in a loop where vmap cannot."""
        draws = guards.Draws.capture(self.device)
        if self.vectorise:
            try:
                together: Any = torch.func.vmap(function, randomness="different")
                values: Tensor = together(*stacked)
            except (
                RuntimeError,
                ObjectiveError,
            ):  # vmap has no error of its own
                draws.restore()
            else:
                return values
        count = len(stacked[-1])
        return torch.stack([function(*(_entry(part, i) for part in stacked)) for i in range(count)])


def check_blocks(
    problem: Problem, blocks: int | None, domains: Mapping[str, Domain], params: Mapping[str, Any]
) -> None:
    """Refuse problems, samplers and parameters that blocks cannot be taken from.

    Raises:
        UnsupportedError: a root or fixed point, whose Jacobian is not symmetric.
        InputError: an inner objective that cannot know its block, a sampler that cannot draw, or blocks of unequal
            shape.
        TreeError: a domain under a name that no parameter has.
    """
    if problem.inner is None:
        raise UnsupportedError(
            passed="a root or fixed point (condition=)",
            expected="an inner objective, whose Hessian is symmetric",
            do="use hypergrad.Implicit with a linear solver for any Jacobian, such as hypergrad.GMRES()",
        )
    for name in ("inner_data", "outer_data"):
        sampler = getattr(problem, name)
        if sampler is not None and not isinstance(sampler, Sampler):
            raise InputError(
                passed=f"{name} of type {type(sampler).__name__}",
                expected="a sampler: draw(), full(), state_dict() and load_state_dict(), so that a run can be resumed",
                do="pass hypergrad.TensorSampler(...) or hypergrad.Fixed(batch)",
            )
    if blocks is not None and blocks > 1 and count_arguments(problem.inner, (3, 2)) == 2:
        raise InputError(
            passed=f"inner(params, hparams) for blocks={blocks}",
            expected="inner(params, hparams, block): an objective that gets the number of its block",
            do="take a third argument and read the block's data with block.row(data)",
        )
    for key in domains:
        if key not in params:
            raise TreeError(
                passed=f"params_domain for {key!r}",
                expected=f"names of parameters: {list(params)}",
                do="rename it in params_domain, or take it out",
            )
        if not isinstance(domains[key], Domain):
            raise InputError(
                passed=f"params_domain with {key!r}: {domains[key]!r}",
                expected="a domain, with a method project(value)",
                do="pass hypergrad.Box(low, high), Ball(radius) or one of your own",
            )
    for key, value in params.items():
        if isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.is_nested):
            parts = value.unbind() if isinstance(value, Tensor) else value
            shapes = [tuple(getattr(part, "shape", ())) for part in parts]
            raise _unequal(f"params[{key!r}] with blocks of the shapes {shapes}")


def _check_stacked(params: Mapping[str, Tensor], blocks: int) -> None:
    wrong = {key: tuple(value.shape) for key, value in params.items() if value.ndim == 0 or len(value) != blocks}
    if wrong:
        raise _unequal(f"params of the shapes {wrong} for blocks={blocks}")


def _unequal(passed: str) -> InputError:
    return InputError(
        passed=passed,
        expected="blocks of one shape, stacked: every tensor has one row for each block along its first dimension",
        do="pass torch.stack([...]) of the blocks' tensors and blocks= their number; pad blocks that are smaller, and "
        "give the padding a quadratic cost in inner",
    )


def _entry(part: Any, index: int) -> Any:
    return {key: value[index] for key, value in part.items()} if isinstance(part, dict) else part[index]

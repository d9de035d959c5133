"""Outer moves: what moves the hyperparameters once a direction is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hypergrad import tree
from hypergrad.domains import Box, Positive, UnitInterval
from hypergrad.errors import InputError
from hypergrad.oracle import Oracle
from hypergrad.problem import Problem
from hypergrad.saved import tree_like, unfit
from hypergrad.settings import check_counts, check_function, check_numbers
from hypergrad.tree import Layout, Tree

__all__ = ["LBFGSB", "Oracle", "OuterMove", "OuterState", "PlainState", "Torch"]


class OuterState(Protocol):
    """What an outer move remembers; its ``state_dict`` is plain data."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and strings, nested in dicts and lists."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a state that :meth:`state_dict` returned."""
        ...


@dataclass
class PlainState:
    """An outer state whose fields are numbers, strings and trees of tensors; subclasses are dataclasses."""

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the fields."""
        packed: dict[str, Any] = tree.pack(self)
        return packed

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a state that :meth:`state_dict` returned, or to none of it.

        Raises:
            InputError: other fields, or values of another type or shape.
        """
        mine = vars(self)
        if set(state) != set(mine):
            raise unfit(f"whose outer_state has the entries {sorted(state)}", f"the entries {sorted(mine)}")
        found = {key: self._like(key, state[key], like) for key, like in mine.items()}
        mine.update(found)

    @staticmethod
    def _like(key: str, value: Any, like: Any) -> Any:
        if isinstance(like, dict):
            return tree_like(f"the saved outer_state {key!r}", value, like)
        if type(value) is not type(like):
            kinds = type(value).__name__, type(like).__name__
            raise unfit(f"whose outer_state {key!r} is of type {kinds[0]}", f"{key!r} of type {kinds[1]}")
        return value


class OuterMove(ABC):
    """A way to move the hyperparameters."""

    @abstractmethod
    def init(self, hparams: Tree, problem: Problem) -> OuterState:
        """Return the first state.

        Raises:
            InputError: settings or domains that do not fit.
        """

    @abstractmethod
    def update(self, oracle: Oracle, hparams: Tree, state: Any) -> Tree:
        """Return new hyperparameters inside their domains; ``hparams`` stay as they are.

        The oracle's first call is at ``hparams``.
        """


@final
class Torch(OuterMove):
    """Any optimizer of :mod:`torch.optim`, with any torch scheduler; the result is projected onto the domains.

    An optimizer that calls its closure again (:class:`torch.optim.LBFGS`) calls the oracle again.

    Args:
        optimizer: a class of :mod:`torch.optim`, or any function ``(tensors, **options) -> optimizer``.
        scheduler: ``optimizer -> scheduler``, stepped once after each outer step; a
            :class:`~torch.optim.lr_scheduler.ReduceLROnPlateau` gets the outer loss. Warm-up is a scheduler, too:
            :class:`~torch.optim.lr_scheduler.LinearLR`. A list of schedulers is stepped in order.
        clip: largest norm of the hypergradient, above 0; longer ones are shortened to it.
        clip_value: largest absolute value of its entries, above 0; larger ones are cut to it, before ``clip``.
        groups: options of single hyperparameters by name, over the common ones.
        options: options of the optimizer, such as ``lr``.

    Raises:
        InputError: ``clip`` or ``clip_value`` not above 0, a group under a name that no hyperparameter has, or a
            ``scheduler`` that returns something else than a scheduler or a list of them.

    Example:
        >>> import torch
        >>> move = Torch(torch.optim.Adam, lr=1e-2)
        >>> move
        Torch(Adam, lr=0.01)
    """

    def __init__(
        self,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        *,
        clip: float | None = None,
        clip_value: float | None = None,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        """Keep the settings."""
        self.optimizer, self.scheduler, self.clip, self.clip_value = optimizer, scheduler, clip, clip_value
        self.groups, self.options = dict(groups or {}), options
        check_function(
            self, "optimizer", "a class of torch.optim", "pass the class and its options: Torch(SGD, lr=0.1)"
        )
        check_function(self, "scheduler", "optimizer -> scheduler", "leave scheduler out for none")
        check_numbers(self, "clip", "clip_value", above=0)

    def __repr__(self) -> str:
        """Return the optimizer's name and options."""
        settings = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"Torch({getattr(self.optimizer, '__name__', self.optimizer)}{settings})"

    def init(self, hparams: Tree, problem: Problem) -> _TorchState:
        """Build the optimizer on copies of the hyperparameters."""
        tree.check_names("groups", self.groups, hparams)
        tensors = {key: value.requires_grad_() for key, value in tree.cloned(hparams).items()}
        groups: list[dict[str, Any]] = [{"params": [t for key, t in tensors.items() if key not in self.groups]}]
        groups += [{"params": [tensors[key]], **options} for key, options in self.groups.items()]
        optimizer = self.optimizer([group for group in groups if group["params"]], **self.options)
        made = [] if self.scheduler is None else self.scheduler(optimizer)
        schedulers = list(made) if isinstance(made, list | tuple) else [made]
        for scheduler in schedulers:
            if not all(hasattr(scheduler, method) for method in ("step", "state_dict", "load_state_dict")):
                raise InputError(
                    passed=f"Torch(scheduler=...), which returned {type(scheduler).__name__}",
                    expected="a scheduler of torch.optim.lr_scheduler, or a list of them",
                    do="pass a function of the optimizer: functools.partial(ExponentialLR, gamma=0.9)",
                )
        return _TorchState(tensors, optimizer, schedulers)

    def update(self, oracle: Oracle, hparams: Tree, state: _TorchState) -> Tree:
        """Take one step of the optimizer and of the scheduler."""
        with torch.no_grad():
            for key, tensor in state.tensors.items():
                tensor.copy_(hparams[key])

        def closure() -> Tensor:
            result = oracle(state.tensors)
            for key, tensor in state.tensors.items():
                tensor.grad = result.grads[key].detach().clone()
            if self.clip_value is not None:
                torch.nn.utils.clip_grad_value_(list(state.tensors.values()), self.clip_value)
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(list(state.tensors.values()), self.clip)
            return result.outer_loss

        state.optimizer.step(closure)
        for scheduler in state.schedulers:
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(float(oracle.results[0].outer_loss))
            else:
                scheduler.step()
        for tensor in state.tensors.values():
            tensor.grad = None
        return tree.cloned(oracle.problem.project(tree.detached(state.tensors)))


@dataclass
class _TorchState:
    tensors: Tree
    optimizer: Any
    schedulers: list[Any]

    def state_dict(self) -> dict[str, Any]:
        schedulers = [scheduler.state_dict() for scheduler in self.schedulers]
        return {**self._names(), "optimizer": self.optimizer.state_dict(), "schedulers": schedulers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        names = self._names()
        found = {key: state.get(key) for key in names}
        if found != names:
            raise unfit(f"whose outer_state has {found}", str(names))
        self.optimizer.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)

    def _names(self) -> dict[str, Any]:
        names = [type(scheduler).__name__ for scheduler in self.schedulers]
        return {"optimizer_class": type(self.optimizer).__name__, "scheduler_classes": names}


@final
@dataclass(frozen=True)
class LBFGSB(OuterMove):
    """scipy's L-BFGS-B with the domains as bounds, for an accurate oracle on full batches.

    One outer step is one run of up to ``iterations`` iterations on the host in float64; curvature pairs do not carry
    over to the next outer step, so that a run can be stopped and resumed between any two.

    Args:
        iterations: iterations in an outer step, at least 1.
        memory: curvature pairs kept, at least 1.
        gtol: stop once the largest entry of the projected gradient is at most this.
        ftol: stop once the relative decrease of an iteration is at most this.
        bounds: (low, high) of named hyperparameters, instead of their domains; ``None`` for no bound.

    Cost: one hypergradient for each value that the line search asks for, about 1.2 an iteration.

    Raises:
        InputError: a domain that is no box, or a bound under a name that no hyperparameter has.

    Source: Byrd, Lu, Nocedal, Zhu (1995), as :func:`scipy.optimize.minimize`.
    """

    iterations: int = 20
    memory: int = 10
    gtol: float = 1e-8
    ftol: float = 1e-12
    bounds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse empty budgets."""
        check_counts(self, "iterations", "memory")
        check_numbers(self, "gtol", "ftol", least=0)

    def init(self, hparams: Tree, problem: Problem) -> _NoState:
        """Check the bounds."""
        tree.check_names("bounds", self.bounds, hparams)
        for key in hparams:
            low, high = self._bound(key, problem)
            if low is not None and high is not None and not low <= high:
                raise InputError(
                    passed=f"bounds for {key!r}: {(low, high)}",
                    expected="(low, high) with low <= high",
                    do="swap the two ends",
                )
        return _NoState()

    def update(self, oracle: Oracle, hparams: Tree, state: _NoState) -> Tree:
        """Run L-BFGS-B from ``hparams``."""
        import numpy as np
        from scipy.optimize import minimize

        layout = Layout.of(hparams)

        def value_and_gradient(x: Any) -> tuple[float, Any]:
            point = layout.views(torch.as_tensor(x).to(layout.device, layout.dtype))
            result = oracle(point)
            return float(result.outer_loss), layout.flatten(result.grads).double().cpu().numpy()

        bounds = [
            self._bound(key, oracle.problem)
            for key, size in zip(hparams, layout.sizes, strict=True)
            for _ in range(size)
        ]
        found = minimize(
            value_and_gradient,
            np.asarray(layout.flatten(hparams).double().cpu()),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": self.iterations, "maxcor": self.memory, "gtol": self.gtol, "ftol": self.ftol},
        )
        return tree.cloned(layout.views(torch.as_tensor(found.x).to(layout.device, layout.dtype)))

    def _bound(self, key: str, problem: Problem) -> tuple[float | None, float | None]:
        if key in self.bounds:
            return self.bounds[key]
        domain = problem.hparams_domain.get(key)
        if domain is None:
            return None, None
        if isinstance(domain, Box):
            return domain.low, domain.high
        if isinstance(domain, Positive):
            return domain.floor, None
        if isinstance(domain, UnitInterval):
            return 0.0, 1.0
        raise InputError(
            passed=f"LBFGSB for hparams[{key!r}] on {domain!r}",
            expected="bounds on every entry: Box, Positive or UnitInterval",
            do="use hypergrad.outer.Torch, which projects onto any domain, or reparametrise (softmax for a simplex)",
        )


@dataclass
class _NoState:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass

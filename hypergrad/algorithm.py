"""The algorithm interface: a hypergradient oracle with memory, and the report that comes with every answer."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.errors import (
    ActiveSetWarning,
    CompileWarning,
    ConvergenceWarning,
    CurvatureWarning,
    HypergradWarning,
    InputError,
    LeftoverWarning,
    NonFiniteError,
    OuterMoveWarning,
    ReachWarning,
    RepeatabilityWarning,
    RestartWarning,
    StationarityWarning,
    UnreachedError,
    UnsupportedError,
)
from hypergrad.problem import Objective, Problem
from hypergrad.tree import Tree
from hypergrad.versions import Versions

S = TypeVar("S")

WARNINGS: dict[str, type[HypergradWarning]] = {
    "stationarity": StationarityWarning,
    "curvature": CurvatureWarning,
    "convergence": ConvergenceWarning,
    "reach": ReachWarning,
    "active_set": ActiveSetWarning,
    "outer_move": OuterMoveWarning,
    "repeatability": RepeatabilityWarning,
    "custom": CurvatureWarning,
    "leftover": LeftoverWarning,
    "restart": RestartWarning,
    "compile": CompileWarning,
}


@final
@dataclass(frozen=True)
class Cost:
    """Work counted in passes.

    Attributes:
        inner_gradients: evaluations of the inner objective with its gradient.
        products: reverse passes through the graph of the inner gradient: Hessian and mixed products.
        outer_gradients: evaluations of the outer objective with its gradient.
        outer_values: evaluations of the outer objective without one.
    """

    inner_gradients: int = 0
    products: int = 0
    outer_gradients: int = 0
    outer_values: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Return the sum, field by field."""
        return Cost(
            self.inner_gradients + other.inner_gradients,
            self.products + other.products,
            self.outer_gradients + other.outer_gradients,
            self.outer_values + other.outer_values,
        )


@final
@dataclass(frozen=True)
class Report:
    """What is known about one hypergradient.

    Attributes:
        algorithm: the algorithm that made it, with its settings.
        status: how the linear solve or the training ended (:class:`~hypergrad.Status`).
        residual: relative residual of the linear solve; NaN where there was none.
        negative_curvature: whether negative curvature was met.
        inner_gradient_norm: ‖∇_θ g‖ where the hypergradient was taken; NaN where it is not known.
        implied_error: how far the outer loss would move, to first order, if training went on to its optimum:
            |⟨H⁻¹∇_θ f, ∇_θ g⟩|; NaN where it is not known.
        outer_loss: f.
        cost: passes made.
        seconds: wall time.
        peak_bytes: peak memory so far: of the device's allocator on CUDA, of the process on the CPU.
        notes: remarks with advice, under the kind of warning they deserve.
    """

    algorithm: str
    status: str
    outer_loss: float
    cost: Cost
    seconds: float
    peak_bytes: int
    residual: float = math.nan
    negative_curvature: bool = False
    inner_gradient_norm: float = math.nan
    implied_error: float = math.nan
    notes: Mapping[str, str] = field(default_factory=dict)

    def warn(self, skip: Iterable[str] = ()) -> None:
        """Give every note as a Python warning, but for the kinds in ``skip``."""
        for kind, text in self.notes.items():
            if kind not in skip:
                warnings.warn(text, WARNINGS[kind], stacklevel=3)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; NaN becomes ``None``."""
        plain = dataclasses.asdict(self)
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in plain.items()
        }

    def __str__(self) -> str:
        """Return a few lines for people."""
        numbers = {
            "outer loss": f"{self.outer_loss:.6g}",
            "inner gradient norm": f"{self.inner_gradient_norm:.3g}",
            "implied error": f"{self.implied_error:.3g}",
            "linear residual": f"{self.residual:.3g}",
        }
        known = [f"{name} {number}" for name, number in numbers.items() if number != "nan"]
        counts = {name.replace("_", " "): count for name, count in dataclasses.asdict(self.cost).items() if count}
        lines = [
            f"{self.algorithm}: {self.status}",
            f"  {', '.join(known)}",
            f"  {', '.join(f'{count} {name}' for name, count in counts.items())}",
            f"  {self.seconds:.3g} s, peak {self.peak_bytes / 2**20:.0f} MiB",
        ]
        return "\n".join([*lines, *(f"  {kind}: {text}" for kind, text in self.notes.items())])


@final
@dataclass(frozen=True)
class Hypergradient:
    """dF/dλ or an estimate of it, and where it was taken.

    Attributes:
        grads: a tree with the keys and shapes of the hyperparameters.
        params: θ, where training ended.
        outer_loss: f at θ and λ, a 0-d tensor.
        report: how it was found and what to think of it.
    """

    grads: Tree
    params: Tree
    outer_loss: Tensor
    report: Report


class Algorithm(ABC, Generic[S]):
    """A hypergradient oracle with memory.

    Subclasses are frozen dataclasses of their own settings; their state is a frozen dataclass of tensors and
    numbers with at least ``params``, where training starts next, and ``steps``, hypergradients taken. An algorithm
    changes none of its inputs and never moves the hyperparameters.
    """

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether the estimate tends to dF/dλ as tolerances go to zero."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether it draws random directions of its own."""

    order: ClassVar[int]
    """Highest order of derivative of the inner objective."""
    cost: ClassVar[str]
    """Passes of one step, in words."""
    needs: ClassVar[str]
    """What it asks of the problem, in words."""
    elsewhere: ClassVar[bool] = False
    """Whether it evaluates the objectives at other hyperparameters than the present ones, too."""
    lighter: ClassVar[str] = "use smaller batches, or hypergrad.F2SA, which needs first derivatives only"
    """What to do where memory runs out, in words."""

    @abstractmethod
    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> S:
        """Check the inputs and return the first state, which starts training at ``params``."""

    @abstractmethod
    def step(self, problem: Problem, state: S, hparams: Tree) -> tuple[Hypergradient, S]:
        """Train from the state and return the hypergradient at ``hparams`` with the next state."""

    def several(
        self, problem: Problem, state: S, hparams: Tree, outers: Mapping[str, Objective]
    ) -> dict[str, Hypergradient]:
        """Return the hypergradient of each of several outer objectives: by a step each, from the same state."""
        return {name: self.step(problem.with_outer(outer), state, hparams)[0] for name, outer in outers.items()}

    @abstractmethod
    def response(self, problem: Problem, state: S, hparams: Tree) -> Tree:
        """Return θ(λ), the parameters that a step at ``hparams`` would judge, without a hypergradient."""

    @abstractmethod
    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ(λ) as tensors whose backward pass is this algorithm."""

    @abstractmethod
    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes that a first step claims: exactly these, or at most where a tolerance can end it."""

    def at_step(self, step: int) -> Algorithm[S]:
        """Return the algorithm for an outer step, from 0: this one, unless its settings are scheduled."""
        return self

    def at_tolerance(self, inner: float, linear: float) -> Self:
        """Return the same algorithm at another accuracy, for outer moves that choose it.

        Args:
            inner: largest ‖∇_θ g‖ that training may leave, above 0.
            linear: largest residual ‖H q − ∂f/∂θ‖ that the linear solve may leave, above 0.

        Raises:
            UnsupportedError: an algorithm, or a part of one, that has no tolerance.
        """
        raise self._without_tolerances()

    def trained(self, problem: Problem, state: S, hparams: Tree) -> tuple[Tree, Cost]:
        """Return θ(λ) as :meth:`response` does, with the passes that it took.

        Raises:
            UnsupportedError: an algorithm that has no tolerances.
        """
        raise self._without_tolerances()

    def _without_tolerances(self) -> UnsupportedError:
        return UnsupportedError(
            passed=f"{type(self).__name__} with an outer move that chooses the accuracy of each hypergradient",
            expected="an algorithm that trains and solves to tolerances",
            do="use hypergrad.Implicit(hypergrad.CG(), inner=hypergrad.LBFGS()), or move the hyperparameters with "
            "hypergrad.outer.Torch",
        )


def check_algorithm(algorithm: object) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for what is no algorithm."""
    if not isinstance(algorithm, Algorithm):
        raise InputError(
            passed=f"algorithm={algorithm!r}",
            expected="an algorithm, which gives hypergradients: Implicit, Unrolled, ForwardMode, ZerothOrder",
            do="give a linear solver to one as hypergrad.Implicit(linear), an inner solver as "
            "hypergrad.Implicit(inner=solver), and make an object of a class: hypergrad.Implicit()",
        )


class Stopwatch:
    """Wall time and peak memory of one step."""

    def __init__(self, device: torch.device) -> None:
        """Start."""
        self.device, self.start = device, time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.start

    def peak_bytes(self) -> int:
        """Return the device's peak allocation, on the CPU the process's peak resident memory (0 on Windows)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":
            return 0
        now = time.perf_counter()
        if now - _Resident.seen > 0.01:
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            _Resident.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            _Resident.seen = now
        return _Resident.peak


class _Resident:
    """The process's peak when it was last asked for: the question takes as long as a small gradient."""

    seen, peak = -math.inf, 0


def replayed(algorithm: Algorithm[S], problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
    """Return θ(λ) with a node whose backward runs the algorithm on the outer objective ⟨c, θ⟩.

    The vector-Jacobian product (dθ/dλ)ᵀc is the hypergradient of that problem, so every algorithm serves.
    """
    state: Any = algorithm.init(problem, params, tree.detached(hparams))
    state = dataclasses.replace(state, steps=1)  # no first step: what the outer loss alone uses is not unreached here
    keys = list(params)
    apply: Any = _Replay.apply
    values = apply(algorithm, problem, state, list(hparams), keys, *hparams.values())
    return dict(zip(keys, values, strict=True))


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, algorithm: Any, problem: Problem, state: Any, names: list[str], keys: list[str], *values: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.algorithm, ctx.problem, ctx.state, ctx.names, ctx.keys = algorithm, problem, state, names, keys
        ctx.save_for_backward(*values)
        ctx.versions = Versions(params=state.params, hparams=dict(zip(names, values, strict=True)))
        device = tree.device_of(state.params)
        ctx.draws = problem.draws(device)
        with guards.pinned_rng(device):
            trained = algorithm.response(problem, state, dict(zip(names, values, strict=True)))
        return tuple(trained[key].detach().clone() for key in keys)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        weights = dict(zip(ctx.keys, cotangents, strict=True))
        ctx.versions.check()  # the replay reads them again
        hparams = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        linear = ctx.problem.with_outer(lambda params, _: tree.dot(params, weights), data=False)
        with guards.again(ctx.draws):
            hypergradient, _ = ctx.algorithm.step(linear, ctx.state, hparams)
        return (None, None, None, None, None, *(hypergradient.grads[name] for name in ctx.names))


def refuse_second_order() -> None:
    """Raise inside a backward pass that is itself being recorded; silence would give zero second derivatives."""
    if torch.is_grad_enabled():
        raise UnsupportedError(
            passed="a second derivative of the hyperparameters (create_graph=True)",
            expected="first derivatives: the implicit node's backward cannot be differentiated",
            do="drop create_graph=True, or take differences of hypergradients",
        )


def check_finite(what: str, values: Mapping[str, Tensor], *, when: str) -> None:
    """Raise :class:`~hypergrad.errors.NonFiniteError` for the first tensor that holds NaN or infinity."""
    name = tree.first_non_finite(values)
    if name is not None:
        raise NonFiniteError(
            passed=f"{what} {name!r} with NaN or infinity, {when}",
            expected="finite numbers",
            do="look at that tensor one step earlier: lower the learning rate, check the data for NaN, and guard "
            "log, sqrt and division in the objective; torch.autograd.set_detect_anomaly(True) names the operation",
        )


def check_reached(hparams: Iterable[str], reached: Iterable[str], advice: str) -> None:
    """Raise :class:`~hypergrad.errors.UnreachedError` for hyperparameters without any path."""
    reached = set(reached)
    lost = [name for name in hparams if name not in reached]
    if lost:
        raise UnreachedError(
            lost,
            passed=f"hparams {lost}, on which neither the inner nor the outer objective depends",
            expected="hyperparameters that enter an objective through torch operations",
            do=advice,
        )

"""The engine's own settings as a search space: algorithm, linear solver, training, outer move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from hypergrad.algorithm import Algorithm
from hypergrad.errors import InputError, did_you_mean
from hypergrad.inner import InnerSolver, UpdateRule
from hypergrad.linear import LinearSolver
from hypergrad.outer import LBFGSB, OuterMove, Torch
from hypergrad.settings import check_number
from hypergrad.solvers.bilevel import F2SA, SOBA, Implicit, StocBiO, Unrolled
from hypergrad.solvers.inner import LBFGS, Adam, GradientDescent
from hypergrad.solvers.linear import CG, Identity, Neumann, Nystrom

if TYPE_CHECKING:
    import optuna

Method = Literal["implicit", "unrolled", "stocbio", "soba", "f2sa"]
Linear = Literal["cg", "neumann", "nystrom", "identity"]
Rule = Literal["gradient_descent", "adam", "lbfgs"]
Move = Literal["adam", "sgd", "lbfgsb"]
Range = tuple[float, float]

CHOICES: dict[str, tuple[str, ...]] = {
    "algorithms": ("implicit", "unrolled", "stocbio", "soba", "f2sa"),
    "linear": ("cg", "neumann", "nystrom", "identity"),
    "inner": ("gradient_descent", "adam", "lbfgs"),
    "outer": ("adam", "sgd", "lbfgsb"),
}
WHOLE = ("inner_steps", "terms")
SHARES = (1.0, 0.5, 0.25)
TOLERANCE = 1e-4


class Engine(NamedTuple):
    """What :func:`suggest_engine` proposes.

    Attributes:
        algorithm: how hypergradients are found.
        outer: what moves the hyperparameters.
    """

    algorithm: Algorithm[Any]
    outer: OuterMove


def suggest_engine(
    trial: optuna.trial.BaseTrial,
    *,
    algorithms: Sequence[Method] = ("implicit", "unrolled", "soba", "f2sa"),
    linear: Sequence[Linear] = ("cg", "neumann", "identity"),
    inner: Sequence[Rule] = ("gradient_descent", "adam"),
    outer: Sequence[Move] = ("adam", "sgd"),
    inner_steps: tuple[int, int] = (5, 200),
    terms: tuple[int, int] = (1, 50),
    damping: Range = (1e-8, 1e-1),
    rate: Range = (1e-3, 1.0),
    adam_rate: Range = (1e-4, 1e-1),
    penalty: Range = (1.0, 1e3),
    outer_rate: Range = (1e-3, 1.0),
    prefix: str = "engine.",
) -> Engine:
    """Ask a trial for the engine's settings and return an algorithm and an outer move made of them.

    The names of the parameters, after ``prefix``, and when they are asked for; ranges are searched on a log scale:

    - ``algorithm``: one of ``algorithms``.
    - ``inner``: one of ``inner``, for ``"implicit"`` and ``"unrolled"``, which only takes rules, so that with
      ``"lbfgs"`` among the choices its own name is ``unrolled_inner``.
    - ``inner_steps``: steps of training in one outer step; iterations of ``"soba"``.
    - ``gradient_descent_rate`` in ``rate``, ``adam_rate`` in ``adam_rate``: step sizes of these rules; ``step_size`` in
      ``rate``: that of ``"stocbio"``, ``"soba"`` and ``"f2sa"``.
    - ``linear``: one of ``linear``, for ``"implicit"``; ``scale`` in ``rate``, the step of ``"identity"``.
    - ``terms``: most products of ``"cg"``, terms of ``"neumann"`` and ``"stocbio"``, rank of ``"nystrom"``.
    - ``damping``: added to the inner Hessian for ``"cg"`` and ``"neumann"``; that of ``"nystrom"``.
    - ``truncate``: the share of the steps, 1, 0.5 or 0.25, that ``"unrolled"`` goes back through.
    - ``penalty``: γ of ``"f2sa"``.
    - ``outer``: one of ``outer``; ``outer_adam_rate`` and ``outer_sgd_rate`` in ``outer_rate``, their step sizes.

    A study can be told what to try first under these names: ``study.enqueue_trial({"engine.algorithm": "implicit"})``.
    The best engine is made again with ``suggest_engine(optuna.trial.FixedTrial(study.best_params), ...)`` and the same
    choices. ``"implicit"`` needs hyperparameters in the inner objective, all but ``"unrolled"`` training near an
    optimum. Rates that diverge fail their trial, as :class:`HybridObjective` says.

    Args:
        trial: a trial, or anything with its ``suggest_int``, ``suggest_float`` and ``suggest_categorical``.
        algorithms: of ``"implicit"``, ``"unrolled"``, ``"stocbio"``, ``"soba"``, ``"f2sa"``.
        linear: of ``"cg"``, ``"neumann"``, ``"nystrom"``, ``"identity"``.
        inner: of ``"gradient_descent"``, ``"adam"``, and for ``"implicit"`` alone ``"lbfgs"`` (to ‖∇g‖ of 1e-4).
        outer: of ``"adam"``, ``"sgd"``, and ``"lbfgsb"``, which needs full batches and an exact algorithm.
        inner_steps: (least, most), whole numbers of at least 1.
        terms: (least, most), whole numbers of at least 1.
        damping: (least, most), above 0, in units of curvature.
        rate: (least, most), above 0.
        adam_rate: (least, most), above 0.
        penalty: (least, most), above 0.
        outer_rate: (least, most), above 0.
        prefix: what the parameters' names begin with.

    Raises:
        InputError: an unknown choice, none, or a range that is none.

    Example:
        >>> import optuna
        >>> chosen = {"engine.algorithm": "implicit", "engine.linear": "neumann", "engine.terms": 5}
        >>> chosen |= {"engine.damping": 1e-8, "engine.inner": "adam", "engine.inner_steps": 20}
        >>> chosen |= {"engine.adam_rate": 0.01, "engine.outer": "sgd", "engine.outer_sgd_rate": 0.1}
        >>> suggest_engine(optuna.trial.FixedTrial(chosen)).outer
        Torch(SGD, lr=0.1)
    """
    choices = {"algorithms": algorithms, "linear": linear, "inner": inner, "outer": outer}
    ranges = {"inner_steps": inner_steps, "terms": terms, "damping": damping, "rate": rate, "adam_rate": adam_rate}
    ranges |= {"penalty": penalty, "outer_rate": outer_rate}
    space = _Space(trial, prefix, _checked_choices(choices), _checked_ranges(ranges))
    return Engine(_algorithm(space), _outer(space))


class _Space:
    """A trial with the ranges and choices that it is asked for."""

    def __init__(
        self, trial: Any, prefix: str, choices: dict[str, list[str]], ranges: dict[str, tuple[float, float]]
    ) -> None:
        self.trial, self.prefix, self.choices, self.ranges = trial, prefix, choices, ranges

    def one(self, name: str, choices: Sequence[Any]) -> Any:
        return self.trial.suggest_categorical(f"{self.prefix}{name}", list(choices))

    def count(self, name: str) -> int:
        low, high = self.ranges[name]
        return int(self.trial.suggest_int(f"{self.prefix}{name}", int(low), int(high), log=True))

    def number(self, name: str, range_name: str) -> float:
        low, high = self.ranges[range_name]
        return float(self.trial.suggest_float(f"{self.prefix}{name}", low, high, log=True))


def _algorithm(space: _Space) -> Algorithm[Any]:
    kind = space.one("algorithm", space.choices["algorithms"])
    steps = space.count("inner_steps")
    if kind == "implicit":
        solver = _inner(space, space.one("inner", space.choices["inner"]), steps)
        return _implicit(space, solver)
    if kind == "unrolled":
        rules = [rule for rule in space.choices["inner"] if rule != "lbfgs"]
        name = "inner" if rules == space.choices["inner"] else "unrolled_inner"
        share = space.one("truncate", SHARES)
        back = None if share == 1.0 else max(1, round(share * steps))
        return Unrolled(steps, _rule(space, space.one(name, rules), None), truncate=back)
    size = space.number("step_size", "rate")
    if kind == "stocbio":
        return StocBiO(step_size=size, inner_steps=steps, terms=space.count("terms"))
    if kind == "f2sa":
        return F2SA(step_size=size, inner_steps=steps, penalty=space.number("penalty", "penalty"))
    return SOBA(step_size=size, iterations=steps)


def _implicit(space: _Space, inner: InnerSolver) -> Implicit:
    kind = space.one("linear", space.choices["linear"])
    if kind == "identity":
        return Implicit(Identity(space.number("scale", "rate")), inner=inner)
    terms, damping = space.count("terms"), space.number("damping", "damping")
    if kind == "nystrom":
        return Implicit(Nystrom(rank=terms, damping=damping), inner=inner)
    linear: LinearSolver = CG(max_steps=terms) if kind == "cg" else Neumann(terms)
    return Implicit(linear, inner=inner, damping=damping)


def _inner(space: _Space, kind: str, steps: int) -> InnerSolver:
    return LBFGS(tolerance=TOLERANCE, steps=steps) if kind == "lbfgs" else _rule(space, kind, steps)


def _rule(space: _Space, kind: str, steps: int | None) -> UpdateRule:
    if kind == "adam":
        return Adam(steps=steps, lr=space.number("adam_rate", "adam_rate"))
    return GradientDescent(steps=steps, lr=space.number("gradient_descent_rate", "rate"))


def _outer(space: _Space) -> OuterMove:
    kind = space.one("outer", space.choices["outer"])
    if kind == "lbfgsb":
        return LBFGSB(iterations=1)
    optimizer = torch.optim.Adam if kind == "adam" else torch.optim.SGD
    return Torch(optimizer, lr=space.number(f"outer_{kind}_rate", "outer_rate"))


def _checked_choices(given: dict[str, Sequence[Any]]) -> dict[str, list[str]]:
    for name, chosen in given.items():
        known = CHOICES[name]
        wrong = [choice for choice in chosen if choice not in known]
        if isinstance(chosen, str) or wrong or not chosen or len(set(chosen)) < len(chosen):
            hint = did_you_mean(str(wrong[0]), known) if wrong and not isinstance(chosen, str) else ""
            raise InputError(
                passed=f"suggest_engine({name}={chosen!r}){hint}",
                expected=f"some of {list(known)}, each once",
                do=f'pass a tuple: {name}=("{known[0]}",)',
            )
    if "unrolled" in given["algorithms"] and list(given["inner"]) == ["lbfgs"]:
        raise InputError(
            passed='suggest_engine(inner=("lbfgs",)) with "unrolled" among the algorithms',
            expected="a rule that can be unrolled",
            do='add "gradient_descent" or "adam" to inner, or take "unrolled" out of algorithms',
        )
    return {name: list(chosen) for name, chosen in given.items()}


def _checked_ranges(given: dict[str, Any]) -> dict[str, tuple[float, float]]:
    for name, ends in given.items():
        pair = isinstance(ends, Sequence) and not isinstance(ends, str) and len(ends) == 2
        if not pair or (name in WHOLE and not all(isinstance(end, int) for end in ends)):
            kind = "whole numbers" if name in WHOLE else "numbers"
            raise InputError(f"suggest_engine({name}={ends!r})", f"(least, most), two {kind}", f"pass {name}=(1, 10)")
        check_number("suggest_engine", f"{name}[0]", ends[0], above=0)
        check_number("suggest_engine", f"{name}[1]", ends[1], least=float(ends[0]))
    return dict(given)

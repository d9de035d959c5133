"""How each hyperparameter enters a problem, found by looking at the graphs and by moving it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from hypergrad import guards, tree
from hypergrad.errors import CutError, InputError, UnreachedError
from hypergrad.inner import InnerSolver, Tuned, UpdateRule
from hypergrad.objective import UserFunction
from hypergrad.problem import Problem
from hypergrad.tree import Tree

Values = Callable[[Tree], list[Tensor]]

PLACES = ("optimizer", "initial", "inner", "outer")
"""Where a hyperparameter may be read, in the order in which they are looked at."""

LEAVING = {
    "item": ".item()",
    "tolist": ".tolist()",
    "numpy": ".numpy()",
    "detach": ".detach()",
    "data": ".data",
    "__float__": "float()",
    "__int__": "int()",
    "__index__": "int()",
    "__bool__": "a comparison in an if",
}
"""Methods of a tensor that lead out of the graph, and what a user knows them as."""


class Kind(StrEnum):
    """How a hyperparameter enters: what an algorithm has to differentiate to see it."""

    INNER = "inner"
    """The inner objective, its penalty or condition: the inner solution moves with it."""
    OPTIMIZER = "optimizer"
    """The update rule, by way of :class:`~hypergrad.Tuned`: the path of training moves, an optimum does not."""
    INITIAL = "initial"
    """Where training starts (``Problem.initial``): likewise."""
    OUTER = "outer"
    """The outer objective alone: its derivative is direct."""
    DISCRETE = "discrete"
    """A whole number or a category, such as a number of layers: there is no derivative."""


@final
@dataclass(frozen=True)
class Entry:
    """Where one hyperparameter enters.

    Attributes:
        name: the hyperparameter.
        places: of ``"optimizer"``, ``"initial"``, ``"inner"``, ``"outer"`` all that read it, in this order; none for a
            discrete one.
        kind: what decides which algorithm can see it: ``optimizer`` or ``initial`` where it enters there, else
            ``inner``, else ``outer``.
    """

    name: str
    places: tuple[str, ...]
    kind: Kind


def kinds(
    problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Any], *, inner: InnerSolver | None = None
) -> dict[str, Entry]:
    """Say of every hyperparameter how it enters the problem.

    Each function is evaluated once, near θ, and its graph searched. A hyperparameter that a function's graph does not
    reach is then moved, with the same random numbers and batches: where the value changes all the same, the path of
    the gradient is cut, and a hypergradient would be wrong without a word.

    Nothing that is passed is changed; random numbers and batches are put back.

    Args:
        problem: the problem.
        params: θ, or where training starts.
        hparams: λ. Tensors of whole numbers or truth values, and Python's ``int``, ``bool`` and ``str``, are discrete:
            the objectives get them as they are.
        inner: how training goes, to look for settings that are :class:`~hypergrad.Tuned`.

    Returns:
        An :class:`Entry` for each name, in order.

    Cost: one evaluation of each objective, and up to four more for each hyperparameter that an objective's graph does
    not reach.

    Raises:
        CutError: a hyperparameter that is read under ``torch.no_grad``, detached, as a number, or rounded.
        UnreachedError: one that nothing reads.
        InputError: inputs of another form.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: (params["w"] - hparams["z"]).square().sum(),
        ... )
        >>> hparams = {"x": torch.zeros(2), "z": torch.zeros(2), "lr": torch.tensor(0.1)}
        >>> rule = hg.GradientDescent(lr=hg.Tuned("lr"), steps=5)
        >>> found = hg.kinds(problem, {"w": torch.ones(2)}, hparams, inner=rule)
        >>> {name: str(entry.kind) for name, entry in found.items()}
        {'x': 'inner', 'z': 'outer', 'lr': 'optimizer'}
    """
    for what, value, kind in (("problem", problem, Problem), ("inner", inner, InnerSolver | None)):
        if not isinstance(value, kind):
            raise InputError(f"kinds({what}={value!r})", f"{what}: {kind}", "pass the object, not its class")
    moving, fixed = _split(hparams)
    params = tree.check_tree("params", params)
    if moving:
        params, moving = problem.check_inputs(params, moving)
    seen: dict[str, set[str]] = {name: set() for name in moving}
    places = reads(problem, params, moving, inner=inner, fixed=fixed, seen=seen)
    _refuse_unread(places, seen)
    found = {name: Entry(name, read, _kind(read)) for name, read in places.items()}
    return {name: found.get(name, Entry(name, (), Kind.DISCRETE)) for name in hparams}


def reads(
    problem: Problem,
    params: Tree,
    hparams: Tree,
    *,
    inner: InnerSolver | None = None,
    places: tuple[str, ...] = PLACES,
    fixed: Mapping[str, Any] | None = None,
    seen: dict[str, set[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return the places at which each hyperparameter is read, of those asked for; without checks of the inputs.

    Args:
        problem: the problem.
        params: θ.
        hparams: those with derivatives.
        inner: how training goes.
        places: where to look.
        fixed: discrete hyperparameters.
        seen: gets what cuts the path of each hyperparameter.

    Raises:
        CutError: a path that is cut.
    """
    found: dict[str, dict[str, None]] = {name: {} for name in hparams}
    seen = {name: set() for name in hparams} if seen is None else seen
    device, params = tree.device_of(params), _beside(params)
    for place, function in _functions(problem, params, dict(fixed or {}), inner):
        if place not in places or not hparams:
            continue
        with guards.again(guards.Draws.capture(device, problem.inner_data, problem.outer_data)):
            for name in _Look(problem, place, function, hparams, device).read(seen):
                found[name][place] = None
    return {name: tuple(read) for name, read in found.items()}


def _beside(params: Tree) -> Tree:
    """Return a point near θ: where θ starts at zero a penalty is zero whatever its weight, and nothing would show."""
    generator = torch.Generator().manual_seed(0)
    moved = {}
    for name, value in params.items():
        signs = torch.randn(value.shape, generator=generator).to(value).sign()
        moved[name] = value.detach() + 0.01 * signs * value.detach().square().mean().sqrt().clamp(min=1.0)
    return moved


def _kind(places: tuple[str, ...]) -> Kind:
    return next(kind for kind in (Kind.OPTIMIZER, Kind.INITIAL, Kind.INNER, Kind.OUTER) if kind in places)


def _split(hparams: object) -> tuple[Tree, dict[str, Any]]:
    """Return the hyperparameters that have derivatives, and the discrete ones."""
    if not isinstance(hparams, Mapping) or not hparams:
        return tree.check_tree("hparams", hparams), {}
    fixed = {
        name: value
        for name, value in hparams.items()
        if isinstance(value, int | str)
        or (isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex())
    }
    moving = {name: value for name, value in hparams.items() if name not in fixed}
    return (tree.check_tree("hparams", moving) if moving else {}), fixed


def _functions(
    problem: Problem, params: Tree, fixed: dict[str, Any], inner: InnerSolver | None
) -> Iterator[tuple[str, Values]]:
    """Yield everything that may read hyperparameters, under the name of its place."""
    known = problem.inner is not None or problem.root
    rule = inner if isinstance(inner, UpdateRule) else None
    steps = None if rule is None else rule.steps
    for setting in [] if rule is None else [getattr(rule, name) for name in rule.tuned]:
        if isinstance(setting, Tuned):
            yield "optimizer", partial(_settings, setting, min(steps or 100, 1000), fixed)
    if problem.initial is not None:
        start = problem.initial
        yield "initial", lambda hparams: list(start(tree.NamedTree("hparams", {**hparams, **fixed})).values())
    if known:
        yield "inner", lambda hparams: _inner(problem, tree.leaves(params), {**hparams, **fixed})
    else:
        yield "inner", lambda hparams: _moved_by_response(problem, params, {**hparams, **fixed})
    yield (
        "outer",
        lambda hparams: [problem.outer_value(tree.leaves(params), {**hparams, **fixed}, problem.draw_outer())],
    )


def _settings(setting: Tuned, steps: int, fixed: dict[str, Any], hparams: Tree) -> list[Tensor]:
    return [setting({**hparams, **fixed}, step) for step in range(steps)]


def _moved_by_response(problem: Problem, params: Tree, hparams: Tree) -> list[Tensor]:
    named = problem.pull_back(params, hparams, tree.zeros_like(params), problem.draw_inner())
    return [hparams[name] for name in named]


def _inner(problem: Problem, params: Tree, hparams: Tree) -> list[Tensor]:
    """Return the values of the inner functions; a condition's are tensors, an objective's a number."""
    batch = problem.draw_inner()
    if problem.condition is not None:
        return list(UserFunction("condition", problem.condition).tree(params, hparams, batch).values())
    assert problem.inner is not None
    value = UserFunction("inner", problem.inner).scalar(params, hparams, batch, differentiable=False)
    if problem.penalty is None:
        return [value]
    return [value, UserFunction("penalty", problem.penalty).scalar(params, hparams, None, differentiable=False)]


class _Look:
    """One function, evaluated again and again at the same random numbers and batches."""

    def __init__(self, problem: Problem, place: str, function: Values, hparams: Tree, device: torch.device) -> None:
        self.problem, self.place, self.function, self.hparams = problem, place, function, hparams
        self.draws = guards.Draws.capture(device, problem.inner_data, problem.outer_data)
        self.device = device

    def read(self, seen: dict[str, set[str]]) -> list[str]:
        """Return the hyperparameters that the function depends on; add what cuts their paths to ``seen``.

        Raises:
            CutError: one that moves the value and is not reached by its graph.
        """
        hparams = tree.attached(self.hparams)
        spy = _Spy(hparams)
        with spy:
            values = self._values(hparams)
        outputs = [value for value in values if isinstance(value, Tensor)]
        facts = guards.inspect_graph(outputs, hparams.values(), name=f"the {self.place} part")
        reached = [name for name, value in hparams.items() if facts.reaches(value)]
        flat = self._flat(outputs, {name: hparams[name] for name in reached})
        for name in hparams:
            seen[name] |= spy.cuts[name]
            if (name not in reached or name in flat) and self._moves(name, values, flat=name in flat):
                raise _cut(name, self.place, spy.cuts[name], flat=name in flat)
        return reached

    def _values(self, hparams: Tree) -> list[Any]:
        self.draws.restore()
        with guards.pinned_rng(self.device), guards.second_order(self.device), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True to a scalar")
            return self.function(hparams)

    def _flat(self, outputs: list[Tensor], reached: Tree) -> set[str]:
        """Return those with a derivative that is zero and depends on nothing, as that of a rounded number is."""
        live = [output for output in outputs if output.requires_grad]
        if not live or not reached:
            return set()
        total = torch.stack([output.sum() for output in live]).sum()
        slopes = torch.autograd.grad(total, list(reached.values()), create_graph=True, allow_unused=True)
        pairs = zip(reached, slopes, strict=True)
        return {name for name, s in pairs if s is not None and not s.requires_grad and not bool(s.any())}

    def _moves(self, name: str, values: list[Any], *, flat: bool) -> bool:
        """Return whether the values change when one hyperparameter is moved, a little or a lot, up or down.

        A derivative that was zero (``flat``) has to be so where the values are others, too: a clamp's is not.
        """
        where = self.hparams[name].detach()
        for size in (1e-3, -1e-3, 1.0, -1.0):
            moved = self.problem.project({**self.hparams, name: where + size * where.abs().clamp(min=1.0)})
            if torch.equal(moved[name], where):
                continue
            moved = tree.attached(moved)
            try:
                there = self._values(moved)
            except (ArithmeticError, RuntimeError, ValueError):
                return not flat  # what fails there and not here depends on it
            if not all(map(_same, values, there)):
                outputs = [value for value in there if isinstance(value, Tensor)]
                return not flat or name in self._flat(outputs, {name: moved[name]})
        return False


def _same(left: Any, right: Any) -> bool:
    """Return whether two values are the same to the last bit; NaN is NaN."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left.detach().nan_to_num(), right.detach().nan_to_num())
    return bool(left == right)


class _Spy(TorchFunctionMode):
    """Notes where hyperparameters, and tensors computed from them, leave the graph.

    Attributes:
        cuts: under each name what was called.
    """

    def __init__(self, hparams: Tree) -> None:
        super().__init__()
        self.cuts: dict[str, set[str]] = {name: set() for name in hparams}
        self._owners: dict[int, tuple[Tensor, frozenset[str]]] = {
            id(value): (value, frozenset([name])) for name, value in hparams.items()
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        passed = _pytree.tree_leaves((args, kwargs))
        owners = frozenset[str]().union(*(self._owners[id(v)][1] for v in passed if id(v) in self._owners))
        if not owners:
            return result
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        how = LEAVING.get(name)
        outputs = [value for value in _pytree.tree_leaves(result) if isinstance(value, Tensor)]
        if how is None and outputs and not torch.is_grad_enabled():
            how = "torch.no_grad()"
        for owner in owners if how is not None else ():
            self.cuts[owner].add(str(how))
        for output in outputs if how is None else []:
            self._owners[id(output)] = (output, owners)
        return result


def _cut(name: str, place: str, cuts: set[str], *, flat: bool) -> CutError:
    part = {"optimizer": "the update rule", "initial": "initial"}.get(place, f"the {place} objective")
    if flat:
        cause = "its derivative is zero everywhere, as after round(), floor(), sign() or a comparison"
    elif cuts:
        cause = f"{' and '.join(sorted(cuts))} cut it out of the graph"
    else:
        cause = "something outside torch's graph reads it, such as .item(), float(), .detach() or torch.no_grad()"
    return CutError(
        [name],
        passed=f"hparams {[name]}, which change {part} although no gradient flows from it to them: {cause}",
        expected="hyperparameters that are read with torch operations that autograd records",
        do="use the tensor itself in place of its number, outside torch.no_grad(); for one that has no derivative use "
        "hypergrad.best_response or hypergrad.ZerothOrder",
    )


def _refuse_unread(places: dict[str, tuple[str, ...]], seen: dict[str, set[str]]) -> None:
    lost = [name for name, read in places.items() if not read]
    if not lost:
        return
    causes = "; ".join(f"{name!r} is read by {' and '.join(sorted(seen[name]))}" for name in lost if seen[name])
    raise UnreachedError(
        lost,
        passed=f"hparams {lost}, on which neither objective, nor the start, nor the update rule depends"
        + (f" ({causes})" if causes else ""),
        expected="hyperparameters that enter an objective through torch operations, or an update rule with "
        "hypergrad.Tuned",
        do="use them there, or leave them out. A learning rate has no implicit hypergradient: read it in the update "
        'rule, inner=hypergrad.GradientDescent(lr=hypergrad.Tuned("lr")), and take hypergrad.Unrolled, '
        "hypergrad.ForwardMode or hypergrad.best_response",
    )

"""Loops written for ``higher``: every torch optimizer in them, and our reports and checks around them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm, Cost, Hypergradient, Report, Stopwatch, check_finite, check_reached, replayed
from hypergrad.errors import InputError, MissingDependencyError
from hypergrad.linear import Status
from hypergrad.problem import Problem
from hypergrad.settings import check_function, check_kind
from hypergrad.solvers.inner.torch_groups import LOOPS, Part
from hypergrad.solvers.inner.torch_probe import probe
from hypergrad.solvers.inner.torch_step import Options, followed_step
from hypergrad.tree import Tree

Override = dict[str, list[Any]]
UNREACHED = "use them in the loop's losses, in override, or in the outer objective, with torch operations"


def register(*kinds: type[torch.optim.Optimizer]) -> None:
    """Let ``higher`` differentiate these optimizers as :class:`~hypergrad.TorchRule` does.

    From then on ``higher.innerloop_ctx`` and the other functions of ``higher`` give them the iterates of
    :mod:`torch.optim`, bit for bit, with derivatives for every number in ``override``. It serves the classes that
    ``higher`` does not know (AdamW, NAdam, RAdam, Adafactor), those it deviates from (Adam), and one's own.

    Args:
        kinds: classes of optimizers.

    Raises:
        InputError: what is no class of optimizers.
        MissingDependencyError: ``higher`` is not installed.
        UnsupportedError: later, at the first step, for an optimizer that cannot be followed.

    Example:
        >>> import torch
        >>> register(torch.optim.AdamW, torch.optim.NAdam)
    """
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise InputError(f"register({kind!r})", "classes of torch optimizers", "pass torch.optim.AdamW")
    higher = _higher()
    for kind in kinds:
        higher.register_optim(kind, _followed())


@final
@dataclass(frozen=True)
class LoopState:
    """Where the loop starts.

    Attributes:
        params: θ₀.
        steps: hypergradients taken.
    """

    params: Tree
    steps: int = 0


@final
@dataclass(frozen=True)
class Loop(Algorithm[LoopState]):
    """dF/dλ through a training loop that is written for ``higher``, with a report, for any face and for the check.

    The loop runs inside ``higher.innerloop_ctx(model, optimizer)`` from the parameters of the problem, and the outer
    objective of the problem judges where it ends. The inner objective of the problem is not used: the loop has its own.
    Model and optimizer stay as they are.

    Args:
        model: the module, whose parameters have the names of ``params``.
        optimizer: over its parameters, of a class that ``higher`` knows or that :func:`register` gave it.
        train: ``(fmodel, diffopt, hparams)``: the loop, which calls ``diffopt.step(loss)``.
        override: ``hparams -> dict``, the ``override`` of ``higher``: options of the optimizer as tensors in lists.

    Cost: one inner gradient and one product for each ``diffopt.step``, and 1 outer gradient; memory for all of them.

    Raises:
        MissingDependencyError: ``higher`` is not installed.
        UnreachedError: a hyperparameter that neither the loop nor the outer objective uses.
        NonFiniteError: training or derivatives that ran into NaN or infinity.

    Source: Grefenstette et al. (2019), whose loops these are.

    Example:
        >>> import torch, hypergrad as hg
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: params["weight"].square().sum(),  # not used
        ...     outer=lambda params, hparams: params["weight"].sum(),
        ... )
        >>> def train(fmodel, diffopt, hparams):
        ...     for _ in range(2):
        ...         diffopt.step((fmodel(torch.ones(1, 1)) * hparams["x"]).sum())
        >>> loop = Loop(model, torch.optim.SGD(model.parameters(), lr=0.1), train)
        >>> point = dict(model.named_parameters()), {"x": torch.tensor(1.0)}
        >>> hg.hypergradient(problem, *point, loop).grads["x"]
        tensor(-0.2000)
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    train: Callable[[Any, Any, Tree], Any]
    override: Callable[[Tree], Override] | None = None
    order = 2
    cost = "T inner gradients + T products + 1 outer gradient"
    needs = "a loop written for higher"

    def __post_init__(self) -> None:
        """Refuse what is no model, optimizer or loop."""
        check_kind(self, "model", nn.Module, "pass the module that the loop trains")
        check_kind(self, "optimizer", torch.optim.Optimizer, "pass the optimizer over the module's parameters")
        check_function(self, "train", "(fmodel, diffopt, hparams) -> anything", "pass the body of innerloop_ctx")
        check_function(self, "override", "hparams -> override of higher", "leave override out for none")

    @property
    def exact(self) -> bool:
        """Whether the whole loop is differentiated: always."""
        return True

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return 1 outer gradient: how many steps the loop makes is not known before it has run."""
        return Cost(outer_gradients=1)

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> LoopState:
        """Check the inputs and start at ``params``."""
        params, _ = problem.check_inputs(params, hparams)
        tree.check_keys("params", params, dict(self.model.named_parameters()))
        tree.check_shapes("params", params, dict(self.model.named_parameters()))
        return LoopState(tree.detached(params))

    def response(self, problem: Problem, state: LoopState, hparams: Tree) -> Tree:
        """Return where the loop ends."""
        ends, _ = self._run(problem, state, tree.detached(hparams), graph=False)
        return tree.detached(ends)

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return where the loop ends with a backward pass through it."""
        return replayed(self, problem, params, hparams)

    def step(self, problem: Problem, state: LoopState, hparams: Tree) -> tuple[Hypergradient, LoopState]:
        """Run the loop and differentiate it."""
        device = tree.device_of(state.params)
        watch, hparams = Stopwatch(device), tree.attached(hparams)
        with guards.pinned_rng(device), guards.second_order(device):
            ends, steps = self._run(problem, state, hparams, graph=True)
            last = tree.detached(ends)
            check_finite("params", last, when="at the end of the loop")
            outer = problem.outer_gradients(last, hparams, problem.draw_outer())
        live = [key for key, value in ends.items() if value.requires_grad]
        pulled = torch.autograd.grad(
            [ends[key] for key in live],
            list(hparams.values()),
            [outer.params[key] for key in live],
            allow_unused=True,  # told apart below
        )
        mixed = {name: value for name, value in zip(hparams, pulled, strict=True) if value is not None}
        if state.steps == 0:
            check_reached(hparams, {*mixed, *outer.hparams}, advice=UNREACHED)
        grads = {
            name: mixed.get(name, torch.zeros_like(value, requires_grad=False)) + outer.hparams.get(name, 0)
            for name, value in hparams.items()
        }
        check_finite("the hypergradient of hparams", grads, when="at the end of the loop")
        report = Report(
            algorithm=f"Loop({type(self.model).__name__}, {type(self.optimizer).__name__})",
            status=str(Status.COMPLETED),
            outer_loss=float(outer.value),
            cost=Cost(steps, steps, 1),
            seconds=watch.seconds(),
            peak_bytes=watch.peak_bytes(),
        )
        return Hypergradient(grads, last, outer.value, report), LoopState(state.params, state.steps + 1)

    def _run(self, problem: Problem, state: LoopState, hparams: Tree, *, graph: bool) -> tuple[Tree, int]:
        """Return where the loop ends, and its number of steps."""
        higher = _higher()
        override = None if self.override is None else self.override(hparams)
        first = tree.leaves(state.params) if problem.initial is None else problem.start(hparams, state.params)
        names = [name for name, _ in self.model.named_parameters()]
        context = higher.innerloop_ctx(self.model, self.optimizer, override=override, track_higher_grads=graph)
        with torch.enable_grad(), context as (fmodel, diffopt):
            fmodel.update_params([first[name] if graph else first[name].detach().requires_grad_() for name in names])
            count = _Count(diffopt.step)
            diffopt.step = count
            self.train(fmodel, diffopt, hparams)
            return dict(zip(names, fmodel.parameters(), strict=True)), count.calls


class _Count:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


def _higher() -> Any:
    try:
        import higher
    except ImportError as error:
        raise MissingDependencyError(
            passed=f"hypergrad.bridges.higher without the package higher ({error})",
            expected="higher",
            do='pip install "hypergrad-engine[higher]"',
        ) from error
    return higher


@functools.cache
def _followed() -> Any:
    """Return a differentiable optimizer of ``higher`` whose steps are followed ones; it can be made of any class."""
    base: Any = _higher().optim.DifferentiableOptimizer
    probed: WeakKeyDictionary[torch.optim.Optimizer, set[Any]] = WeakKeyDictionary()

    class Followed(base):  # type: ignore[misc]
        def __init__(self, other: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            super().__init__(other, *args, **kwargs)
            self._other = other

        def _update(self, grouped_grads: list[list[Tensor | None]], **_: Any) -> None:
            places = {
                f"{group}/{spot}": (group, spot)
                for group, grads in enumerate(grouped_grads)
                for spot, grad in enumerate(grads)
                if grad is not None
            }
            parts = [
                Part(group, tuple(key for key, place in places.items() if place[0] == group), {})
                for group in range(len(grouped_grads))
            ]
            options = [_options(group) for group in self.param_groups]
            params = {key: self.param_groups[group]["params"][spot] for key, (group, spot) in places.items()}
            gradient: Any = {key: grouped_grads[group][spot] for key, (group, spot) in places.items()}
            state = {key: dict(self.state[group].get(spot, {})) for key, (group, spot) in places.items()}
            _probe_once(probed.setdefault(self._other, set()), self._other, parts, options, params)
            live = {
                f"{key}/{name}"
                for key, entries in state.items()
                for name, value in entries.items()
                if isinstance(value, Tensor) and value.requires_grad
            }
            graph = self._track_higher_grads
            moved, after = followed_step(
                self._other,
                parts,
                options,
                params,
                gradient,
                state,
                live,
                graph=graph,
            )
            for key, (group, spot) in places.items():
                self.param_groups[group]["params"][spot] = moved[key]
                self.state[group][spot] = after[key]

    return Followed


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group of ``higher``, with tensors of one entry as 0-d tensors."""
    found = {}
    for name, value in group.items():
        if name not in ("params", "param_names"):
            several = tuple(_single(name, one) for one in value) if isinstance(value, tuple | list) else None
            found[name] = _single(name, value) if several is None else several
    return found | {name: value for name, value in LOOPS.items() if name in found}


def _single(name: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InputError(
            passed=f"override of {name!r} with a tensor of shape {tuple(value.shape)}",
            expected="one number for each group",
            do="put parameters with numbers of their own into groups of their own",
        )
    return value.reshape(()) if isinstance(value, Tensor) else value


def _probe_once(
    done: set[Any], optimizer: torch.optim.Optimizer, parts: list[Part], options: Options, params: Tree
) -> None:
    """Probe an optimizer unless it was probed with tensors in the place of the same options."""
    tuned = tuple(
        (place, name)
        for place, chosen in enumerate(options)
        for name, value in chosen.items()
        if isinstance(value, Tensor | tuple)
    )
    kind = tuned, tuple(sorted({(part.group, params[key].dim()) for part in parts for key in part.keys}))
    if kind not in done:
        with torch.enable_grad():
            probe(optimizer, parts, options, params)
        done.add(kind)

"""The steps of any torch optimizer, differentiated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from hypergrad.errors import InputError, UnsupportedError
from hypergrad.inner import Slots, UpdateRule
from hypergrad.settings import check_function
from hypergrad.solvers.inner.torch_groups import (
    Factory,
    Optimizer,
    Part,
    identities,
    make,
    members,
    options_of,
    parts,
)
from hypergrad.solvers.inner.torch_probe import Schema, probe
from hypergrad.solvers.inner.torch_schedule import Schedule
from hypergrad.solvers.inner.torch_state import State, decode, encode
from hypergrad.solvers.inner.torch_step import Options, followed_step, plain_step
from hypergrad.tree import Tree


@final
@dataclass(frozen=True, eq=False, repr=False)
class TorchRule(UpdateRule):
    """The steps of a :mod:`torch.optim` optimizer, or of one written like them, as a rule that can be differentiated.

    The optimizer's own ``step()`` runs on stand-ins for the parameters, and each of its torch calls is made again out
    of place where a graph is wanted. So the iterates are those of the optimizer, bit for bit (of its loop over
    tensors: ``foreach`` and ``fused`` are off), and the derivatives are those of its step: with respect to the first
    parameters, the hyperparameters of the gradient and every option in ``settings``. Its groups and their options are
    read as they are at every step; optimizer, state and parameters stay as they are.

    At the first step a probe compares some steps of small random tensors with the optimizer's own, bit for bit, and
    their derivatives with central differences. What does not pass is refused.

    Args:
        optimizer: the optimizer, or a function that makes one: ``tensors -> torch.optim.Optimizer``.
        settings: options to read from elsewhere: ``{"lr": Tuned("lr")}`` for all groups, ``{1: {"lr": ...}}`` for
            one group, by number or name, ``{"head.weight": {"lr": ...}}`` for one parameter. An option of several
            numbers takes as many settings: ``{"betas": (Tuned("beta1"), 0.999)}``. Tuned options are in the units and
            the range that the optimizer asks for; 0 is looked at from above.
        names: the module, or a dict of the same tensors, that gives the optimizer's parameters their names in
            ``params``. Not needed for a function, for an optimizer made of ``model.named_parameters()``, nor for a
            single group without a state to continue.
        scheduler: the optimizer's scheduler, which is followed from where it stands and itself stays there, or a
            function ``optimizer -> scheduler``. It moves at every step. A tuned ``lr`` takes the place of the rate
            that the scheduler starts from (``initial_lr``; ``max_lr`` of OneCycleLR).
        continued: whether training starts with the optimizer's present state (momentum, step counts) instead of none.
        steps: number of steps of a run, at least 1.
        tolerance: a run stops once ‖∇_θ g‖ is at most this.

    Cost: 1 gradient a step. A followed step takes some times the optimizer's own (see the guide on optimizers).

    Raises:
        UnsupportedError: an optimizer that cannot be followed (it calls a closure, takes values out of torch, rounds to
            half precision, keeps what is no tensor or number), one with hooks, or a scheduler that needs a metric.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * params["w"] ** 2,
        ...     outer=lambda params, hparams: params["w"],
        ... )
        >>> rule = hg.TorchRule(lambda tensors: torch.optim.SGD(tensors, lr=0.1), {"lr": hg.Tuned("lr")})
        >>> start = {"w": torch.tensor(1.0)}, {"lr": torch.tensor(0.1)}
        >>> hg.hypergradient(problem, *start, hg.Unrolled(steps=1, inner=rule)).grads["lr"]
        tensor(-1.)
    """

    optimizer: Optimizer | Factory
    settings: Mapping[Any, Any] = field(default_factory=dict)
    names: nn.Module | Mapping[str, Tensor] | None = None
    scheduler: Any = None
    continued: bool = False
    _plans: dict[Any, _Plan] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Refuse what is no optimizer."""
        super().__post_init__()
        if not isinstance(self.optimizer, Optimizer):
            check_function(
                self,
                "optimizer",
                "a torch.optim.Optimizer, or tensors -> one",
                "pass the optimizer that you train with",
            )
            if self.names is not None:
                raise InputError(
                    passed="TorchRule(names=...) with a function that makes the optimizer",
                    expected="names of the tensors of a live optimizer; a function gets tensors in the order of params",
                    do="drop names",
                )
            if self.continued:
                raise InputError(
                    passed="TorchRule(continued=True) with a function that makes a new optimizer",
                    expected="an optimizer with a state",
                    do="pass the optimizer itself, or drop continued",
                )
        if not isinstance(self.settings, Mapping):
            raise InputError(
                passed=f"TorchRule(settings={self.settings!r})",
                expected="a mapping from options to settings",
                do='pass {"lr": hypergrad.Tuned("lr")}',
            )

    def __repr__(self) -> str:
        """Return the optimizer's kind and what is set."""
        made = isinstance(self.optimizer, Optimizer)
        name = type(self.optimizer).__name__ if made else getattr(self.optimizer, "__qualname__", "function")
        return f"TorchRule({name}, settings={dict(self.settings)!r})"

    def start(self, params: Tree) -> Slots:
        """Return no slots, or with ``continued`` those of the optimizer's present state."""
        if not self.continued:
            return {}
        plan = self._plan(params)
        return encode(plan.present_state(), set())

    def update(self, params: Tree, gradient: Tree, slots: Slots, hparams: Tree, step: int) -> tuple[Tree, Slots]:
        """Return the next parameters and slots."""
        plan = self._plan(params)
        options = plan.options(hparams, step)
        schema = plan.schema(options, params)
        state, live = decode(slots)
        graph = torch.is_grad_enabled()
        given = (plan.optimizer, plan.parts, options, params, gradient, state)
        if graph or plan.tuned:
            moved, state = followed_step(*given, live, graph=graph)
        else:
            moved, state = plain_step(*given)
        return moved, encode(state, schema.live_of(params, state))

    def _plan(self, params: Tree) -> _Plan:
        kind = tuple((key, value.shape, value.dtype, value.device) for key, value in params.items())
        if kind not in self._plans:
            self._plans[kind] = _Plan(self, params)
        return self._plans[kind]


class _Plan:
    """A rule's optimizer with the names, shapes and dtype of the parameters it is used on."""

    def __init__(self, rule: TorchRule, params: Tree) -> None:
        if isinstance(rule.optimizer, Optimizer):
            self.optimizer, names = rule.optimizer, identities(rule.names)
        else:
            self.optimizer, names = make(rule.optimizer, params)
        self.groups = members(self.optimizer, names, params, alike=not rule.continued)
        self.parts: list[Part] = parts(self.optimizer, self.groups, rule.settings)
        self.tuned = any(part.tuned for part in self.parts)
        self.scheduler = rule.scheduler
        self.found: dict[Any, Schema] = {}
        self.held: tuple[Any, Schedule] | None = None
        schedule = self.schedule()
        for part in self.parts if schedule is not None else ():
            _check_schedule(schedule, part)

    def schedule(self) -> Schedule | None:
        """Return the schedule from where the optimizer and its scheduler stand."""
        if self.scheduler is None:
            return None
        rates = tuple(float(group["lr"]) for group in self.optimizer.param_groups)
        position = getattr(self.scheduler, "last_epoch", None), rates
        if self.held is None or self.held[0] != position:
            self.held = position, Schedule(self.scheduler, self.optimizer)
        return self.held[1]

    def options(self, hparams: Tree, step: int) -> Options:
        """Return the present options of each part, as schedule and settings change them."""
        present = [options_of(self.optimizer, group) for group in range(len(self.groups))]
        schedule = self.schedule()
        if schedule is None:
            return [part.options(present[part.group], hparams, step) for part in self.parts]
        present = [options | moved for options, moved in zip(present, schedule.at(step), strict=True)]
        return [
            part.options(
                present[part.group],
                hparams,
                step,
                schedule.line(step, part.group) if "lr" in part.settings else (0.0, 1.0),
            )
            for part in self.parts
        ]

    def schema(self, options: Options, params: Tree) -> Schema:
        """Return what the probe says, which is made once for each set of branches that the options may choose."""
        kind = tuple(_branch(value) for chosen in options for value in chosen.values())
        if kind not in self.found:
            with torch.enable_grad():
                self.found[kind] = probe(self.optimizer, self.parts, options, params)
        return self.found[kind]

    def present_state(self) -> State:
        """Return the optimizer's own state by the parameters' names, as copies."""
        held: State = {}
        for keys, group in zip(self.groups, self.optimizer.param_groups, strict=True):
            for key, tensor in zip(keys, group["params"], strict=True):
                entries = self.optimizer.state.get(tensor, {})
                held[key] = {n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in entries.items()}
        return held


def _branch(value: Any) -> Any:
    """Return what of an option may choose a branch of a step: a flag, a word, whether a number is 0."""
    if isinstance(value, bool | str) or value is None:
        return value
    return bool(value != 0) if isinstance(value, int | float) else type(value)


def _check_schedule(schedule: Any, part: Part) -> None:
    """Refuse settings that the scheduler sets, too."""
    for name in ("momentum", "betas"):
        if name in part.settings and schedule.moves(name, part.group):
            raise UnsupportedError(
                passed=f"TorchRule with a setting {name!r} and a scheduler that moves it",
                expected="one source for each option",
                do="pass cycle_momentum=False to the scheduler, or take the setting out",
            )
    if "lr" in part.settings:
        schedule.check_tuned(part.group)
